"""The wheel, in an environment of its own: torch and the like are borrowed from this one, woqfx is not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from once import once
from tiny_models import tiny_model
from wheels import build, only_wheel

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """A folder with the source distribution, and the wheel that was made of it where there is no compiler."""

    def make(folder):
        build(folder, f"-Cbuild-dir={folder / 'build'}", CC="/no/compiler", CXX="/no/compiler")

    return once(tmp_path_factory, "plain", make)


@pytest.fixture(scope="session")
def fresh(wheel, tmp_path_factory):
    """An environment into which the wheel was installed."""
    return once(tmp_path_factory, "fresh", lambda folder: install(wheel, folder))


def install(wheel, folder):
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # A path line: the .pth files of the borrowed folder are not read, so this tree's editable install is not there.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel],
        check=True, capture_output=True, text=True,
    )  # fmt: skip


def run(fresh, *command):
    """Run a program of the fresh environment, away from this tree."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [fresh / "bin" / command[0], *command[1:]], cwd=fresh, env=environment, capture_output=True, text=True
    )


def seconds(fresh, *command):
    """The shortest of several runs."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert run(fresh, *command).returncode == 0
        times.append(time.perf_counter() - start)
    return min(times)


def test_what_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = [p for p in (ROOT / "woqfx").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {str(path.relative_to(ROOT)) for path in sources} <= names
    plugins = [path for path in (ROOT / "plugins").iterdir() if (path / "__init__.py").is_file()]
    assert {f"{path.name}/__init__.py" for path in plugins} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    strangers = {name.partition("/")[0] for name in names} - {"woqfx", *(path.name for path in plugins)}
    assert [name for name in strangers if not name.endswith(".dist-info")] == []


def test_the_wheel_holds_the_kernels_and_not_their_source(wheel):
    plugins = ("woqfx_native/", "woqfx_llm_runtime/")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(plugins)]
    for plugin in plugins:
        assert [name for name in names if name.startswith(f"{plugin}_core.") and not name.endswith(".pyi")]
    assert not [name for name in names if "csrc" in name or "CMake" in name]


def test_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = message_from_string(archive.read(name).decode())
    assert metadata["Name"] == "woqfx"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "woqfx quantize" in metadata.get_payload()
    lines = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    required = {re.split(r"[^\w-]", line)[0] for line in lines}
    assert {"click", "numpy", "pluggy", "rich", "torch", "transformers"} <= required


def test_it_is_the_wheels_own_code_that_runs(fresh):
    code = "import woqfx, woqfx_rtn; print(woqfx.__file__, woqfx_rtn.__file__)"
    files = run(fresh, "python", "-c", code).stdout.split()
    assert len(files) == 2
    assert all(Path(file).is_relative_to(fresh) for file in files)


def test_the_built_ins_come_from_the_wheel(fresh):
    plugins = json.loads(run(fresh, "woqfx", "plugins", "--json").stdout)["plugins"]
    assert {plugin["distribution"] for plugin in plugins} == {"woqfx"}
    assert not any(plugin["problems"] for plugin in plugins)
    assert sum(bool(plugin["provides"]) for plugin in plugins) >= 4


def test_a_model_from_folder_to_forward(fresh, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    made = run(fresh, "woqfx", "quantize", tmp_path / "model", "--dtype", "nf4", "--out", out)
    assert made.returncode == 0, made.stderr
    assert "4.50 bits per weight" in made.stdout
    assert run(fresh, "woqfx", "inspect", out, "--verify").returncode == 0
    code = f"import torch, woqfx; print(woqfx.load({str(out)!r})(torch.arange(3, 9)[None]).logits.shape)"
    assert run(fresh, "python", "-c", code).stdout.strip() == "torch.Size([1, 6, 128])"


KERNEL = """
import torch, woqfx
model = woqfx.quantize(torch.nn.Sequential(torch.nn.Linear(64, 32)), progress="none")
print(model[0].weight.kernel)
"""


def test_layers_run_in_native_kernels(fresh):
    assert run(fresh, "python", "-c", KERNEL).stdout.startswith("native ")


def test_the_source_distribution_is_the_tree_and_nothing_that_was_made_in_it(plain):
    (archive,) = plain.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    rooms = ("woqfx", "plugins", "tests", "docs", "benchmarks", "examples")
    sources = {
        str(path.relative_to(ROOT))
        for room in rooms
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    assert {name for name in names if name.partition("/")[0] in rooms} == sources
    assert {
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        "PKG-INFO",
        "README.md",
        "constraints.txt",
        "pyproject.toml",
    } <= names
    assert {name.partition("/")[0] for name in names}.isdisjoint({".venv", ".demo", ".hypothesis", "build", "dist"})


def test_without_a_compiler_it_installs_and_says_what_runs(plain, tmp_path):
    wheel = only_wheel(plain)
    assert wheel.name.endswith("py3-none-any.whl")
    environment = tmp_path / "plain"
    install(wheel, environment)
    assert run(environment, "python", "-c", KERNEL).stdout == "reference\n"
    tiny_model("llama").save_pretrained(tmp_path / "model")
    told = run(environment, "woqfx", "plan", tmp_path / "model", "--json")
    kernels = {layer["kernel"] for layer in json.loads(told.stdout)["layers"] if layer["scheme"]}
    assert kernels == {"reference"}


def test_a_skeleton_of_a_plugin_can_be_written(fresh, tmp_path):
    made = run(fresh, "woqfx", "new-plugin", "dtype", "int3", "--folder", tmp_path / "new")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "new" / "pyproject.toml").is_file()


def test_help_answers_at_once(fresh):
    # Half a second on an idle machine; on a busy one, no more than a few times what click alone takes there.
    assert seconds(fresh, "woqfx", "--help") < max(0.5, 4 * seconds(fresh, "python", "-c", "import click"))


def test_import_is_instant(fresh):
    baseline = seconds(fresh, "python", "-c", "import dataclasses, importlib.metadata")
    assert seconds(fresh, "python", "-c", "import woqfx") < max(0.2, 3 * baseline)


def test_import_takes_no_torch(fresh):
    code = "import sys, woqfx; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    assert run(fresh, "python", "-c", code).stdout.strip() == "set()"
