"""llama.cpp, as llama-cpp-python builds it from its source distribution, in an environment of its own.

    python -m benchmarks.peers.llama_cpp_setup [CACHE]

makes the environment (a quarter of an hour with one compiler at a time; needs cmake and a C++ compiler).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cache import default_cache

VERSION = "0.3.36"
QUANTIZE = Path(__file__).with_name("llama_cpp_quantize.py")


def environment(cache: Path) -> Path:
    """Make the environment if it is not there; returns its Python."""
    folder = cache / "llama_cpp"
    python = folder / "bin" / "python"
    if _installed(python):
        return python
    print(f"building llama-cpp-python {VERSION} in {folder}: this takes a while", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    package = "llama-cpp-python"
    command = ["nice", "-n", "19", str(python), "-m", "pip", "install", "--quiet"]
    command += ["--no-binary", package, f"{package}=={VERSION}"]
    subprocess.run(command, check=True, env={"CMAKE_BUILD_PARALLEL_LEVEL": "1", **os.environ})
    return python


def _installed(python: Path) -> bool:
    if not python.exists():
        return False
    wanted = f"import llama_cpp; assert llama_cpp.__version__ == {VERSION!r}"
    return subprocess.run([str(python), "-c", wanted], capture_output=True, check=False).returncode == 0


def command(python: Path, model: Path, out: Path, *, threads: int, keep_embeddings: bool) -> Sequence[str]:
    """The command that quantizes a GGUF file to Q4_0; `keep_embeddings` leaves embeddings and head as they are."""
    flags = ["--keep-embeddings"] if keep_embeddings else []
    return [str(python), str(QUANTIZE), str(model), str(out), f"--threads={threads}", *flags]


def main() -> None:
    """Make the environment in the cache folder that the command line names."""
    parser = argparse.ArgumentParser(description="Build llama-cpp-python in an environment of its own.")
    parser.add_argument("cache", nargs="?", type=Path, default=default_cache(), help="where (default: %(default)s)")
    print(environment(parser.parse_args().cache))


if __name__ == "__main__":
    main()
