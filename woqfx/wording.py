"""How numbers and schemes are written for people, and which name they may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from woqfx.scheme import Scheme


def size(count: float) -> str:
    """Bytes for people: `98.4 MB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} bytes"


def count(number: int) -> str:
    """Weights for people: `134.5 M`."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return str(number)


def duration(seconds: float) -> str:
    """Time for people: `2.3 s`, `4 min 10 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def nearest(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """The names that somebody who wrote `name` may have meant: those that it begins, or else those spelt alike."""
    known = list(known)
    longer = [one for one in known if name and one.startswith(name)]
    return (longer or difflib.get_close_matches(name, known, most))[:most]


def scheme(what: Scheme | None) -> str:
    """A scheme in a few words: what is as usual is not said."""
    if what is None:
        return "kept"
    words = [what.dtype, "per row" if what.group_size == -1 else f"group {what.group_size}"]
    words += [] if what.symmetric else ["asym"]
    words += ["double-quant"] if what.double_quant else [] if what.scale_dtype == "fp16" else [what.scale_dtype]
    words += [] if what.compute_dtype == "fp32" else [f"in {what.compute_dtype}"]
    words += [f"outliers from {what.outlier_threshold:g}"] if what.outlier_threshold else []
    return " ".join(words)
