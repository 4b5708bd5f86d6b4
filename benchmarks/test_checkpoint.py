"""From folder to folder, and from folder to a running model, on a llama of 20 million weights.

Much of this is the same for a model of any size: headers, the module tree, the journal, the disk's syncs. Its share of
the bandwidth is small for that reason; what counts is that it does not get smaller.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import woqfx
from benchmarks.conftest import Timed
from benchmarks.make_model import Llama, make_model
from woqfx.api import quantize_to
from woqfx.planning import make_plan
from woqfx.request import Request
from woqfx.source import Source, open_source

SMALL = Llama(hidden_size=512, intermediate_size=1408, num_hidden_layers=6, num_attention_heads=8, vocab_size=2000)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model."""
    return make_model(tmp_path_factory.mktemp("model"), SMALL)


@pytest.fixture(scope="module")
def checkpoint(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, quantized."""
    out = tmp_path_factory.mktemp("quantized") / "out"
    _quantize(open_source(model), out)
    return out


def _quantize(source: Source, out: Path) -> None:
    request = Request.read(dtype="int4_clip")
    quantize_to(source, make_plan(source, request), out, progress="none")


def test_plan(timed: Timed, model: Path) -> None:
    """Headers and module tree to a plan."""
    header = (model / "model.safetensors").read_bytes()[:8]
    timed(lambda: woqfx.plan(model), moved=int.from_bytes(header, "little"))


def test_quantize_folder(timed: Timed, model: Path, tmp_path: Path) -> None:
    """Folder to folder, with the syncs that make the result safe."""
    outputs = (tmp_path / str(i) for i in itertools.count())
    weights = (model / "model.safetensors").stat().st_size
    timed(lambda: _quantize(open_source(model), next(outputs)), moved=weights)


def test_load(timed: Timed, checkpoint: Path) -> None:
    """A checkpoint to a model that is ready to run."""
    weights = (checkpoint / "model.safetensors").stat().st_size
    assert isinstance(woqfx.load(checkpoint), torch.nn.Module)
    timed(lambda: woqfx.load(checkpoint), moved=weights)
