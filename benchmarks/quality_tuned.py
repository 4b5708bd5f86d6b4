"""Quantize, and tune what came of it: `python -m benchmarks.quality_tuned FOLDER DTYPE ALGORITHM [FLAG...]`.

FOLDER is that of `benchmarks.quality_model`; the result is `out` in it. Flags are those of `woqfx tune`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.quality_model import LENGTH, SAMPLES

DATA = ["--samples", str(SAMPLES), "--seq-len", str(LENGTH)]
#: What a checkpoint was quantized by can teach it little more, and cannot judge it.
OTHERS = ["--calibration-seed", "1"]


def main() -> None:
    """Both steps, each on sequences of its own."""
    parser = argparse.ArgumentParser(description="Quantize the benchmark's model, and tune it.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("dtype")
    parser.add_argument("algorithm")
    arguments, flags = parser.parse_known_args()
    woqfx = str(Path(sys.executable).with_name("woqfx"))
    model, untuned, out = (arguments.folder / name for name in ("model", "untuned", "out"))
    request = ["--algorithm", arguments.algorithm, "--dtype", arguments.dtype, "--group-size", "32", *DATA]
    made = [woqfx, "quantize", str(model), *request, "--out", str(untuned), "--overwrite", "--progress", "none"]
    subprocess.run(made, check=True)
    tuned = [woqfx, "tune", str(untuned), "--original", str(model), "--out", str(out), *DATA, *OTHERS, *flags]
    subprocess.run(tuned, check=True)
    shutil.rmtree(untuned)


if __name__ == "__main__":
    main()
