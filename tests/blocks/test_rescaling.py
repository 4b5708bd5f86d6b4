from __future__ import annotations

import pytest
import torch
from tiny_blocks import tiny_blocks

from woqfx.algorithm import Fold
from woqfx.blocks.block import Feed
from woqfx.blocks.feeds import find_feeds
from woqfx.blocks.folding import fold
from woqfx.blocks.rescaling import storable, try_fold

BF16 = torch.bfloat16


def scales(size, seed=0):
    return torch.exp(0.5 * torch.randn(size, generator=torch.Generator().manual_seed(seed)))


def is_power_of_two(scale):
    return torch.equal(scale, torch.exp2(scale.log2().round()))


def rounded(size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(BF16).float()


@pytest.mark.parametrize("one_plus", [False, True], ids=["w", "1 + w"])
def test_a_norm_in_bfloat16_gets_the_scale_that_its_rounded_weight_has(one_plus):
    weight = rounded(64, 1) * 0.2
    feed = Feed("n", 64, {"n": torch.arange(64)}, {"w": torch.arange(64)}, frozenset({"n"} if one_plus else ()))
    asked = scales(64)
    scale = storable(feed, asked, {"n": weight, "w": torch.ones(8, 64)}, {"n": BF16})
    new = fold(feed, scale, {"n": weight, "w": torch.ones(8, 64)})["n"]
    shift = 1 if one_plus else 0
    # Storing the quotient in bfloat16 loses nothing but the last digits of float32.
    exact = (weight.double() + shift) / scale.double()
    torch.testing.assert_close(new.to(BF16).double() + shift, exact, rtol=1e-6, atol=1e-7)
    assert float((scale / asked).log().abs().max()) < 0.02 or one_plus
    assert not torch.equal(scale, asked)


def test_zeros_take_any_scale():
    feed = Feed("n", 4, {"n": torch.arange(4)}, {"w": torch.arange(4)})
    asked = scales(4)
    found = storable(feed, asked, {"n": torch.zeros(4), "w": torch.ones(2, 4)}, {"n": BF16})
    assert torch.equal(found, asked)


@pytest.mark.parametrize(
    ("parameters", "kept", "power"),
    [
        ({"n": rounded(8), "w": rounded((3, 8))}, {}, False),
        ({"n": rounded(8), "w": rounded((3, 8))}, {"n": torch.float32}, False),
        ({"n": rounded(8), "w": rounded((3, 8))}, {"w": BF16}, True),
        ({"n": rounded((8, 5)), "w": rounded((3, 8))}, {"n": BF16}, True),
        ({"n": rounded((8, 5)), "w": rounded((3, 8))}, {"w": torch.float32}, False),
    ],
    ids=["all quantized", "a float32 norm", "a kept consumer", "a kept linear feeds", "a kept float32 consumer"],
)
def test_kept_matrices_in_short_floats_take_powers_of_two(parameters, kept, power):
    feed = Feed("n", 8, {"n": torch.arange(8)}, {"w": torch.arange(8)})
    found = storable(feed, scales(8), parameters, kept)
    assert is_power_of_two(found) == power


def test_elements_that_share_a_scale_take_powers_of_two():
    feed = Feed("n", 4, {"n": torch.arange(8) % 4}, {"w": torch.arange(4)})
    assert is_power_of_two(storable(feed, scales(4), {"n": rounded(8), "w": rounded((3, 4))}, {"n": BF16}))


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "gpt2", "mixtral"])
def test_a_found_feed_can_be_folded_in_any_type(family):
    for block in tiny_blocks(family).values():
        kept = {name: BF16 for name in block.parameters if name not in block.layers}
        parameters = {n: t.to(kept[n]).float() if n in kept else t for n, t in block.parameters.items()}
        with torch.no_grad():
            targets = [block.run(call, parameters) for call in block.calls]
        from dataclasses import replace

        block = replace(block, parameters=parameters, targets=targets)
        feeds = find_feeds(block)
        assert feeds
        for feed in feeds:
            tried = try_fold(block, Fold(feed, scales(feed.size)), kept, "me")
            assert not isinstance(tried, str), tried
            changed, _ = tried
            assert all(torch.equal(t, t.to(kept[n]).float()) for n, t in changed.items() if n in kept)
            assert any(not torch.equal(t, parameters[n]) for n, t in changed.items())


def test_what_would_overflow_is_not_used():
    (block, *_) = tiny_blocks("llama").values()
    (feed, *_) = find_feeds(block)
    tried = try_fold(block, Fold(feed, torch.full((feed.size,), 1e-38)), {}, "me")
    assert isinstance(tried, str)
