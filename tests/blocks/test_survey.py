"""The whole model as one block: its loss is the model's own, its feeds are those of its blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from tiny_blocks import tiny_blocks
from tiny_models import tiny_model
from torch import Tensor, nn

import woqfx
from woqfx import Algorithm, Block, Fold
from woqfx.blocks.feeds import find_feeds
from woqfx.blocks.folding import fold
from woqfx.blocks.survey import NextToken, whole_model
from woqfx.errors import SourceError
from woqfx.source import open_source

BATCHES = [torch.randint(3, 128, (2, 24), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


class Surveyor(Algorithm):
    """Halves the scales of the first feed of each block, as its survey has told it."""

    name = "surveyor"
    needs_data = True
    seen: tuple[Block, ...] = ()

    @property
    def surveys(self) -> bool:
        return True

    def survey(self, model: Block) -> Mapping[str, Tensor]:
        type(self).seen += (model,)
        return {feed.name: torch.full((feed.size,), 0.5) for feed in model.feeds}

    def transform(self, block: Block) -> Iterator[Fold]:
        for feed in block.feeds:
            yield Fold(feed, block.surveyed[f"{block.name}.{feed.name}"])


def request(**changes: Any) -> dict[str, Any]:
    tokens = [row for batch in BATCHES for row in batch]
    asked = {"algorithm": "surveyor", "dtype": "nf4", "group_size": 16, "calibration": tokens, "samples": 6}
    return {**asked, "seq_len": 24, "progress": "none", **changes}


@pytest.fixture(autouse=True)
def surveyor() -> Iterator[type[Surveyor]]:
    class Plugin:
        @woqfx.hookimpl
        def woqfx_algorithms(self) -> list[type[Algorithm]]:
            return [Surveyor]

    woqfx.register(Plugin(), "surveyor")
    Surveyor.seen = ()
    yield Surveyor
    woqfx.unregister("surveyor")


def survey_of(model: Any) -> Block:
    asked = {name: value for name, value in request().items() if name != "progress"}
    return whole_model(open_source(model), woqfx.plan(model, **asked), [*BATCHES, BATCHES[0][:1, :16]], 1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "t5", "opt"])
def test_its_loss_is_the_models_own(family: str, tmp_path: Any) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    inputs = {"input_ids": BATCHES[0], "labels": BATCHES[0]}
    with torch.no_grad():
        expected = float(model(**inputs).loss)
        for given in (model, tmp_path):
            block = survey_of(given)
            assert float(block.run(block.calls[0])) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_its_feeds_are_those_of_its_blocks_and_change_nothing(family: str) -> None:
    block = survey_of(tiny_model(family))
    expected = [f"{name}.{feed.name}" for name, one in tiny_blocks(family).items() for feed in find_feeds(one)]
    assert [feed.name for feed in block.feeds] == expected
    parameters = dict(block.parameters)
    for feed in block.feeds:
        scale = torch.exp(torch.randn(feed.size, generator=torch.Generator().manual_seed(1)))
        parameters |= fold(feed, scale, parameters)
    with torch.no_grad():
        torch.testing.assert_close(block.run(block.calls[1], parameters), block.run(block.calls[1]), rtol=1e-4, atol=0)


def test_it_is_differentiable_in_every_weight() -> None:
    block = survey_of(tiny_model("llama"))
    weights = {name: block.parameters[name].clone().requires_grad_() for name in block.layers}
    block.run(block.calls[0], weights).backward()
    assert all(bool(weight.grad.abs().sum() > 0) for weight in weights.values() if weight.grad is not None)
    assert all(weight.grad is not None for weight in weights.values())


def test_what_it_gives_reaches_each_block(surveyor: type[Surveyor]) -> None:
    model = tiny_model("llama")
    before = model.model.layers[0].input_layernorm.weight.clone()
    woqfx.quantize(model, **request())
    assert len(surveyor.seen) == 1
    for layer in model.model.layers:
        assert layer.input_layernorm.weight.isfinite().all()
    torch.testing.assert_close(model.model.layers[0].input_layernorm.weight, before * 2)


def test_a_model_without_logits_is_an_error() -> None:
    class Silent(nn.Module):
        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            return {"states": input_ids}

    with pytest.raises(SourceError, match="Silent gives no logits"):
        NextToken(Silent())(BATCHES[0])


def test_teq_trains_on_the_loss_of_the_model() -> None:
    from woqfx_teq.teq import TEQ, TEQOptions
    from woqfx_teq.training import LanguageModelLoss, Trainer

    block = survey_of(tiny_model("llama"))
    how: dict[str, Any] = {"steps": 40, "learning_rate": 0.3, "warmup": 0.1, "batch": 3}
    trained = Trainer(block, LanguageModelLoss(), clip=True).train([torch.zeros(f.size) for f in block.feeds], **how)
    assert trained.error < 0.985 * trained.error_before
    teq = TEQ(TEQOptions(objective="lm", start="identity", **how))
    assert teq.surveys and not TEQ().surveys
    scales = teq.survey(block)
    assert all(torch.equal(scales[feed.name], scale) for feed, scale in zip(block.feeds, trained.scales, strict=True))


def test_a_run_with_a_survey_gives_the_same_bytes_from_a_folder(tmp_path: Any) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    asked = request(algorithm="teq", options={"objective": "lm", "steps": 3})
    woqfx.quantize(tmp_path / "model", out=tmp_path / "a", **asked)
    woqfx.quantize(model, out=tmp_path / "b", **asked)
    names = sorted(path.name for path in (tmp_path / "a").glob("*.safetensors"))
    assert names
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
