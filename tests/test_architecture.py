"""woqfx_architecture: a plugin may say where an odd model keeps its blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import woqfx
from woqfx.architecture import Architecture
from woqfx.blocks.finding import find_blocks
from woqfx.errors import SourceError
from woqfx.plugin_loading import PluginWarning


class Odd(nn.Module):
    """Blocks in a dictionary, where no one looks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleDict({key: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for key in ("a", "b")})

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages.values():
            x = stage(x)
        return x


class Hint:
    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[nn.Module] = []

    @woqfx.hookimpl
    def woqfx_architecture(self, model: nn.Module) -> Any:
        self.asked.append(model)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


WEIGHTS = ("stages.a.1.weight", "stages.b.1.weight")


@pytest.fixture
def registered() -> Iterator[Any]:
    names: list[str] = []

    def register(answer: Any) -> Hint:
        names.append(f"hint{len(names)}")
        hint = Hint(answer)
        woqfx.register(hint, names[-1])
        return hint

    yield register
    for name in names:
        woqfx.unregister(name)


def test_without_a_hint_there_are_no_blocks() -> None:
    with pytest.raises(SourceError, match="woqfx_architecture"):
        find_blocks(Odd(), WEIGHTS)


def test_the_hint_names_the_blocks(registered: Any) -> None:
    model = Odd()
    hint = registered(Architecture(stacks=("stages",)))
    assert [block.name for block in find_blocks(model, WEIGHTS)] == ["stages.a", "stages.b"]
    assert hint.asked == [model]


def test_a_plugin_that_knows_nothing_leaves_it_to_the_next(registered: Any) -> None:
    registered(None)
    registered(Architecture(stacks=("stages",)))
    registered(None)
    assert len(find_blocks(Odd(), WEIGHTS)) == 2


def test_a_plugin_that_raises_is_passed_over(registered: Any) -> None:
    registered(RuntimeError("no idea"))
    registered(Architecture(stacks=("stages",)))
    assert len(find_blocks(Odd(), WEIGHTS)) == 2


def test_a_hint_that_does_not_fit_is_an_error(registered: Any) -> None:
    registered(Architecture(stacks=("encoder.stages",)))
    with pytest.raises(SourceError, match=r"'encoder\.stages', which Odd does not have"):
        find_blocks(Odd(), WEIGHTS)


def test_a_model_is_quantized_by_the_hint(registered: Any) -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.odd = nn.Embedding(50, 8), Odd()

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.odd(self.embed(input_ids))

    registered(Architecture(stacks=("odd.stages",)))
    tokens = list(torch.randint(0, 50, (8, 40), generator=torch.Generator().manual_seed(0)))
    request: dict[str, Any] = {"calibration": tokens, "samples": 8, "seq_len": 40, "progress": "none"}
    model = woqfx.quantize(Language(), algorithm="awq", dtype="nf4", group_size=4, **request)
    assert model(tokens[0][None]).shape == (1, 40, 8)


def test_of_each_thing_the_first_plugin_that_says_something_is_believed(registered: Any) -> None:
    registered(Architecture(descriptions={"one": 1}))
    registered(Architecture(stacks=("stages",), descriptions={"one": 2, "two": 3}))
    registered(Architecture(stacks=("others",)))
    found = woqfx.registry().architecture(Odd())
    assert (found.stacks, dict(found.descriptions)) == (("stages",), {"one": 1, "two": 3})


def test_an_answer_of_another_kind_is_reported_and_passed_over(registered: Any) -> None:
    registered("stages")
    registered(Architecture(stacks=("stages",)))
    with pytest.warns(PluginWarning, match="woqfx_architecture"):
        assert woqfx.registry().architecture(Odd()).stacks == ("stages",)
