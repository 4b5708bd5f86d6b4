"""The stages of `woqfx quantize` before the first weight, timed, as JSON: `python -m benchmarks.stages MODEL`."""

from __future__ import annotations

import json
import sys
import time


def main(model: str) -> None:
    """Print the seconds of each stage."""
    # Imports are among the stages: each stands where its time begins.
    marks = {"": time.perf_counter()}
    from woqfx.cli import collect_less_garbage

    collect_less_garbage()  # as the command does
    marks["command line"] = time.perf_counter()
    import torch  # noqa: F401

    marks["torch"] = time.perf_counter()
    import transformers  # noqa: F401

    marks["transformers"] = time.perf_counter()
    from woqfx.planning import make_plan
    from woqfx.request import Request
    from woqfx.source import open_source

    marks["woqfx"] = time.perf_counter()
    source = open_source(model)
    marks["source"] = time.perf_counter()
    make_plan(source, Request.read(dtype="int4_clip")).check()
    marks["plan"] = time.perf_counter()
    names, times = list(marks)[1:], list(marks.values())
    print(json.dumps({name: after - before for name, before, after in zip(names, times, times[1:], strict=False)}))


if __name__ == "__main__":
    main(sys.argv[1])
