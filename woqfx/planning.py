"""The plan: what would happen to each weight, decided and checked from headers alone."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from math import prod
from typing import Any

import torch

from woqfx.algorithm import Algorithm, Layer, Statistics
from woqfx.backend import Backend, Support
from woqfx.blocks.composition import Composition, blamed, read_composition
from woqfx.blocks.finding import BlockInfo, find_blocks
from woqfx.calibration import CalibrationRequest, check_calibration
from woqfx.calibration.data import BATCH_TOKENS
from woqfx.compute import ComputeDType
from woqfx.cpu import this_cpu
from woqfx.errors import WoqfxError
from woqfx.estimates import estimate
from woqfx.layers import LayerInfo, Role, find_layers
from woqfx.planned import LayerPlan, Plan
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.request import Request
from woqfx.scheme import Scheme
from woqfx.source import Source

#: Bytes of source tensors that are worked on at a time, unless one alone is larger.
IN_PROGRESS = 256 << 20

_KEPT_BY_DEFAULT = {Role.EMBEDDING, Role.HEAD}


def make_plan(source: Source, request: Request) -> Plan:
    """Decide what happens to each weight of `source`, and find everything that is wrong with the request.

    Reads no weight. Problems are collected, not raised: see `Plan.check`.
    """
    return _Planner(source, request).plan()


class _Planner:
    """One planning: collects problems, each with the layers it is about."""

    def __init__(self, source: Source, request: Request) -> None:
        self.source, self.request = source, request
        self.problems: list[str] = []
        self.about: defaultdict[str, list[str]] = defaultdict(list)
        self.composition: Composition | None = self.attempt(
            lambda: read_composition(request.algorithm, request.options)
        )
        self.unused = [] if self.composition is None or self.needs_data else _about_data(request)
        data = (request.calibration or CalibrationRequest()) if self.needs_data else None
        self.request = dataclasses.replace(request, calibration=data)
        self.backend: Backend | None = self.attempt(lambda: registry().backend(request.backend))

    def attempt(self, get: Any, blame: str = "") -> Any:
        try:
            return get()
        except WoqfxError as error:
            if (problem := f"{blame}{error}") not in self.problems:
                self.problems.append(problem)
            return None

    @property
    def needs_data(self) -> bool:
        return self.composition is not None and self.composition.needs_data

    def plan(self) -> Plan:
        layers = find_layers(self.source.skeleton)
        plans = tuple(self.plan_layer(layer) for layer in layers)
        self.check_rules(layers)
        if self.backend is not None:
            self.problems += [
                f"{self.source.label}: backend {self.backend.name} cannot run it: {why}"
                for why in self.backend.obstacles(self.source.skeleton)
            ]
        blocks = self.plan_blocks(plans)
        if not any(plan.scheme for plan in plans) and not self.problems:
            self.problems.append(
                f"{self.source.label}: nothing would be quantized; no rule and no default selects a layer"
            )
        self.problems += [f"{_named(names)}: {problem}" for problem, names in self.about.items()]
        tensors = self.source.tensors
        sizes = {name: prod(info.shape) * info.dtype.itemsize for name, info in tensors.items()}
        planned = {plan.layer.weight for plan in plans}
        largest = max(sizes.values(), default=0)
        asked = self.request.calibration
        tokens = asked.samples * asked.seq_len if asked is not None else 0
        surveys = self.composition is not None and self.composition.surveys
        corrects = self.composition is not None and self.composition.corrects_earlier
        back = self.tokens_back()
        data = estimate(self.source, blocks, plans, tokens, surveys=surveys, corrects=corrects, back=back)
        return Plan(
            source=self.source.label,
            request=self.request,
            layers=plans,
            other_bytes=sum(size for name, size in sizes.items() if name not in planned),
            source_bytes=sum(sizes.values()),
            memory=_process_bytes() + max(data.memory, 2 * max(largest, min(IN_PROGRESS, sum(sizes.values())))),
            seconds=data.seconds + self.estimate(plans, sum(sizes.values())),
            problems=tuple(self.problems),
            warnings=self.warnings(planned),
            blocks=blocks,
        )

    def tokens_back(self) -> int:
        """How many tokens are on their way back through a block at a time: a batch for each thread, or none."""
        asked = self.request.calibration
        if asked is None or self.composition is None or not self.composition.differentiates:
            return 0
        batch = max(1, BATCH_TOKENS // asked.seq_len) * asked.seq_len
        return min(torch.get_num_threads() * batch, asked.samples * asked.seq_len)

    def plan_blocks(self, plans: Iterable[LayerPlan]) -> tuple[BlockInfo, ...]:
        """The blocks to go through, if the algorithm looks at data; what stands in the way of that is a problem."""
        if self.request.calibration is None:
            return ()
        data = self.request.calibration
        weights = [plan.layer.weight for plan in plans if plan.layer.role in (Role.LINEAR, Role.EXPERTS)]
        blocks = self.attempt(lambda: find_blocks(self.source.skeleton, weights)) or ()
        for alias, name in self.source.aliases.items():
            owners = {block.name for block in blocks for tensor in (alias, name) if block.holds(tensor)}
            if owners and not any(block.holds(alias) and block.holds(name) for block in blocks):
                self.about[f"it is tied to {name}, so no block can be rescaled or rounded alone: use rtn"].append(alias)
        self.attempt(lambda: check_calibration(data, self.source))
        return blocks

    def warnings(self, planned: Collection[str]) -> tuple[str, ...]:
        found = []
        if self.source.unexpected:
            found.append(f"the model has no place for {_named(list(self.source.unexpected))}: left out")
        if self.unused:
            what = ", ".join(self.unused) + (" is" if len(self.unused) == 1 else " are")
            found.append(f"algorithm {self.request.algorithm} looks at no data: {what} not used")
        # A matrix that is no layer's weight is small, unless the model uses it in a way that we do not know.
        tensors = self.source.tensors
        sizes = {name: prod(info.shape) for name, info in tensors.items()}
        odd = [name for name in sorted(sizes, key=lambda name: -sizes[name]) if name not in planned]
        odd = [name for name in odd if len(tensors[name].shape) > 1]
        share = sum(sizes[name] for name in odd) / max(1, sum(sizes.values()))
        if share > 0.1:
            found.append(f"{_named(odd)} hold {share:.0%} of the weights; kept: woqfx does not know how they are used")
        return tuple(found)

    def plan_layer(self, layer: LayerInfo) -> LayerPlan:
        float_dtype = self.source.tensors[layer.weight].dtype
        scheme, why = self.decide(layer)
        if scheme is not None and layer.obstacle:
            if why.startswith("rule"):
                self.about[f"{layer.obstacle}; keep it"].append(layer.name)
            scheme, why = None, f"cannot: {layer.obstacle}"
        support = None
        nbytes = prod(layer.shape) * float_dtype.itemsize
        if scheme is not None and not float_dtype.is_floating_point:
            self.about[f"its weights are {float_dtype}, quantized already: start from the original"].append(layer.name)
        elif scheme is not None:
            support, size = self.check_scheme(layer, scheme, why)
            nbytes = nbytes if size is None else size
        return LayerPlan(layer, float_dtype, scheme, why, support, nbytes)

    def decide(self, layer: LayerInfo) -> tuple[Scheme | None, str]:
        chosen: Scheme | None = self.request.scheme
        why = "default"
        if layer.role in _KEPT_BY_DEFAULT:
            chosen, why = None, f"default: {layer.role.value}s are kept"
        for rule in self.request.rules:
            if any(rule.matches(name) for name in (layer.name, *layer.others)):
                chosen, why = self.attempt(lambda rule=rule: rule.apply(self.request.scheme)), f"rule {rule}"
        return chosen, why

    def check_scheme(self, layer: LayerInfo, scheme: Scheme, why: str) -> tuple[Support | None, int | None]:
        blame = f"rule {why.removeprefix('rule ')!r}: " if why.startswith("rule ") else ""
        dtype = self.attempt(lambda: registry().dtype(scheme.dtype), blame)
        compute = self.attempt(lambda: registry().compute_dtype(scheme.compute_dtype), blame)
        if dtype is None:
            return None, None
        if not scheme.symmetric and not dtype.has_asymmetric:
            others = ", ".join(name for name in registry().names("dtype") if registry().dtype(name).has_asymmetric)
            problem = f"{blame}{dtype.name} has no asymmetric form: use symmetric=True (--sym), or one of {others}"
            self.about[problem].append(layer.name)
            return None, None
        if scheme.outlier_threshold and compute is not None and not compute.has_outliers:
            self.about[f"{blame}{no_outliers(compute)}"].append(layer.name)
            return None, None
        ordered = self.composition is not None and self.composition.rounder.ordered
        specs = QTensor.specs(dtype, scheme, layer.shape, ordered=ordered).values()
        nbytes = sum(prod(shape) * kind.itemsize for kind, shape in specs)
        if self.backend is None or compute is None:
            return None, nbytes
        support = self.backend.supports(scheme, dtype, layer.shape, this_cpu())
        if not support.ok:
            self.about[
                f"{blame}backend {self.backend.name} cannot run {scheme.dtype} with compute dtype "
                f"{scheme.compute_dtype}: {support.reason}; {support.remedy}"
            ].append(layer.name)
        return support, nbytes

    def check_rules(self, layers: list[LayerInfo]) -> None:
        names = [name for layer in layers for name in (layer.name, *layer.others)]
        for rule in self.request.rules:
            if not any(rule.matches(name) for name in names):
                self.problems.append(f"rule {str(rule)!r} matches no layer; layers are named like {_named(names)}")

    def estimate(self, plans: Iterable[LayerPlan], source_bytes: int) -> float:
        """Seconds for the whole job, from a small sample of each scheme quantized here and now."""
        seconds = source_bytes / 1e9  # reading and writing at about 1 GB/s
        weights: defaultdict[Scheme, int] = defaultdict(int)
        for plan in plans:
            if plan.scheme and plan.support:
                weights[plan.scheme] += plan.weights
        if self.composition is None or self.about:
            return seconds
        sample = torch.linspace(-1, 1, 1 << 18).view(256, 1024)
        inputs = Statistics(1024, torch.eye(1024), torch.zeros(1024), torch.ones(1024))
        rounder = self.composition.rounder
        for scheme, count in weights.items():
            layer = Layer(
                "sample", sample, scheme, registry().dtype(scheme.dtype), inputs if rounder.needs_data else None
            )
            seconds += (self.attempt(lambda layer=layer: _round_seconds(rounder, layer)) or 0) * count / sample.numel()
        return seconds


def _about_data(request: Request) -> list[str]:
    """What a request chooses for algorithms that look at data."""
    chosen = [] if request.calibration is None else request.calibration.choices
    return chosen + ([] if request.propagate == Request.propagate else [f"propagate {request.propagate}"])


def no_outliers(compute: ComputeDType) -> str:
    """Why a compute dtype cannot have an outlier threshold, and what would work."""
    able = ", ".join(name for name in registry().names("compute dtype") if registry().compute_dtype(name).has_outliers)
    return f"compute dtype {compute.name} keeps no outliers apart: use outlier_threshold 0, or compute dtype {able}"


def _round_seconds(algorithm: Algorithm, layer: Layer) -> float:
    """The best of three, or of one that looks at data, which takes long. It shall fail here, not after an hour."""
    times = []
    with blamed(algorithm, "a sample"):
        for _ in range(1 if algorithm.needs_data else 3):
            start = time.perf_counter()
            algorithm.round(layer)
            times.append(time.perf_counter() - start)
    return min(times)


def _named(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _process_bytes() -> int:
    """What this process holds now."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
