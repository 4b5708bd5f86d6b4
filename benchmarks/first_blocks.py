"""Quantize the first blocks of a folder's model, and stop: `python -m benchmarks.first_blocks MODEL ALGORITHM OUT`.

Calibrated on 32 x 512 random tokens. Behind the first two blocks nothing new comes: each takes what the one before it
took, and lets go of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from woqfx import CalibrationRequest
from woqfx.calibration import prepare_calibration
from woqfx.engine import write_checkpoint
from woqfx.planning import make_plan
from woqfx.request import Request
from woqfx.source import open_source

SAMPLES, LENGTH = 32, 512


def main() -> None:
    """Quantize until so many blocks are done."""
    parser = argparse.ArgumentParser(description="Quantize the first blocks of a model.")
    parser.add_argument("model", type=Path)
    parser.add_argument("algorithm")
    parser.add_argument("out", type=Path)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--options", type=json.loads, default={}, help="of the algorithm, as a JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    words = json.loads((arguments.model / "config.json").read_text())["vocab_size"]
    rows = torch.randint(words, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))
    source = open_source(str(arguments.model))
    data = CalibrationRequest(rows, SAMPLES, LENGTH)
    request = Request.read(
        dtype="int4_fullrange", algorithm=arguments.algorithm, options=arguments.options, calibration=data
    )
    plan = make_plan(source, request)
    plan.check()
    steps = write_checkpoint(source, plan, arguments.out, calibration=prepare_calibration(data, source))
    done = 0
    while done < arguments.blocks:
        done += next(steps).block is not None
    steps.close()


if __name__ == "__main__":
    main()
