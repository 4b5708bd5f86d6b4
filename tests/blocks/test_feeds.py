"""What feeds what is known for each family from its paper and code; the search must find it, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_blocks import make_block, tiny_blocks
from tiny_models import FAMILIES
from torch import Tensor, nn

from woqfx import Block, Call, Feed
from woqfx.blocks.feeds import find_feeds, holds
from woqfx.blocks.folding import fold

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
LLAMA = {
    "input_layernorm": QKV,
    "self_attn.v_proj": ("self_attn.o_proj",),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.up_proj": ("mlp.down_proj",),
}
GEMMA = {
    "input_layernorm": QKV,
    "self_attn.v_proj": ("self_attn.o_proj",),
    "pre_feedforward_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.up_proj": ("mlp.down_proj",),
}
MIXTURE = {
    "input_layernorm": QKV,
    "self_attn.v_proj": ("self_attn.o_proj",),
    "post_attention_layernorm": ("mlp.gate", "mlp.experts.gate_up_proj"),
    "mlp.experts.gate_up_proj": ("mlp.experts.down_proj",),
}
T5_SELF = {
    "layer.0.layer_norm": ("layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v"),
    "layer.0.SelfAttention.v": ("layer.0.SelfAttention.o",),
}
#: In each block of each stack: a norm or linear, and the weights whose inputs it scales. After GELU nothing is in
#: proportion, and BART's norms also feed its residual.
EXPECTED: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "llama": {"model.layers": LLAMA},
    "mistral": {"model.layers": LLAMA},
    "qwen2": {"model.layers": LLAMA},
    "qwen3": {"model.layers": LLAMA},
    "phi3": {
        "model.layers": {
            "input_layernorm": ("self_attn.qkv_proj",),
            "self_attn.qkv_proj": ("self_attn.o_proj",),
            "post_attention_layernorm": ("mlp.gate_up_proj",),
            "mlp.gate_up_proj": ("mlp.down_proj",),
        }
    },
    "gemma2": {"model.layers": GEMMA},
    "gemma3": {"model.layers": GEMMA},
    "gpt2": {
        "transformer.h": {"ln_1": ("attn.c_attn",), "attn.c_attn": ("attn.c_proj",), "ln_2": ("mlp.c_fc",)},
    },
    "opt": {
        "model.decoder.layers": {
            "self_attn_layer_norm": QKV,
            "self_attn.v_proj": ("self_attn.out_proj",),
            "final_layer_norm": ("fc1",),
            "fc1": ("fc2",),
        }
    },
    "gpt_neox": {
        "gpt_neox.layers": {
            "input_layernorm": ("attention.query_key_value",),
            "attention.query_key_value": ("attention.dense",),
            "post_attention_layernorm": ("mlp.dense_h_to_4h",),
        }
    },
    "bloom": {
        "transformer.h": {
            "input_layernorm": ("self_attention.query_key_value",),
            "self_attention.query_key_value": ("self_attention.dense",),
            "post_attention_layernorm": ("mlp.dense_h_to_4h",),
        }
    },
    "falcon": {
        "transformer.h": {
            "input_layernorm": ("self_attention.query_key_value", "mlp.dense_h_to_4h"),
            "self_attention.query_key_value": ("self_attention.dense",),
        }
    },
    "mixtral": {"model.layers": MIXTURE},
    "qwen3_moe": {"model.layers": MIXTURE},
    "lfm2": {
        "model.layers.0": {
            "operator_norm": ("conv.in_proj",),
            "conv.in_proj": ("conv.out_proj",),
            "ffn_norm": ("feed_forward.w1", "feed_forward.w3"),
            "feed_forward.w3": ("feed_forward.w2",),
        },
        "model.layers.1": {
            "operator_norm": QKV,
            "self_attn.v_proj": ("self_attn.out_proj",),
            "ffn_norm": ("feed_forward.w1", "feed_forward.w3"),
            "feed_forward.w3": ("feed_forward.w2",),
        },
    },
    "t5": {
        "encoder.block": {
            **T5_SELF,
            "layer.1.layer_norm": ("layer.1.DenseReluDense.wi",),
            "layer.1.DenseReluDense.wi": ("layer.1.DenseReluDense.wo",),
        },
        "decoder.block": {
            **T5_SELF,
            "layer.1.layer_norm": ("layer.1.EncDecAttention.q",),
            "layer.1.EncDecAttention.v": ("layer.1.EncDecAttention.o",),
            "layer.2.layer_norm": ("layer.2.DenseReluDense.wi",),
            "layer.2.DenseReluDense.wi": ("layer.2.DenseReluDense.wo",),
        },
    },
    "bart": {
        "model.encoder.layers": {"self_attn.v_proj": ("self_attn.out_proj",)},
        "model.decoder.layers": {
            "self_attn.v_proj": ("self_attn.out_proj",),
            "encoder_attn.v_proj": ("encoder_attn.out_proj",),
        },
    },
}


def table(feeds: tuple[Feed, ...]) -> dict[str, tuple[str, ...]]:
    return {feed.name: tuple(name.removesuffix(".weight") for name in feed.consumers) for feed in feeds}


def feed_of(block: Block, name: str) -> Feed:
    return next(feed for feed in find_feeds(block) if feed.name == name)


def random_scale(feed: Feed) -> Tensor:
    return torch.exp(0.7 * torch.randn(feed.size, generator=torch.Generator().manual_seed(1)))


def test_every_family_has_its_table() -> None:
    assert set(EXPECTED) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_feeds_of_a_family(family: str) -> None:
    blocks = tiny_blocks(family)
    assert blocks
    for name, block in blocks.items():
        expected = next(feeds for stack, feeds in EXPECTED[family].items() if name.startswith(stack))
        feeds = find_feeds(block)
        assert table(feeds) == expected
        for feed in feeds:
            with torch.no_grad():
                changed = block.run(block.calls[0], fold(feed, random_scale(feed), block.parameters))
            torch.testing.assert_close(changed, block.targets[0], rtol=2e-5, atol=2e-5)


def test_t5_gated_feed_forward() -> None:
    block = tiny_blocks("t5", feed_forward_proj="gated-gelu")["encoder.block.0"]
    found = table(find_feeds(block))
    assert found["layer.1.DenseReluDense.wi_1"] == ("layer.1.DenseReluDense.wo",)
    assert found["layer.1.layer_norm"] == ("layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1")


def test_a_plain_norm_has_no_one_plus_and_gemmas_has() -> None:
    assert not any(feed.one_plus for feed in find_feeds(tiny_blocks("llama")["model.layers.0"]))
    norms = [feed for feed in find_feeds(tiny_blocks("gemma2")["model.layers.0"]) if "layernorm" in feed.name]
    assert [feed.one_plus for feed in norms] == [{f"{feed.name}.weight"} for feed in norms]


@pytest.mark.parametrize("fresh", [0.0, 1.0], ids=["zeros", "ones"])
def test_gemmas_norms_as_they_are_when_training_begins(fresh: float) -> None:
    block = tiny_blocks("gemma2")["model.layers.0"]
    norms = {name: torch.full_like(t, fresh) for name, t in block.parameters.items() if t.ndim == 1}
    block = replace(block, parameters={**block.parameters, **norms})
    assert table(find_feeds(block)) == GEMMA


HEADS, KV_HEADS, WIDTH = 4, 2, 16


def shared(rows: Tensor) -> Tensor:
    """Channels of key-value heads as query heads read them."""
    return rows.view(KV_HEADS, 1, WIDTH).expand(-1, HEADS // KV_HEADS, -1).flatten()


@pytest.mark.parametrize(
    ("family", "block", "producer", "rows"),
    [
        ("llama", "model.layers.0", "self_attn.v_proj", shared(torch.arange(32))),
        ("phi3", "model.layers.0", "self_attn.qkv_proj", shared(torch.arange(32)) + 96),
        ("gpt2", "transformer.h.0", "attn.c_attn", torch.arange(64) + 128),
        (
            "gpt_neox",
            "gpt_neox.layers.0",
            "attention.query_key_value",
            torch.arange(64) + 32 * (torch.arange(64) // 16 + 1),
        ),
        (
            "bloom",
            "transformer.h.0",
            "self_attention.query_key_value",
            torch.arange(64) + 32 * (torch.arange(64) // 16 + 1),
        ),
        ("falcon", "transformer.h.0", "self_attention.query_key_value", torch.arange(16).repeat(4) + 80),
        ("phi3", "model.layers.0", "mlp.gate_up_proj", torch.arange(96) + 96),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_which_row_reaches_which_channel(family: str, block: str, producer: str, rows: Tensor) -> None:
    feed = feed_of(tiny_blocks(family)[block], producer)
    (read,) = feed.consumers.values()
    row_of = torch.full((feed.size,), -1)
    for index in feed.producers.values():
        row_of[index[index >= 0]] = torch.nonzero(index >= 0).squeeze(1)
    assert torch.equal(row_of[read], rows)


def test_experts_are_fed_one_by_one() -> None:
    feed = feed_of(tiny_blocks("mixtral")["model.layers.0"], "mlp.experts.gate_up_proj")
    assert feed.size == 4 * 96
    assert torch.equal(feed.consumers["mlp.experts.down_proj"], torch.arange(4 * 96).view(4, 96))
    rows = feed.producers["mlp.experts.gate_up_proj"]
    assert torch.equal(rows[:, 96:], torch.arange(4 * 96).view(4, 96)) and bool((rows[:, :96] == -1).all())


def test_biases_are_divided_with_their_weights() -> None:
    block = tiny_blocks("opt")["model.decoder.layers.0"]
    assert list(feed_of(block, "fc1").producers) == ["fc1.weight", "fc1.bias"]
    assert list(feed_of(block, "final_layer_norm").producers) == ["final_layer_norm.weight", "final_layer_norm.bias"]


def test_powers_of_two_change_no_bit() -> None:
    block = tiny_blocks("llama")["model.layers.0"]
    parameters = dict(block.parameters)
    for feed in find_feeds(block):
        exponents = torch.randint(-3, 4, (feed.size,), generator=torch.Generator().manual_seed(2))
        parameters |= fold(feed, torch.exp2(exponents.float()), parameters)
    with torch.no_grad():
        assert torch.equal(block.run(block.calls[0], parameters), block.targets[0])


class Odd(nn.Module):
    """Two linears after a norm, with something in between or beside."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm, self.a, self.b = nn.LayerNorm(24), nn.Linear(24, 40), nn.Linear(40, 24)
        self.unused = nn.Linear(40 if kind == "unused_wide" else 24, 8)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        inner = self.a(h)
        inner = {
            "relu": inner.relu(),
            "square": inner.square(),
            "gelu": nn.functional.gelu(inner),
            "glu": inner * inner.sigmoid(),
            "sum": inner.relu() + inner.mean(-1, keepdim=True),
            "reversed": inner.flip(-1),
        }.get(self.kind, inner)
        y = self.b(inner)
        if self.kind == "einsum":
            return y + torch.einsum("btk,nk->btn", inner, self.b.weight)
        return y + (h if self.kind == "norm_in_residual" else x)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("relu", {"a": ("b",)}),
        ("reversed", {"a": ("b",)}),
        ("square", {}),
        ("gelu", {}),
        ("glu", {}),
        ("sum", {}),
        ("norm_in_residual", {"a": ("b",)}),
    ],
)
def test_what_is_not_in_proportion_is_left_out(kind: str, found: dict[str, tuple[str, ...]]) -> None:
    torch.manual_seed(0)
    module = Odd(kind)
    del module.unused
    block = make_block("odd", module, [Call((torch.randn(2, 30, 24),), {})])
    norm = {} if kind == "norm_in_residual" else {"norm": ("a",)}
    assert table(find_feeds(block)) == {**norm, **found}


@pytest.mark.parametrize(
    ("kind", "found"), [("unused", {"a": ("b",)}), ("unused_wide", {"norm": ("a",)})], ids=["narrow", "wide"]
)
def test_a_weight_that_was_not_seen_may_read_the_same(kind: str, found: dict[str, tuple[str, ...]]) -> None:
    torch.manual_seed(0)
    block = make_block("odd", Odd(kind), [Call((torch.randn(2, 30, 24),), {})])
    assert table(find_feeds(block)) == found


def test_a_use_that_no_one_sees_is_caught_by_the_output() -> None:
    torch.manual_seed(0)
    module = Odd("einsum")
    del module.unused
    block = make_block("odd", module, [Call((torch.randn(2, 30, 24),), {})])
    # The einsum multiplies by the same weight, which is rescaled for both: this holds. With a copy it would not.
    assert table(find_feeds(block)) == {"norm": ("a",), "a": ("b",)}


def test_a_feed_is_for_weights_that_are_quantized() -> None:
    block = tiny_blocks("llama")["model.layers.0"]
    down = "mlp.down_proj.weight"
    assert table(find_feeds(replace(block, layers={down: block.layers[down]}))) == {"mlp.up_proj": ("mlp.down_proj",)}


def test_the_feeds_of_a_like_block_are_tried_first() -> None:
    first, second = tiny_blocks("llama").values()
    feeds = find_feeds(first)
    assert find_feeds(second, like=feeds) == feeds
    wrong = tuple(replace(feed, consumers={n: i.flip(0) for n, i in feed.consumers.items()}) for feed in feeds)
    assert table(find_feeds(second, like=wrong)) == LLAMA
    elsewhere = find_feeds(tiny_blocks("gpt2")["transformer.h.0"])
    assert table(find_feeds(second, like=elsewhere)) == LLAMA


def test_a_false_feed_does_not_hold() -> None:
    block = tiny_blocks("llama")["model.layers.0"]
    feed = feed_of(block, "input_layernorm")
    assert holds(block, [feed])
    name = "self_attn.q_proj.weight"
    assert not holds(block, [replace(feed, consumers={n: i for n, i in feed.consumers.items() if n != name})])
    assert not holds(block, [replace(feed, consumers={**feed.consumers, name: feed.consumers[name].roll(1)})])
    one = feed.consumers[name].clone()
    one[5] = -1
    assert not holds(block, [replace(feed, consumers={**feed.consumers, name: one})])
