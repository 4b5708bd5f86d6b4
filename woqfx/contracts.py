"""What the registry checks of everything that a plugin provides, before anyone can use it."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import itertools
import re
from typing import TYPE_CHECKING, Any

import torch

from woqfx.accelerator import Accelerator
from woqfx.algorithm import Algorithm
from woqfx.backend import Backend, Support
from woqfx.calibration.contract import CalibrationSet
from woqfx.compute import ComputeDType
from woqfx.cpu import this_cpu
from woqfx.dtype import Codebook, DType, IntegerGrid
from woqfx.errors import SettingError
from woqfx.format import Format
from woqfx.nearest import quantize_nearest, round_rows
from woqfx.qtensor import QTensor
from woqfx.quality import square_sums
from woqfx.scheme import Scheme

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
#: The types of option that the command line can read.
_OPTION_TYPES = (bool, int, float, str)


def fault_of(kind: str, thing: Any) -> str:
    """Why `thing` cannot serve as a `kind`, or an empty string. A `SettingError` is not its fault and goes through."""
    contract, check = _CHECKS[kind]
    try:
        return _form_fault(kind, contract, thing) or check(thing)
    except SettingError:
        raise
    except (Exception, SystemExit) as error:
        return f"{getattr(thing, 'name', kind)}: {type(error).__name__} when it was tried: {error}"


def doubts_of(thing: Any) -> list[str]:
    """Names of its own that nobody asks for, each spelt nearly like one that it leaves as it is."""
    lineage = inspect.getmro(thing if inspect.isclass(thing) else type(thing))
    own_classes = list(itertools.takewhile(lambda base: base.__module__.partition(".")[0] != "woqfx", lineage))
    own = {name for base in own_classes for name in vars(base) if not name.startswith("_")}
    known = {name for name in dir(lineage[len(own_classes)]) if not name.startswith("_")}
    return [
        f"{thing.name} has {name!r}, which woqfx does not know: did you mean {meant!r}? (If not: '_{name}'.)"
        for name in sorted(own - known)
        for meant in difflib.get_close_matches(name, known - own, 1, cutoff=0.8)
    ]


def _form_fault(kind: str, contract: type[Any], thing: Any) -> str:
    a_class = inspect.isclass(thing)
    if not (issubclass(thing, contract) if a_class else isinstance(thing, contract)):
        return f"{thing!r} is not a woqfx.{contract.__name__}"
    if a_class != (kind == "algorithm"):
        given, wanted = ("is a class", "an instance") if a_class else ("is an instance", "the class")
        return f"{thing.__name__ if a_class else type(thing).__name__} {given}: a plugin gives {wanted}"
    name = getattr(thing, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return f"its name {name!r} is not lower-case letters, digits, '_', '.' or '-', beginning with a letter"
    return ""


def _dtype_fault(dtype: DType) -> str:
    if type(dtype.bits) is not int or not 1 <= dtype.bits <= 8:
        return f"{dtype.name}: bits is {dtype.bits!r}, not 1 to 8"
    if not isinstance(dtype, (IntegerGrid, Codebook)):
        return f"{dtype.name} is neither a woqfx.IntegerGrid nor a woqfx.Codebook, so no kernel could run it"
    if isinstance(dtype, IntegerGrid) and dtype.bits == 1 and not dtype.full_range:
        return (
            f"{dtype.name}: a symmetric grid of 1 bit has no step between -0 and 0: set full_range, or use a Codebook"
        )
    levels = dtype.levels
    if levels is not None:
        if not 2 <= len(levels) <= 2**dtype.bits:
            return f"{dtype.name}: {len(levels)} levels, where {dtype.bits} bits hold 2 to {2**dtype.bits}"
        if not bool(torch.isfinite(levels).all()) or float(levels.abs().max()) == 0:
            return f"{dtype.name}: levels must be finite and not all 0"
    return next((f"{dtype.name}: {fault}" for fault in _grid_faults(dtype, levels)), "")


def _grid_faults(dtype: DType, levels: torch.Tensor | None) -> Iterator[str]:
    """Try the three steps on a ramp, a group of zeros among its groups. Kernels know only the table or the steps."""
    ramp = torch.cat((torch.linspace(-1, 1, 96).view(4, 24), torch.zeros(1, 24)))
    codes_held = 2**dtype.bits if levels is None else len(levels)
    for symmetric in (True, False) if dtype.has_asymmetric else (True,):
        params = dtype.fit(ramp, symmetric=symmetric)
        if params.scale.shape != ramp.shape[:-1] or not bool(
            (torch.isfinite(params.scale) & (params.scale != 0)).all()
        ):
            yield f"fit gives scales {params.scale.tolist()} for {len(ramp)} groups"
        if (params.zero is None) != symmetric:
            yield f"fit gives {'no' if params.zero is None else 'a'} zero point where symmetric is {symmetric}"
        codes = dtype.encode(ramp, params)
        if codes.dtype != torch.uint8 or codes.shape != ramp.shape:
            yield f"encode gives {codes.dtype} {list(codes.shape)}, not uint8 {list(ramp.shape)}"
        if int(codes.max()) >= codes_held:
            yield f"encode gives code {int(codes.max())}, where {dtype.bits} bits hold {codes_held} codes"
        decoded = dtype.decode(codes, params)
        steps = codes.float() - (2 ** (dtype.bits - 1) if params.zero is None else params.zero.unsqueeze(-1))
        kernel = (steps if levels is None else levels[codes.int()]) * params.scale.unsqueeze(-1)
        if decoded.dtype != torch.float32 or not torch.equal(decoded, kernel):
            yield "decode is not " + ("(code - zero) * scale" if levels is None else "levels[code] * scale")
        if float((decoded - ramp).abs().max()) > 2:
            yield "decode does not give back what encode took"


def _compute_fault(compute: ComputeDType) -> str:
    weight = torch.linspace(-1, 1, 80).view(4, 20)
    grid = _Probe()
    q = quantize_nearest(weight, grid, Scheme(grid.name, group_size=8, compute_dtype=compute.name), name="probe")
    x = torch.linspace(-2, 2, 40, dtype=torch.bfloat16).view(1, 2, 20)
    y = compute.matmul(x, q, torch.ones(4))
    if y.dtype != x.dtype or y.shape != (1, 2, 4):
        return f"{compute.name}: matmul gives {y.dtype} {list(y.shape)} for x {x.dtype} {list(x.shape)} and W [4, 20]"
    exact = x.double() @ weight.double().T + 1
    if not float((y.double() - exact).norm() / exact.norm()) < 0.5:
        return f"{compute.name}: matmul is far from x @ W.T + bias"
    return ""


def _algorithm_fault(algorithm: type[Algorithm]) -> str:
    options = algorithm.Options
    if not dataclasses.is_dataclass(options) or not options.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return f"{algorithm.name}: Options must be a frozen dataclass, not {options!r}"
    for field in dataclasses.fields(options):
        if field.default is dataclasses.MISSING:
            return f"{algorithm.name}: option {field.name} has no default"
        if type(field.default) not in _OPTION_TYPES:
            return f"{algorithm.name}: option {field.name} is {field.default!r}, not a bool, int, float or str"
    algorithm()
    return _uncalled(algorithm)


def _uncalled(algorithm: type[Algorithm]) -> str:
    """Why nothing that it has would ever be called, so that it would silently be round to nearest."""

    def own(name: str) -> bool:
        return getattr(algorithm, name) is not getattr(Algorithm, name)

    name, blockwise = algorithm.name, [step for step in ("transform", "refine") if own(step)]
    if not own("round") and not blockwise:
        strange = [key for key, value in vars(algorithm).items() if callable(value) and not hasattr(Algorithm, key)]
        has = f"has {', '.join(strange)}" if strange else "has none of them"
        return f"{name} is round to nearest: woqfx calls transform, round and refine, and it {has}"
    if blockwise and algorithm.needs_data is False:
        return f"{name}: {' and '.join(blockwise)} would never be called: set needs_data = True"
    if own("survey") and not own("surveys"):
        return f"{name}: survey would never be called: give it a property surveys that is True"
    return ""


def _backend_fault(backend: Backend) -> str:
    grid = _Probe()
    support = backend.supports(Scheme(grid.name), grid, (4, 64), this_cpu())
    if not isinstance(support, Support):
        return f"{backend.name}: supports gives {support!r}, not a woqfx.Support"
    return ""


def _accelerator_fault(accelerator: Accelerator) -> str:
    """Let it quantize a little, beside PyTorch: what it takes on must come out the same."""
    grid, scheme = _Probe(), Scheme(_Probe.name, group_size=8)
    rows = torch.linspace(-1, 1, 80).view(4, 20)
    packed, params = round_rows(rows, grid, scheme, lambda groups: grid.fit(groups, symmetric=True))
    made = accelerator.nearest(rows, grid, scheme, (1.0,), None)
    if made is not None and not (torch.equal(made[0], packed) and torch.equal(made[1].scale, params.scale)):
        return f"{accelerator.name}: its nearest codes or scales are not those of woqfx"
    q = QTensor.of_packed(grid, scheme, (4, 20), packed, params)
    sums = accelerator.square_error(rows, q)
    if sums is not None and not all(map(torch.equal, sums, square_sums(rows, q))):
        return f"{accelerator.name}: its square errors are not those of woqfx"
    return ""


def _no_fault(_: Any) -> str:
    return ""


class _Probe(IntegerGrid):
    """A plain grid to try compute dtypes and backends with; no plugin's dtype may be needed for that."""

    name = "probe"
    bits = 4


_CHECKS: dict[str, tuple[type[Any], Callable[[Any], str]]] = {
    "dtype": (DType, _dtype_fault),
    "compute dtype": (ComputeDType, _compute_fault),
    "algorithm": (Algorithm, _algorithm_fault),
    "backend": (Backend, _backend_fault),
    "format": (Format, _no_fault),
    "calibration set": (CalibrationSet, _no_fault),
    "accelerator": (Accelerator, _accelerator_fault),
}
