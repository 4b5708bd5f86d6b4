"""`--target-bits`: from a request with one scheme to one whose rules give each layer a scheme of its own."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from numbers import Real

from woqfx.backend import Backend
from woqfx.blocks.finding import find_blocks
from woqfx.calibration import CalibrationRequest, prepare_calibration
from woqfx.cpu import this_cpu
from woqfx.errors import PlanError, SchemeError
from woqfx.mixed.allocation import Choice, allocate
from woqfx.mixed.sensitivity import Report, measure
from woqfx.planned import LayerPlan, Plan
from woqfx.planning import make_plan
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.request import Request
from woqfx.scheme import Rule, Scheme
from woqfx.source import Source

#: What a layer may get instead of the scheme that was asked for: other groups, and this dtype.
GROUP_SIZES = (16, 32, 64, 128)
FINE = "int8"


def plan_within(
    source: Source,
    request: Request,
    target_bits: float | None = None,
    *,
    workers: int = 1,
    report: Report | None = None,
) -> Plan:
    """The plan of a request, with a scheme for each layer if there is a target for the bits of all together."""
    if target_bits is not None:
        request = mix(source, request, target_bits, workers=workers, report=report)
    return make_plan(source, request)


def mix(
    source: Source, request: Request, target_bits: float, *, workers: int = 1, report: Report | None = None
) -> Request:
    """The request with rules in front of its own, so that quantized weights take `target_bits` each in the mean.

    Scales are counted. Layers about which the request has a rule keep to it, and those that data do not reach keep
    the request's scheme. Looks at calibration data whatever the algorithm.

    Raises `PlanError` for a request that cannot be carried out, and for a target that no choice of schemes meets.
    """
    if not isinstance(target_bits, Real) or isinstance(target_bits, bool) or not 0 < target_bits < 64:
        raise SchemeError(
            f"target_bits is {target_bits!r}: give the bits that a weight shall take in the mean, as 4.25"
        )
    plan = make_plan(source, request)
    plan.check()
    if not plan.blocks:
        plan = replace(plan, blocks=find_blocks(source.skeleton, plan.quantized))
    free = {planned.layer.name: planned for planned in plan.quantized.values() if not planned.why.startswith("rule")}
    schemes = {name: list(_schemes(planned, request)) for name, planned in free.items()}
    sizes = {name: [_nbytes(planned, scheme) for scheme in schemes[name]] for name, planned in free.items()}
    _budget(plan, sizes, target_bits)  # before the first expensive second
    calibration = prepare_calibration(request.calibration or CalibrationRequest(), source)
    costs = measure(source, plan, calibration, schemes, workers=workers, report=report)
    choices = {
        name: [Choice(*each) for each in zip(schemes[name], sizes[name], found, strict=True)]
        for name, found in costs.items()
    }
    budget = _budget(plan, {name: sizes[name] for name in choices}, target_bits)
    rules = tuple(_rules({name: choice.what for name, choice in allocate(choices, budget).items()}, request.scheme))
    # The data were looked at; an algorithm that does not look at them need not be told of them.
    return replace(request, rules=rules + request.rules, calibration=plan.request.calibration)


def _schemes(planned: LayerPlan, request: Request) -> Iterator[Scheme]:
    """What one layer could be stored as: the request's own scheme first."""
    assert planned.scheme is not None
    yield planned.scheme
    backend: Backend = registry().backend(request.backend)
    dtypes = dict.fromkeys((planned.scheme.dtype, *({FINE} & set(registry().names("dtype")))))
    for name in dtypes:
        for group_size in GROUP_SIZES:
            scheme = replace(planned.scheme, dtype=name, group_size=group_size)
            support = backend.supports(scheme, registry().dtype(name), planned.layer.shape, this_cpu())
            if scheme != planned.scheme and support.ok:
                yield scheme


def _nbytes(planned: LayerPlan, scheme: Scheme) -> int:
    """What a layer would take: as planned, but for the parts that depend on the scheme."""
    assert planned.scheme is not None
    shape = planned.layer.shape

    def size(of: Scheme) -> int:
        specs = QTensor.specs(registry().dtype(of.dtype), of, shape).values()
        return sum(prod(part) * kind.itemsize for kind, part in specs)

    return planned.nbytes - size(planned.scheme) + size(scheme)


def _budget(plan: Plan, sizes: Mapping[str, list[int]], target_bits: float) -> int:
    """The bytes that are left for the layers with choices, of these sizes. Raises `PlanError` if they are too few."""
    weights = sum(planned.weights for planned in plan.quantized.values())
    fixed = sum(planned.nbytes for planned in plan.quantized.values() if planned.layer.name not in sizes)
    least = fixed + sum(map(min, sizes.values()))
    budget = int(target_bits * weights / 8)
    if least > budget:
        raise PlanError(
            [
                f"target_bits {target_bits:g} cannot be reached: the smallest choice of schemes takes "
                f"{8 * least / weights:.2f} bits per weight, scales included; ask for more, or for a smaller dtype"
            ]
        )
    return budget - fixed


def _rules(chosen: Mapping[str, Scheme], usual: Scheme) -> Iterator[Rule]:
    """A rule for each layer that does not get the usual scheme."""
    for name, scheme in chosen.items():
        change = {
            field: getattr(scheme, field)
            for field in ("dtype", "group_size")
            if getattr(scheme, field) != getattr(usual, field)
        }
        if change:
            yield Rule(glob.escape(name), change)
