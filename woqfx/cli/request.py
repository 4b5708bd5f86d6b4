"""What `quantize` and `plan` share: the flags that say what to do to which weight.

The choices come from the plugins that are installed, and so do the algorithms' own flags.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from woqfx.cli import calibration, named, text
from woqfx.scheme import DEFAULT_DTYPE, SCALE_DTYPES

if TYPE_CHECKING:
    from woqfx.planned import Plan
    from woqfx.source import Source

Field: TypeAlias = "dataclasses.Field[Any]"

_OPTIONS = "woqfx.algorithm_options"

_SHARED = (
    click.Option(
        ["--algorithm"],
        default="rtn",
        show_default=True,
        metavar="NAME[+NAME...]",
        help="How weights land on their grid. Of several, as in awq+gptq, each may rescale blocks, the last that "
        "rounds rounds, and each may improve what came of it.",
    ),
    click.Option(
        ["--dtype"],
        default=DEFAULT_DTYPE,
        show_default=True,
        metavar="NAME",
        help="How a weight is stored. int8 loses next to nothing; of 4 bits, nf4 loses least without data. AWQ and "
        "GPTQ files hold integers only.",
    ),
    click.Option(
        ["--group-size"],
        default=32,
        show_default=True,
        metavar="N",
        help="How many weights of a row share a scale; -1 for the whole row. Smaller groups are more exact and take "
        "more room: at 32, 16-bit scales cost half a bit per weight.",
    ),
    click.Option(
        ["--sym/--asym", "symmetric"],
        default=True,
        show_default=True,
        help="Asymmetric groups have a zero point of their own: more exact where weights lean to one side. Integer "
        "dtypes only.",
    ),
    click.Option(
        ["--target-bits"],
        type=float,
        metavar="X",
        help="Give each layer a dtype and group size of its own, so that weights take X bits in the mean, scales "
        "included: more where calibration data show that it matters. Layers that a rule is about keep to the rule.",
    ),
    click.Option(
        ["--scale-dtype"],
        default="fp16",
        show_default=True,
        type=click.Choice(list(SCALE_DTYPES)),
        help="How scales are stored.",
    ),
    click.Option(
        ["--double-quant"],
        is_flag=True,
        help="Store the scales themselves in 8 bits, as QLoRA does: smaller, hardly less exact.",
    ),
    click.Option(
        ["--compute-dtype"],
        default="fp32",
        show_default=True,
        metavar="NAME",
        help="How layers are computed. The stored weights are the same.",
    ),
    click.Option(
        ["--outlier-threshold"],
        default=0.0,
        show_default=True,
        metavar="X",
        help="Activations of this magnitude and above stay out of the rounding of compute dtype int8 (LLM.int8(): 6).",
    ),
    click.Option(
        ["--backend"],
        default="torch_cpu",
        show_default=True,
        metavar="NAME",
        help="What will run the result.",
    ),
    click.Option(
        ["--rule", "rules"],
        multiple=True,
        metavar="PATTERN=WHAT",
        help="Treat the layers whose name matches otherwise. PATTERN is a glob (*.down_proj), or a regular expression "
        "after re:. WHAT is keep, a dtype, or changes such as group_size:128,symmetric:false. Repeatable; the last "
        "match wins.",
    ),
)


class _AlgorithmOption(click.Option):
    """A flag that stands for a field of the `Options` of one algorithm, or of several that agree on its type."""

    def __init__(self, flag: str, algorithm: str, field: Field) -> None:
        kind = type(field.default)
        self.key, self.kind, self.flag = field.name, kind, flag
        self.defaults: dict[str, Any] = {}
        self._meanings: dict[str, list[str]] = {}
        self.add(algorithm, field)
        super().__init__(
            [f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}", f"option_{flag.replace('-', '_')}"],
            # No default here, so that only what was given reaches the algorithm.
            default=None,
            type=kind,
            metavar=None if kind is bool else {int: "N", float: "X"}.get(kind, "TEXT"),
        )

    def add(self, algorithm: str, field: Field) -> None:
        """Have it stand for the option of one more algorithm."""
        self.defaults[algorithm] = field.default
        self._meanings.setdefault(field.metadata.get("help", ""), []).append(algorithm)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """What it means, to each algorithm if they differ, with every default."""
        said = [
            text if len(self._meanings) == 1 else f"Of {' and '.join(names)}: {text}"
            for text, names in self._meanings.items()
        ]
        defaults = {name: self._spelled(default) for name, default in self.defaults.items()}
        one = len(set(defaults.values())) == 1
        shown = next(iter(defaults.values())) if one else ", ".join(f"{d} for {name}" for name, d in defaults.items())
        self.help = f"{' '.join(said)}  [default: {shown}]"
        return super().get_help_record(ctx)

    def _spelled(self, default: Any) -> str:
        if isinstance(default, bool):
            return self.flag if default else f"no-{self.flag}"
        return str(default)


class RequestCommand(click.Command):
    """A command with the shared flags. Its callback gets the arguments of `Request.read` beside its own."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own parameters, the shared ones, and those of the algorithms."""
        *own, help_option = super().get_params(ctx)
        return [*own, *_SHARED, *calibration.FLAGS, named.FLAG, *self._algorithm_options(ctx), help_option]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Gather the algorithms' flags into the mapping `options`, and those about data into `calibration`."""
        rest = super().parse_args(ctx, args)
        given = ((option.key, ctx.params.pop(str(option.name), None)) for option in self._algorithm_options(ctx))
        ctx.params["calibration"] = calibration.gather(ctx.params)
        by_name = named.read_named(ctx.params.pop("named"))
        ctx.params["options"] = {key: value for key, value in given if value is not None} | by_name
        return rest

    def _algorithm_options(self, ctx: click.Context) -> list[_AlgorithmOption]:
        """The flags of all algorithms: made once for each run, since click tells parameters apart by identity.

        A flag that is taken already gets the algorithm's name in front.
        """
        if _OPTIONS not in ctx.meta:
            taken = {
                flag
                for param in (*self.params, *_SHARED, *calibration.FLAGS, named.FLAG)
                for flag in (*param.opts, *param.secondary_opts)
            }
            flags: dict[str, _AlgorithmOption] = {}
            for algorithm, field in _fields():
                flag = field.name.replace("_", "-")
                same = flags.get(flag)
                if same is not None and same.kind is type(field.default):
                    same.add(algorithm, field)
                    continue
                if same is not None or f"--{flag}" in taken:
                    flag = f"{algorithm}-{flag}".replace("_", "-")
                flags[flag] = _AlgorithmOption(flag, algorithm, field)
            ctx.meta[_OPTIONS] = list(flags.values())
        found: list[_AlgorithmOption] = ctx.meta[_OPTIONS]
        return found

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Flags by what they are for, then the names that they take."""
        own = [param for param in super().get_params(ctx) if isinstance(param, click.Option)]
        _section(ctx, formatter, "Options", own)
        _section(ctx, formatter, "What to do to the weights", _SHARED)
        _section(ctx, formatter, "Calibration data, for algorithms that look at data", calibration.FLAGS)
        by_owner: dict[str, list[click.Option]] = {}
        for option in self._algorithm_options(ctx):
            by_owner.setdefault(" and ".join(option.defaults), []).append(option)
        for owner, options in by_owner.items():
            _section(ctx, formatter, f"Options of the algorithm {owner}", options)
        _section(ctx, formatter, "Options of algorithms, by their whole name", [named.FLAG])
        for title, kind in _CHOICES.items():
            _choices(formatter, title, kind)


def planned(source: Source, request: dict[str, Any], workers: int = 1) -> Plan:
    """The plan for what a `RequestCommand` was asked; with --target-bits, layers are measured, which a bar shows."""
    from woqfx.mixed.mixing import plan_within
    from woqfx.request import Request

    target_bits = request.pop("target_bits")
    with text.bar("planning" if target_bits is None else "measuring the layers") as advance:
        return plan_within(source, Request.read(**request), target_bits, workers=workers, report=advance)


#: What is said while a model's headers are read, which takes as long as importing transformers.
READING = "reading the model's headers"

_CHOICES = {
    "Names for --dtype": "dtype",
    "Names for --algorithm": "algorithm",
    "Names for --compute-dtype": "compute dtype",
    "Names for --backend": "backend",
    "Names for --calibration": "calibration set",
}


def _fields() -> Iterator[tuple[str, Field]]:
    from woqfx.plugins import registry

    for name in registry().names("algorithm"):
        for field in dataclasses.fields(registry().algorithm(name).Options):
            yield name, field


def _section(ctx: click.Context, formatter: click.HelpFormatter, title: str, options: Sequence[click.Option]) -> None:
    records = [record for option in options if (record := option.get_help_record(ctx))]
    if records:
        with formatter.section(title):
            formatter.write_dl(records)


def _choices(formatter: click.HelpFormatter, title: str, kind: str) -> None:
    from woqfx.plugins import registry

    found = [(name, _first_sentence(registry().get(kind, name))) for name in registry().names(kind)]
    if found:
        with formatter.section(title):
            formatter.write_dl(found)


def _first_sentence(thing: Any) -> str:
    """What its author's docstring says first; its contract's own would say nothing about it."""
    kind = thing if isinstance(thing, type) else type(thing)
    text = " ".join((vars(kind).get("__doc__") or "").split())
    sentence, stop, _ = text.partition(". ")
    return sentence + stop.strip()
