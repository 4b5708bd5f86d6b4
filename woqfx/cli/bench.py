"""`woqfx bench`: how fast linear layers, or a whole model, run here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from woqfx.cli import bench_model, text
from woqfx.cli.failures import warn
from woqfx.cli.running import RunCommand, Running

if TYPE_CHECKING:
    from woqfx.backend import Backend
    from woqfx.bench import Contender, Figure


def _shape(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    """Read `4096x11008`."""
    n, _, k = value.lower().partition("x")
    if not (n.isdecimal() and k.isdecimal() and int(n) and int(k)):
        raise click.BadParameter(f"{value!r} is no shape: write out_features x in_features, as in 4096x11008")
    return int(n), int(k)


@click.command(
    "bench",
    cls=RunCommand,
    short_help="Measure how fast layers run here, and how fast they could, or a whole model.",
    epilog="""\b
Examples:
  woqfx bench
  woqfx bench out/ --backend llm_runtime --prompt 512 --new 128
  woqfx bench out/ --backend llm_runtime --against model.gguf
  woqfx bench --dtype nf4 --dtype int4_clip --compute-dtype int8 --rows 1
  woqfx bench --shape 11008x4096 --group-size 32 --group-size 128 --no-peers
  woqfx bench --json > here.json

\b
Reading the table:
  rows      1 is a token at a time, as in generating; 128 is a prompt
  share     of the least time that this machine allows: 100 % cannot be beaten
  limit     which limit that is. memory: every stored byte is read once.
            arithmetic: two operations for each weight and row.
Others' kernels that are installed (PyTorch's own, bitsandbytes) take turns with woqfx's. Times are
medians of single calls. Weights rotate among copies that no cache holds together, as a model's
layers do. Nothing else should run meanwhile: a browser is enough to spoil it.
""",
)
@click.argument("folder", required=False)
@click.option(
    "--dtype", "dtypes", multiple=True, metavar="NAME", help="How weights are stored.  [default: every dtype]"
)
@click.option(
    "--compute-dtype", "compute_dtypes", multiple=True, metavar="NAME", help="How layers are computed.  [default: all]"
)
@click.option(
    "--group-size",
    "group_sizes",
    multiple=True,
    type=int,
    default=(32,),
    show_default=True,
    metavar="N",
    help="How many weights of a row share a scale; -1 for the whole row.",
)
@click.option(
    "--rows",
    multiple=True,
    type=click.IntRange(min=1),
    default=(1, 8, 128),
    show_default=True,
    metavar="M",
    help="How many rows of activations are multiplied at once.",
)
@click.option(
    "--shape",
    callback=_shape,
    default="4096x4096",
    show_default=True,
    metavar="NxK",
    help="The weight: out_features x in_features.",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="T", help="How many threads.  [default: PyTorch's]")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=0.2,
    show_default=True,
    metavar="S",
    help="How long each line of the table is measured. Longer is steadier.",
)
@click.option("--peers/--no-peers", default=True, show_default=True, help="Others' kernels beside woqfx's.")
@click.option(
    "--prompt", default=512, show_default=True, type=click.IntRange(min=1), metavar="N", help="Of a model: tokens read."
)
@click.option(
    "--new", default=128, show_default=True, type=click.IntRange(min=1), metavar="N", help="Of a model: tokens made."
)
@click.option(
    "--against", metavar="GGUF", help="Of a model: let llama.cpp take turns with it (needs llama-cpp-python)."
)
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON object.")
def command(
    folder: str | None, backend: Running, prompt: int, new: int, against: str | None, as_json: bool, **options: Any
) -> None:
    """Measure linear layers with random weights: every dtype in every compute dtype, from one row to many.

    With FOLDER, measure the model in that checkpoint instead: how fast it reads a prompt, and generates.

    What this machine can do at most is measured in between: how fast memory is read, and how many operations a second
    each kind of arithmetic does. Each result is then given as its share of that. --dtype, --compute-dtype,
    --group-size and --rows can be given several times.
    """
    if folder is not None:
        bench_model.show(folder, backend, options["threads"], prompt, new, against, as_json=as_json)
        return
    if backend.options:
        raise click.UsageError("--backend-option is about a whole model: give its FOLDER")
    report = _measure(backend=backend.name, **options)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=1))
    else:
        _show(report)


@dataclass
class _Report:
    threads: int
    figures: list[Figure] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        from woqfx.cpu import this_cpu

        cpu = this_cpu()
        return {
            "machine": {"processor": cpu.model, "features": sorted(cpu.features), "threads": self.threads},
            "figures": [figure.to_json() for figure in self.figures],
            "refused": [{"what": what, "why": why} for what, why in self.refused],
        }


def _measure(
    dtypes: Sequence[str],
    compute_dtypes: Sequence[str],
    group_sizes: Sequence[int],
    rows: Sequence[int],
    shape: tuple[int, int],
    backend: str,
    threads: int | None,
    seconds: float,
    peers: bool,
) -> _Report:
    import torch

    from woqfx import bench, memory
    from woqfx.plugins import registry

    running, threads = registry().backend(backend), threads or torch.get_num_threads()
    report = _Report(threads)
    with memory.threads(threads), _saying() as say:
        for compute_dtype in compute_dtypes or registry().names("compute dtype"):
            for group_size in group_sizes:
                say(f"packing weights for {compute_dtype}, group {group_size}")
                chosen = dtypes or registry().names("dtype")
                contenders = [*_contenders(running, chosen, compute_dtype, group_size, shape, peers, report)]
                for count in rows:
                    say(f"{compute_dtype}, group {group_size}, {count} rows: {len(contenders)} in turn")
                    limits = partial(running.roofline, threads)
                    report.figures += bench.measure(contenders, shape, count, seconds, limits)
    return report


def _contenders(
    backend: Backend,
    dtypes: Sequence[str],
    compute_dtype: str,
    group_size: int,
    shape: tuple[int, int],
    peers: bool,
    report: _Report,
) -> Iterator[Contender]:
    from woqfx import bench, bench_peers
    from woqfx.scheme import Scheme

    weight = bench.random_weight(shape)
    schemes = [Scheme(dtype, group_size=group_size, compute_dtype=compute_dtype) for dtype in dtypes]
    refused = list[tuple[Scheme, str]]()
    yield from bench.contenders(backend, weight, schemes, refused)
    report.refused += [(text.scheme(scheme), why) for scheme, why in refused]
    if peers:
        yield from bench_peers.contenders(weight, compute_dtype, group_size, report.refused)


@contextmanager
def _saying() -> Iterator[Any]:
    """What is being measured, on a terminal; gone at the end."""
    if not sys.stderr.isatty():
        yield lambda what: None
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False).status("") as status:
        yield status.update


def _show(report: _Report) -> None:
    out = text.console()
    if report.figures:
        text.facts(out, _facts(report))
        out.print()
        _table(report.figures).show(out)
    for what, why in report.refused:
        warn(f"{what} was not measured: {why}")


def _facts(report: _Report) -> dict[str, str]:
    from woqfx.cpu import this_cpu
    from woqfx.roofline import Roofline

    limits = Roofline.middle([figure.limits for figure in report.figures])
    peaks = ", ".join(f"{name} {peak / 1e9:.0f}" for name, peak in limits.peaks.items())
    return {
        "processor": f"{this_cpu().model}, {report.threads} thread{'s' * (report.threads > 1)}",
        "memory": f"{limits.read_bandwidth / 1e9:.1f} GB/s read",
        "arithmetic": f"{peaks} G operations/s",
        "measured by": limits.how,
    }


def _table(figures: Sequence[Figure]) -> text.Grid:
    columns = ("computed in", "group", "rows", "stored as", "by", "time", "GB/s", "Gop/s", "share", "limit", "kernel")
    numbers = ("group", "rows", "time", "GB/s", "Gop/s", "share")
    table = text.Grid(*columns, numbers=numbers, expendable=("kernel", "Gop/s", "GB/s"))
    for one in figures:
        table.add(
            one.compute_dtype,
            str(one.group_size),
            str(one.rows),
            one.dtype,
            one.name,
            _time(one.seconds),
            f"{one.nbytes / one.seconds / 1e9:.1f}",
            f"{one.operations / one.seconds / 1e9:.0f}",
            f"{one.share:.0%}",
            one.bound,
            one.kernel,
            style="" if one.name == "woqfx" else "dim",
        )
    return table


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
