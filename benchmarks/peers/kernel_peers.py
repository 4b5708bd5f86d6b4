"""The workers of `benchmarks.kernels`: which module runs in which environment.

    python -m benchmarks.peers.kernel_peers [CACHE]

makes the environments (6 GB: ITREX's PyTorch brings CUDA). All are pinned to the releases that were measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.cache import default_cache
from benchmarks.peers.asked import Asked
from benchmarks.peers.environment import environment

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


class Peer(Asked):
    """The worker of a peer's kernels."""

    def __init__(self, module: str, python: Path, threads: int) -> None:
        super().__init__(python, f"benchmarks.peers.kernels_{module}", threads=threads)
        self.kernels: list[tuple[str, str, str]] = [tuple(one) for one in self.ask("list")["kernels"]]


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
