"""New plugins: each skeleton is complete, clean, and passes its own tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.resources import files

import pytest

from woqfx.errors import OutputError, PluginError
from woqfx.scaffold import KINDS, new_plugin

NAMES = {"dtype": "tiny3", "algorithm": "my-rounding", "backend": "my_machine"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_its_own_tests(kind, tmp_path):
    folder = new_plugin(kind, NAMES[kind], tmp_path / "new")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "WOQFX_STRICT_PLUGINS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\d{2,} passed", run.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_clean(kind, tmp_path):
    pytest.importorskip("ruff")
    folder = new_plugin(kind, NAMES[kind], tmp_path / "new")
    for command in (["check", "--select", "E,F,I,B,UP,N"], ["format", "--check"]):
        run = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=folder, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written(kind, tmp_path):
    folder = new_plugin(kind, NAMES[kind], str(tmp_path / "deep" / "new"))
    stem = NAMES[kind].replace("_", "-")
    package = "woqfx_" + stem.replace("-", "_")
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert len(written) == 5
    assert {"README.md", "pyproject.toml", f"{package}/__init__.py"} <= set(written)
    pyproject = (folder / "pyproject.toml").read_text()
    assert f'name = "woqfx-{stem}"' in pyproject
    assert f'[project.entry-points.woqfx]\n{package} = "{package}"' in pyproject
    assert not any("${" in path.read_text() or "$package" in path.read_text() for path in folder.rglob("*.*"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *[
            (name, "is no name for a plugin")
            for name in ("", "A", "3bit", "a b", "a/b", "../a", "a-", "a--b", "a.b", "é")
        ],
        ("none", "a class None, which Python keeps"),
        ("rtn", "package woqfx_rtn is installed already"),
    ],
)
def test_a_name_that_cannot_be(name, message, tmp_path):
    with pytest.raises(PluginError, match=message):
        new_plugin("dtype", name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_kind_that_is_none(tmp_path):
    with pytest.raises(PluginError, match="no skeleton for a 'kernel', but for: dtype, algorithm, backend"):
        new_plugin("kernel", "mine", tmp_path / "new")


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "README.md").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        new_plugin("dtype", "mine", tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["README.md"]
    assert (tmp_path / "new" / "README.md").read_text() == "mine"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        new_plugin("dtype", "mine", tmp_path / "file" / "new")


def test_the_templates_are_package_data():
    templates = files("woqfx.scaffold") / "templates"
    assert {entry.name for entry in templates.iterdir()} == {"common", *KINDS}
