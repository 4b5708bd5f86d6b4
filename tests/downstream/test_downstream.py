"""A stranger's package: its wheel beside woqfx's in a fresh environment, used from the command line and from Python.

The environment sees this one's torch and transformers through a path file, which, unlike a site folder, does
not run the path files beside them: an editable woqfx stays out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from typing import TYPE_CHECKING

import pytest
from once import once
from tiny_models import tiny_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command away from the source tree, without this process's Python settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "WOQFX_", "PIP_"))}
    environment = {**kept, "PYTHONNOUSERSITE": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **variables}
    return subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True)


def must(*command: object, cwd: Path, **variables: str) -> str:
    """The same, of a command that must succeed; its standard output."""
    done = run(*command, cwd=cwd, **variables)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """An empty folder, which holds the models."""
    return tmp_path_factory.mktemp("downstream")


@pytest.fixture(scope="module")
def binaries(tmp_path_factory, request, wheel) -> Path:
    """The `bin` of a fresh environment with both wheels."""
    sources = request.config.rootpath / "tests" / "downstream" / "woqfx-sample"

    def make(folder: Path) -> None:
        sample = shutil.copytree(sources, folder / "woqfx-sample")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        must(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder / "wheels", sample, cwd=folder)
        must(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
        (stranger,) = (folder / "wheels").glob("woqfx_sample-*.whl")
        python = folder / "env" / "bin" / "python"
        must(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, stranger, cwd=folder)
        (site,) = (folder / "env" / "lib").glob("python*/site-packages")
        (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")

    return once(tmp_path_factory, "downstream", make) / "env" / "bin"


@pytest.fixture(scope="module")
def model(place) -> Path:
    """A tiny llama with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tiny_model("llama", vocab_size=259).save_pretrained(place / "llama")
    letters = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(place / "llama")
    return place / "llama"


@pytest.fixture(scope="module")
def checkpoint(place, binaries, model) -> Path:
    """The model, quantized from the command line with the sample's dtype and algorithm."""
    woqfx = binaries / "woqfx"
    options = ["--dtype", "sample_int3", "--algorithm", "least_squares", "--steps", "3", "--rule", "*.mlp.*=laplace16"]
    must(woqfx, "quantize", model, *options, "--backend", "sample_numpy", "--out", place / "out", "-q", cwd=place)
    return place / "out"


def test_it_is_the_wheel_that_runs(place, binaries):
    program = (
        "import woqfx, woqfx_rtn, woqfx_sample, torch; print(woqfx.__file__, woqfx_rtn.__file__, woqfx_sample.__file__)"
    )
    for path in must(binaries / "python", "-c", program, cwd=place).split():
        assert path.startswith(str(binaries.parent))


def test_the_wheel_has_the_templates(place, binaries):
    must(binaries / "woqfx", "new-plugin", "dtype", "mine", "--folder", place / "mine", cwd=place)
    assert (place / "mine" / "woqfx_mine" / "grid.py").is_file()


def test_plugins_lists_it(place, binaries):
    listed = json.dumps(json.loads(must(binaries / "woqfx", "plugins", "--json", cwd=place)))
    for word in (
        "woqfx-sample",
        "1.2.3",
        "sample_int3",
        "laplace16",
        "least_squares",
        "sample_numpy",
        "woqfx_backends",
    ):
        assert word in listed


def test_it_passes_woqfx_s_suites_from_the_wheels(binaries):
    tests = binaries.parents[1] / "woqfx-sample" / "tests"
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", tests)
    output = must(binaries / "python", *command, cwd=tests, WOQFX_STRICT_PLUGINS="1")
    assert " passed" in output and "failed" not in output


def test_command_line(place, binaries, checkpoint):
    plan = must(binaries / "woqfx", "plan", place / "llama", "--dtype", "sample_int3", cwd=place)
    assert "sample_int3" in plan
    inspected = must(binaries / "woqfx", "inspect", checkpoint, "--backend", "sample_numpy", cwd=place)
    assert all(word in inspected for word in ("sample_int3", "laplace16", "numpy rows"))
    generate = (binaries / "woqfx", "generate", checkpoint, "-p", "Hello", "--max-new-tokens", "6", "-q")
    assert must(*generate, "--backend", "sample_numpy", cwd=place) == must(*generate, cwd=place)


def test_python(place, binaries, checkpoint):
    program = """
import filecmp
import torch
import woqfx

request = dict(dtype="sample_int3", algorithm="least_squares", options={"steps": 3}, rules=["*.mlp.*=laplace16"],
               backend="sample_numpy", progress="none")
model = woqfx.quantize("llama", **request, out="from-python")
assert filecmp.cmpfiles("out", "from-python", ["model.safetensors"], shallow=False)[0] == ["model.safetensors"]

weight = model.model.layers[0].mlp.down_proj.weight
assert (weight.scheme.dtype, weight.kernel) == ("laplace16", "numpy rows")
ids = torch.tensor([[1, 75, 104]])
loaded = woqfx.load("out", backend="sample_numpy")
assert torch.equal(loaded(ids).logits, model(ids).logits)
assert loaded.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False).shape == (1, 8)

woqfx.save(loaded, "again")
assert filecmp.cmpfiles("out", "again", ["model.safetensors"], shallow=False)[0] == ["model.safetensors"]
torch.testing.assert_close(woqfx.load("again")(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
"""
    must(binaries / "python", "-c", program, cwd=place)


def test_a_refusal_names_the_reason_and_the_remedy(place, binaries, model):
    options = ("--backend", "sample_numpy", "--compute-dtype", "int8", "--out", place / "never")
    refused = run(binaries / "woqfx", "quantize", model, *options, cwd=place)
    assert refused.returncode != 0
    assert "NumPy has no arithmetic for compute dtype int8" in refused.stderr.replace("\n", " ")
    assert not (place / "never").exists()


def test_without_the_package_its_checkpoint_says_what_is_missing(place, binaries, checkpoint):
    command = (binaries / "woqfx", "generate", checkpoint, "-p", "Hello")
    refused = run(*command, cwd=place, WOQFX_PLUGINS="no:woqfx_sample")
    assert refused.returncode != 0
    message = " ".join(refused.stderr.split())
    assert "there is no dtype 'laplace16'" in message or "there is no dtype 'sample_int3'" in message
    assert "plugin 'woqfx_sample' of woqfx-sample 1.2.3, which is blocked by WOQFX_PLUGINS=no:woqfx_sample" in message
    assert "Traceback" not in refused.stderr
