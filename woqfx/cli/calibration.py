"""The flags that say what data an algorithm looks at."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from woqfx.calibration import CalibrationRequest

FLAGS = (
    click.Option(
        ["--calibration"],
        default="python-docs",
        show_default=True,
        metavar="DATA",
        help="The name of a set; a file (.txt, .jsonl, .json, .csv, .parquet) of texts or conversations; or a set on "
        "the Hugging Face Hub (organisation/name).",
    ),
    click.Option(["--samples"], default=128, show_default=True, metavar="N", help="How many sequences of it."),
    click.Option(["--seq-len"], default=512, show_default=True, metavar="N", help="Tokens of each sequence."),
    click.Option(
        ["--calibration-seed"], default=0, show_default=True, metavar="N", help="Which texts are taken, if not all are."
    ),
    click.Option(["--column"], metavar="NAME", help="Where the texts are in a table.  [default: text, messages, ...]"),
    click.Option(["--split"], metavar="NAME", help="The part of a set on the Hub.  [default: train]"),
    click.Option(
        ["--propagate"],
        type=click.Choice(["quantized", "float"]),
        default="quantized",
        show_default=True,
        help="What each block sees: what the blocks before it give once they are quantized, or what they gave before.",
    ),
)


def gather(params: MutableMapping[str, Any]) -> CalibrationRequest:
    """Take the flags out of `params`, all but --propagate. Raises `CalibrationError`."""
    from woqfx.calibration import CalibrationRequest

    return CalibrationRequest(
        params.pop("calibration"),
        samples=params.pop("samples"),
        seq_len=params.pop("seq_len"),
        seed=params.pop("calibration_seed"),
        column=params.pop("column"),
        split=params.pop("split"),
    )
