"""Real distributions in a folder: what pip would leave there, without pip."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: A plugin's module with one good 2-bit dtype. `$NAME` is the dtype's name.
GOOD_DTYPE = """
    import woqfx

    @woqfx.hookimpl
    def woqfx_dtypes():
        class Grid(woqfx.IntegerGrid):
            name = "$NAME"
            bits = 2
        return [Grid()]
"""


def good_dtype(name: str) -> str:
    """The source of a module that provides the 2-bit dtype `name`."""
    return GOOD_DTYPE.replace("$NAME", name)


def install(
    site: Path, name: str, source: str | None, *, points: str = "", version: str = "1.0", metadata: bool = True
) -> str:
    """Put the distribution `name` into `site`: its metadata, and a module of `source` (none if None).

    `points` are lines of the entry-point group `woqfx`; by default one, of the distribution's name, for the
    module. Returns the module's name.
    """
    module = name.replace("-", "_")
    if source is not None:
        (site / f"{module}.py").write_text(textwrap.dedent(source))
    info = site / f"{module}-{version}.dist-info"
    info.mkdir()
    if metadata:
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[woqfx]\n{points or f'{module} = {module}'}\n")
    return module
