"""What the formats of AWQ and GPTQ have in common when they are written: integers, whole groups, one group size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from woqfx import FileNames, Obstacle, Scheme, StoredModel, StoredWeight, registry

#: Why a weight cannot be held, and the dtype that can be; None if it can.
Judged = tuple[str, str] | None


def obstacles_of(
    model: StoredModel, judge: Callable[[StoredWeight], Judged], can_align: Callable[[StoredWeight, str], str]
) -> list[Obstacle]:
    """The obstacles of a format with one group size, which is stated once for all layers.

    `judge` looks at a weight's scheme, `can_align` at its shape: why no scheme of a dtype would fit.
    """
    names = FileNames(model)
    alone = "readers of this format unpack linear layers alone"
    found = {name: Obstacle(name, alone, None) for name in model.weights if not names.matrices(name)}
    weights = {
        name: replace(weight, shape=names.matrices(name)[0].shape)  # experts are layers, all of one shape
        for name, weight in model.weights.items()
        if name not in found
    }
    fitting = [
        weight.scheme.group_size
        for weight in weights.values()
        if judge(weight) is None and not can_align(weight, weight.scheme.dtype)
    ]
    sizes = fitting or [weight.scheme.group_size for weight in weights.values()]
    size = max(sizes, key=sizes.count, default=-1)
    for name, weight in weights.items():
        if obstacle := _obstacle(name, weight, size, judge(weight), can_align):
            found[name] = obstacle
    return [found[name] for name in model.weights if name in found]


def _obstacle(
    name: str, weight: StoredWeight, size: int, judged: Judged, can_align: Callable[[StoredWeight, str], str]
) -> Obstacle | None:
    reason, dtype = judged or ("", weight.scheme.dtype)
    if unaligned := can_align(replace(weight, scheme=replace(weight.scheme, group_size=size)), dtype):
        return Obstacle(name, unaligned, None)
    if not reason and weight.scheme.group_size != size:
        reason = f"groups of {weight.scheme.group_size}, where one group size, {size}, is stated for all layers"
    if not reason:
        return None
    symmetric = weight.scheme.symmetric and registry().dtype(weight.scheme.dtype).levels is None
    return Obstacle(name, reason, Scheme(dtype, size, symmetric=symmetric))


def misfit(weight: StoredWeight, bits: set[int], *, ordered: bool) -> str:
    """Why groups of integers with zero points and fp16 scales are not what a weight is; empty if they are.

    `ordered` says whether the format holds permuted inputs.
    """
    scheme = weight.scheme
    dtype = registry().dtype(scheme.dtype)
    if dtype.levels is not None or dtype.bits not in bits:
        return f"{scheme.dtype} is not a grid of integers of {' or '.join(map(str, sorted(bits)))} bits"
    if weight.ordered and not ordered:
        return "its inputs are permuted"
    if weight.offsets:
        return "its groups have offsets, not zero points"
    if scheme.double_quant:
        return "its scales are quantized themselves"
    return f"its scales are {scheme.scale_dtype}, not fp16" if scheme.scale_dtype != "fp16" else ""
