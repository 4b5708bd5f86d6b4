"""What the original model gives, as targets of its quantized blocks: against transformers' own hidden states."""

from __future__ import annotations

from typing import ClassVar

import pytest
import shrinking
import torch
from folders_of_models import digests, request, saved
from tiny_models import tiny_model

import woqfx
from woqfx.api import calibrate
from woqfx.blocks.report import TIMINGS
from woqfx.engine import write_checkpoint
from woqfx.planning import make_plan
from woqfx.source import FolderSource


class Following(shrinking.Shrinking):
    """Notes its targets, and hands them on to whoever looks."""

    name = "following"
    targets: ClassVar[dict[str, list[torch.Tensor]]] = {}

    @property
    def corrects_earlier(self):
        return True

    def refine(self, block, quantized):
        Following.targets[block.name] = [target.clone() for target in block.targets]
        return super().refine(block, quantized)


@pytest.fixture(autouse=True)
def plugin():
    class Plugin:
        @woqfx.hookimpl
        def woqfx_algorithms(self):
            return [Following]

    Following.targets = {}
    woqfx.register(Plugin(), "following")
    yield
    woqfx.unregister("following")


def steps(folder, out, **changes):
    source = FolderSource(folder)
    asked = {"algorithm": "following", "dtype": "int4_clip", "calibration": shrinking.data(), **changes}
    plan = make_plan(source, request(**asked))
    return write_checkpoint(source, plan, out, calibration=calibrate(source, plan))


def original(family, stack):
    """The hidden states behind each block but the last of a stack, whose norm transformers includes."""
    model = tiny_model(family).eval()
    tokens = torch.stack(shrinking.tokens())
    with torch.no_grad():
        if stack == "encoder.block":
            return model.encoder(input_ids=tokens, output_hidden_states=True).hidden_states[1:-1]
        return model(input_ids=tokens, output_hidden_states=True).hidden_states[1:-1]


@pytest.mark.parametrize(("family", "stack"), [("llama", "model.layers"), ("t5", "encoder.block")])
def test_targets_are_what_the_original_gives(family, stack, tmp_path):
    list(steps(saved(family, tmp_path), tmp_path / "out"))
    expected = original(family, stack)
    assert expected
    for number, hidden in enumerate(expected):
        torch.testing.assert_close(torch.cat(Following.targets[f"{stack}.{number}"]), hidden, rtol=1e-4, atol=1e-5)


def test_where_blocks_see_float_activations_these_are_the_same(tmp_path):
    folder = saved("llama", tmp_path)
    list(steps(folder, tmp_path / "quantized"))
    followed = Following.targets
    Following.targets = {}
    list(steps(folder, tmp_path / "float", propagate="float"))
    for name, targets in followed.items():
        for one, other in zip(targets, Following.targets[name], strict=True):  # the latter of a rescaled block
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_run_that_was_stopped_goes_on_with_the_same(family, tmp_path):
    folder = saved(family, tmp_path)
    list(steps(folder, tmp_path / "straight"))
    straight = Following.targets
    blocks = len(straight)
    for stop in range(1, blocks):
        Following.targets = {}
        begun = steps(folder, tmp_path / f"stopped-{stop}")
        while len(Following.targets) <= stop:
            next(begun)
        begun.close()
        Following.targets = {}
        list(steps(folder, tmp_path / f"stopped-{stop}"))
        assert len(Following.targets) < blocks
        for name, targets in Following.targets.items():
            assert all(map(torch.equal, targets, straight[name]))
        found, expected = (digests(tmp_path / name) for name in (f"stopped-{stop}", "straight"))
        assert {**found, TIMINGS: ""} == {**expected, TIMINGS: ""}
