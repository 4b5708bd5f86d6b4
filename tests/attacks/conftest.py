"""The good checkpoints that the attacks start from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from folders_of_models import saved, write
from forgeries import RULES, Forgery, Net, Plugin, copy_of

import woqfx


@pytest.fixture(scope="module", autouse=True)
def ternary() -> Iterator[None]:
    """A stranger's dtype. For a module, since tests elsewhere begin with a registry of their own."""
    woqfx.register(Plugin(), "ternary")
    yield
    woqfx.unregister("ternary")


@pytest.fixture(scope="module")
def original(ternary, tmp_path_factory) -> Path:
    """A checkpoint of `Net`, in one file."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("net") / "checkpoint"
    woqfx.quantize(Net(), rules=RULES, out=out)
    return out


@pytest.fixture
def forgery(original, tmp_path) -> Forgery:
    return copy_of(original, tmp_path / "forged")


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    """A checkpoint of a tiny llama, in several files."""
    folder = tmp_path_factory.mktemp("llama")
    return write(saved("llama", folder, num_hidden_layers=1), folder / "checkpoint", shard_bytes=20_000)


@pytest.fixture
def forged_llama(llama, tmp_path) -> Forgery:
    return copy_of(llama, tmp_path / "forged")
