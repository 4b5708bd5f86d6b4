"""The hooks: all that a plugin can provide. `docs/hooks/` has a page on each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from torch import nn

    from woqfx.accelerator import Accelerator
    from woqfx.algorithm import Algorithm
    from woqfx.architecture import Architecture
    from woqfx.backend import Backend
    from woqfx.calibration.contract import CalibrationSet
    from woqfx.compute import ComputeDType
    from woqfx.dtype import DType
    from woqfx.events import Event
    from woqfx.format import Format

hookspec = pluggy.HookspecMarker("woqfx")
hookimpl = pluggy.HookimplMarker("woqfx")


@hookspec
def woqfx_dtypes() -> Iterable[DType]:  # type: ignore[empty-body]
    """Storage grids for weights."""


@hookspec
def woqfx_compute_dtypes() -> Iterable[ComputeDType]:  # type: ignore[empty-body]
    """Ways to evaluate a linear layer."""


@hookspec
def woqfx_algorithms() -> Iterable[type[Algorithm]]:  # type: ignore[empty-body]
    """Ways for weights to land on their grid: classes, since an instance holds the options of one run."""


@hookspec
def woqfx_backends() -> Iterable[Backend]:  # type: ignore[empty-body]
    """What runs quantized models."""


@hookspec
def woqfx_formats() -> Iterable[Format]:  # type: ignore[empty-body]
    """Checkpoint formats beside woqfx's own."""


@hookspec
def woqfx_calibration() -> Iterable[CalibrationSet]:  # type: ignore[empty-body]
    """Calibration data by name."""


@hookspec
def woqfx_accelerators() -> Iterable[Accelerator]:  # type: ignore[empty-body]
    """The core's own arithmetic, faster and to the same bits."""


@hookspec
def woqfx_architecture(model: nn.Module) -> Architecture | None:
    """What woqfx cannot see of a model: where its blocks are, what it computes. None for models that are not yours."""


@hookspec
def woqfx_event(event: Event) -> None:
    """Something happened: a run began, a layer is done, output was committed, a run ended."""
