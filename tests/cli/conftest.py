"""A tiny model with a tokenizer, on disk and quantized, and a way to run the command line in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result
from tiny_models import save_tokenizer, tiny_model

import woqfx
from woqfx.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in safetensors, with a tokenizer."""
    folder: Path = tmp_path_factory.mktemp("tiny") / "llama"
    tiny_model("llama", vocab_size=259).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """The same, quantized to int8."""
    out: Path = tmp_path_factory.mktemp("tiny") / "out"
    woqfx.quantize(model_folder, dtype="int8", out=out)
    return out


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run `woqfx ...` here; the result has `exit_code`, `stdout` and `stderr`."""

    def invoke(*arguments: object, stdin: str | None = None, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin, env=env)

    return invoke
