"""The report of a calibrated run as JSON. `docs/report.md` describes both files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from woqfx.disk import durable
from woqfx.disk.manifest import REPORT, as_json

#: Beside the checkpoint and not part of it: what differs from run to run.
TIMINGS = "woqfx-timings.json"
VERSION = 1


def blocks_of(facts: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The journal's records of blocks, in order."""
    return [one["block"] for one in facts if "block" in one]


def report_file(request: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """What is told of each block, as a file by its name; nothing if the algorithm looked at no data."""
    blocks = blocks_of(facts.values())
    if not blocks:
        return {}
    told = [{"name": block["name"], **block["facts"]} for block in blocks]
    return {REPORT: as_json({"woqfx_report": VERSION, "request": request, "blocks": told})}


def write_timings(work: Path, out: Path, blocks: Iterable[Mapping[str, Any]]) -> None:
    """Write how long each block took, in seconds, and the process's peak memory behind it, in bytes, into `out`.

    It is made in `work`, where what a killed run leaves behind is cleared. Raises `OutputError`.
    """
    times = [{key: block[key] for key in ("name", "seconds", "memory")} for block in blocks]
    if times:
        durable.write_file(work / TIMINGS, as_json({"woqfx_timings": VERSION, "blocks": times}))
        durable.replace(work / TIMINGS, out / TIMINGS)
    elif (out / TIMINGS).exists():  # those of an earlier checkpoint
        durable.remove(out / TIMINGS)
