"""The workers of `benchmarks.kernels`: which module runs in which environment.

    python -m benchmarks.peers.kernel_peers [CACHE]

makes the environments (6 GB: ITREX's PyTorch brings CUDA). All are pinned to the releases that were measured.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.cache import default_cache
from benchmarks.peers.environment import environment

ROOT = Path(__file__).parents[2]

#: pip's command lines for each peer that is not in woqfx's own environment.
INSTALLS = {
    "onnxruntime": [["onnxruntime==1.31.1", "onnx==1.23.2", "numpy==2.4.6"]],
    "openvino": [["openvino==2026.4.1", "numpy==2.4.6"]],
    # Its kernels need PyTorch 2.3 and nothing else of what it declares.
    "itrex": [["torch==2.3.0", "numpy<2"], ["--no-deps", "intel-extension-for-transformers==1.4.2"]],
    "auto_round": [["torch==2.13.0", "numpy==2.4.6", "auto-round-lib==0.16.0"]],
}
#: In woqfx's own environment: woqfx itself, and what is installed beside it.
OWN = ("woqfx", "torch")


class Peer:
    """A worker process. Between requests it is stopped, since the threads of some libraries wait by spinning."""

    def __init__(self, module: str, python: Path, threads: int) -> None:
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "WOQFX_NUM_THREADS"), str(threads))
        self.module = module
        self._process = subprocess.Popen(
            [str(python), "-m", f"benchmarks.peers.kernels_{module}", f"--threads={threads}"],
            cwd=ROOT,
            env={**os.environ, **variables, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.kernels: list[tuple[str, str, str]] = [tuple(one) for one in self.ask("list")["kernels"]]

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Its answer to a request (see `kernel_worker`). Raises `RuntimeError` if it ended instead."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the worker for {self.module} ended with {self._process.wait()} when asked to {do}")
        self._process.send_signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def python_of(module: str, cache: Path) -> Path:
    """The Python that runs a peer's module, in an environment that is made if need be."""
    return Path(sys.executable) if module in OWN else environment(cache / "peers" / module, *INSTALLS[module])


def main() -> None:
    """Make the environments in the cache folder that the command line names."""
    parser = argparse.ArgumentParser(description="Make the environments of the peers whose kernels are measured.")
    parser.add_argument("cache", nargs="?", type=Path, default=default_cache(), help="where (default: %(default)s)")
    cache = parser.parse_args().cache
    for module in INSTALLS:
        print(python_of(module, cache))


if __name__ == "__main__":
    main()
