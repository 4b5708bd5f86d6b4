from __future__ import annotations

import pytest
import torch
from shrinking import tokens
from tiny_models import FAMILIES, tiny_model
from torch import nn

from woqfx.blocks.activations import Shelf
from woqfx.blocks.block import Block, Call, first_tensor
from woqfx.blocks.conductor import Conductor
from woqfx.blocks.finding import find_blocks
from woqfx.blocks.performance import Performance, describe
from woqfx.errors import SourceError
from woqfx.layers import find_layers
from woqfx.source import FolderSource, ModuleSource


def blocks_of(model):
    return find_blocks(model, [layer.weight for layer in find_layers(model)])


def hidden_states(model, batch):
    """What each block gives when the model itself runs, by the block's name."""
    found = {}
    hooks = [
        model.get_submodule(block.name).register_forward_hook(
            lambda _module, _arguments, output, name=block.name: found.update({name: first_tensor(output)})
        )
        for block in blocks_of(model)
    ]
    inputs = {"input_ids": batch, "use_cache": False}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=batch)
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return found


def conducted(source, batches):
    """What each block gives, run alone with the arguments that the conductor finds."""
    conductor, played, found = Conductor(source, blocks_of(source.skeleton)), Performance(), {}
    for info in blocks_of(source.skeleton):
        calls = [conductor.capture(info.name, batch, number, played) for number, batch in enumerate(batches)]
        conductor.release()
        module = conductor.modules[info.name]
        parameters = {name: source.read(f"{info.name}.{name}").float() for name, _ in module.named_parameters()}
        block = Block(info.name, module, {}, parameters, calls, ())
        with torch.no_grad():
            outputs = [block.outputs(call) for call in calls]
        shelf = Shelf()
        trees = [describe(output, call, shelf.append, info.name) for output, call in zip(outputs, calls, strict=True)]
        played.add(info, trees, shelf)
        found[info.name] = [first_tensor(output) for output in outputs]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_alone_give_what_they_give_in_the_model(family, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    batches = [torch.stack(tokens(2, 24)), torch.stack(tokens(3, 17))]
    expected = [hidden_states(model, batch) for batch in batches]
    for source in (ModuleSource(model), FolderSource(tmp_path)):
        found = conducted(source, batches)
        assert list(found) == list(expected[0])
        for name, outputs in found.items():
            for output, whole in zip(outputs, expected, strict=True):
                # Experts are run in another order than is the model's default; all else is the same bit for bit.
                tolerance = 1e-5 if "moe" in family or family == "mixtral" else 0
                torch.testing.assert_close(output, whole[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_short_float_model_runs_in_float32(kind, tmp_path):
    model = tiny_model("llama", dtype=kind)
    batch = torch.stack(tokens(2, 24))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = conducted(ModuleSource(model), [batch])
    assert all(
        torch.equal(tensor, before[name]) and tensor.dtype == kind for name, tensor in model.state_dict().items()
    )
    whole = hidden_states(tiny_model("llama", dtype=kind).float(), batch)
    for name, (output,) in found.items():
        assert output.dtype == torch.float32
        assert torch.equal(output, whole[name])


def test_weights_of_blocks_are_never_held(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    source = FolderSource(tmp_path)
    conductor = Conductor(source, blocks_of(source.skeleton))
    conductor.capture("model.layers.0", torch.stack(tokens(1)), 0, Performance())
    assert all(p.is_meta for module in conductor.modules.values() for p in module.parameters())
    loaded = [p for p in conductor._model.parameters() if not p.is_meta]
    assert [tuple(p.shape) for p in loaded] == [(128, 64)]  # the embedding: the run stops before the last norm and head
    conductor.release()
    assert all(p.is_meta or p.untyped_storage().nbytes() == 4 for p in conductor._model.parameters())


class Skipping(nn.Module):
    """Its third block takes what the first one gave, its second one a bias of the first."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, 16)
        self.layers = nn.ModuleList(Part() for _ in range(3))
        self.reach = reach

    def forward(self, input_ids):
        given = [self.embed(input_ids)]
        bias = None
        for number, layer in enumerate(self.layers):
            hidden, bias = layer(given[max(0, number - self.reach)], bias)
            given.append(hidden)
        return given[-1]


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(16, 16), nn.Tanh())

    def forward(self, hidden, bias=None):
        bias = hidden.mean(0) if bias is None else bias
        return self.inner(hidden) + bias, bias


def test_what_else_a_block_gives_is_passed_on():
    model = Skipping(reach=0).eval()
    batches = [torch.stack(tokens(2, 8)), torch.stack(tokens(2, 9))]
    found = conducted(ModuleSource(model), batches)
    with torch.no_grad():
        for number, batch in enumerate(batches):
            assert torch.equal(found["layers.2"][number], model(batch))


def test_a_model_that_skips_blocks_is_refused():
    with pytest.raises(SourceError, match=r"layers\.2 takes what another than the block before it gave.*rtn"):
        conducted(ModuleSource(Skipping(reach=1).eval()), [torch.stack(tokens(2, 8))])


def test_a_model_that_does_not_run_is_named():
    model = Skipping(reach=0)
    model.embed = nn.Linear(3, 3)
    with pytest.raises(SourceError, match=r"Skipping does not run in float32 up to layers\.0: RuntimeError"):
        conducted(ModuleSource(model), [torch.stack(tokens(2, 8))])


def test_a_block_that_gives_what_cannot_be_kept_is_named():
    with pytest.raises(SourceError, match=r"layers\.0 returns a set"):
        describe((torch.ones(1), {1}), Call((torch.ones(2),), {}), Shelf().append, "layers.0")


def test_arguments_that_a_block_passes_on_are_not_kept():
    mask, hidden = torch.ones(3), torch.zeros(2)
    shelf = Shelf()
    tree = describe((hidden, mask, None, [hidden]), Call((torch.ones(2), mask), {}), shelf.append, "block")
    assert len(shelf) == 2
    kept = {"kept": 0, "shape": [2]}, {"kept": 1, "shape": [2]}
    assert tree == {
        "tuple": [{"tensor": kept[0]}, {"tensor": {"argument": 1}}, {"value": None}, {"list": [{"tensor": kept[1]}]}]
    }
