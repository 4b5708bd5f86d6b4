"""Attention beyond one span of 256 positions: transformers' numbers, and the same bits however it is shared out."""

from __future__ import annotations

import pytest
import torch
from engine_models import checkpoint_of, dense_twin, on_engine, random_tokens
from tiny_models import tiny_model

from woqfx.disk.checkpoint import Checkpoint
from woqfx.evaluate import compare
from woqfx_llm_runtime.families import family_of

_core = pytest.importorskip("woqfx_llm_runtime._core")
lowering = pytest.importorskip("woqfx_llm_runtime.lowering")

LENGTH = 620  # two spans and a part, of which the last page is a part
#: Groups of 8 queries a head, heads alone, windows within a span and over several, capped scores.
CASES = {
    "eight queries a head": ("llama", {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 16}),
    "a head for each": ("llama", {"num_key_value_heads": 4}),
    "a window of 40": ("mistral", {"sliding_window": 40}),
    "a window of 300": ("mistral", {"sliding_window": 300}),
    "capped, every other in a window": ("gemma2", {"sliding_window": 300, "attn_logit_softcapping": 5.0}),
}
KV = ("fp32", "fp16", "bf16", "int8")


def changes_of(case):
    family, changes = CASES[case]
    return family, {"max_position_embeddings": LENGTH, **changes}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The checkpoint of each case, made when it is first asked for."""
    made = {}

    def ask(case):
        if case not in made:
            made[case] = checkpoint_of(tmp_path_factory.mktemp("attention") / "out", *changes_of(case), dtype="int8")
        return made[case]

    return ask


def engine_of(folder, case, **options):
    family, changes = changes_of(case)
    model = tiny_model(family, **changes)
    return lowering.build(Checkpoint(folder), family_of(model)(model), lowering.EngineOptions(**options))


def run(engine, slot, tokens):
    logits = torch.empty(len(tokens), engine.vocab_size)
    engine.forward([slot], [len(tokens)], [len(tokens)], tokens, logits)
    return logits


@pytest.fixture(scope="module")
def text():
    return random_tokens(1, LENGTH)[0]


@pytest.mark.parametrize("case", CASES)
def test_logits_of_long_texts(folders, text, case):
    folder = folders(case)
    with torch.no_grad():
        wanted = dense_twin(folder, *changes_of(case))(input_ids=text[None]).logits[0]
    engine = engine_of(folder, case, kv="fp32", head="keep")
    torch.testing.assert_close(run(engine, engine.create(), text), wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("case", CASES)
def test_bits_depend_neither_on_cuts_nor_on_threads(folders, text, case, kv):
    """Prompts go by tiles of queries, single tokens span by span: the same numbers."""
    folder = folders(case)
    two, one = (engine_of(folder, case, kv=kv, threads=threads) for threads in (2, 1))
    whole = run(one, one.create(), text)
    slot = two.create()
    parts = [run(two, slot, part) for part in torch.tensor_split(text, [250, *range(251, 260), 300, 511, 512, 513])]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("case", ["eight queries a head", "a window of 300"])
def test_long_and_short_sequences_together(folders, text, case):
    engine = engine_of(folders(case), case, kv="bf16", threads=2)
    whole = run(engine, engine.create(), text)
    counts = [LENGTH - 1, 3, 256, 300]
    slots = [engine.create() for _ in counts]
    for slot, count in zip(slots, counts, strict=True):
        run(engine, slot, text[:count])
    logits = torch.empty(len(slots), engine.vocab_size)
    engine.forward(slots, [1] * len(slots), [1] * len(slots), text[torch.tensor(counts)], logits)
    assert torch.equal(logits, whole[torch.tensor(counts)])


@pytest.mark.parametrize(("kv", "most"), [("fp16", 1e-6), ("bf16", 1e-5), ("int8", 1e-3)])
def test_what_smaller_keys_and_values_cost(folders, text, kv, most):
    case = "eight queries a head"
    exact, smaller = (on_engine(folders(case), kv=one) for one in ("fp32", kv))
    assert compare(smaller, exact, text, LENGTH).divergence < most


@pytest.mark.parametrize("compute", ["fp32", "bf16", "int8"])
def test_bf16_is_usual_where_products_round_anyway_and_the_cpu_has_it(tmp_path, compute):
    folder = checkpoint_of(tmp_path / "out", "llama", dtype="int8", compute_dtype=compute)
    has_pairs = _core.available_isa() in ("avx512_bf16", "amx")
    expected = "bf16" if has_pairs and compute != "fp32" else "fp16"
    assert lowering.usual_kv(Checkpoint(folder)) == expected
    assert f"keys and values in {expected}" in repr(on_engine(folder, kv="auto"))
