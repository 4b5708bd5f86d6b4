from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from torch import nn

import woqfx
from woqfx.architecture import Architecture
from woqfx.blocks.finding import find_blocks
from woqfx.errors import SourceError
from woqfx.layers import find_layers

STACKS = {
    **dict.fromkeys(FAMILIES, ("model.layers",)),
    **dict.fromkeys(("gpt2", "bloom", "falcon"), ("transformer.h",)),
    "opt": ("model.decoder.layers",),
    "gpt_neox": ("gpt_neox.layers",),
    "t5": ("encoder.block", "decoder.block"),
    "bart": ("model.encoder.layers", "model.decoder.layers"),
}


def names(model):
    return [block.name for block in find_blocks(model, [layer.weight for layer in find_layers(model)])]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    assert names(tiny_model(family)) == [f"{stack}.{number}" for stack in STACKS[family] for number in (0, 1)]


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Sequential(nn.Linear(16, 16))])


def test_lists_within_blocks_and_lists_of_layers_are_none():
    model = nn.Module()
    model.towers = nn.ModuleList([Unit(), Unit()])
    model.heads = nn.ModuleList([nn.Linear(16, 4), nn.Linear(16, 4)])
    model.acts = nn.ModuleList([nn.Sequential(nn.ReLU())])
    assert names(model) == ["towers.0", "towers.1"]


@pytest.mark.parametrize(
    "model", [nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))], ids=["one", "two"]
)
def test_a_model_without_blocks_is_told_of_rtn(model):
    with pytest.raises(SourceError, match="no repeated blocks that woqfx could find: quantize it with algorithm rtn"):
        names(model)


@pytest.fixture
def hint():
    def register(function):
        class Plugin:
            woqfx_architecture = staticmethod(woqfx.hookimpl(function))

        woqfx.register(Plugin(), f"hint {len(added)}")
        added.append(f"hint {len(added)}")

    added: list[str] = []
    yield register
    for name in added:
        woqfx.unregister(name)


def test_the_first_hint_decides(hint):
    hint(lambda model: None)
    hint(lambda model: Architecture(stacks=("model.decoder.layers", "model.encoder.layers")))
    hint(lambda model: Architecture(stacks=("nowhere",)))
    found = names(tiny_model("bart"))
    assert found == [f"model.{side}.layers.{number}" for side in ("decoder", "encoder") for number in (0, 1)]


def test_a_hint_that_names_nothing_is_an_error(hint):
    hint(lambda model: Architecture(stacks=("nowhere",)))
    with pytest.raises(SourceError, match="names the blocks 'nowhere', which LlamaForCausalLM does not have"):
        names(tiny_model("llama"))


def test_a_hint_that_fails_is_reported_and_the_rest_works(hint):
    hint(lambda model: 1 / 0)
    with pytest.warns(match="failed in woqfx_architecture: ZeroDivisionError"):
        assert names(tiny_model("llama")) == ["model.layers.0", "model.layers.1"]


def test_no_weights_are_read():
    with torch.device("meta"):
        model = nn.ModuleList([Unit(), Unit()])
    holder = nn.Module()
    holder.layers = model
    assert names(holder) == ["layers.0", "layers.1"]
