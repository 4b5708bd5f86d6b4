"""woqfx: weight-only quantization of language models for ordinary CPUs, in which everything is a plugin.

    import woqfx

    model = woqfx.quantize(model, algorithm="rtn", dtype="int4_clip")     # a live module: the same object back
    model = woqfx.quantize("folder", dtype="nf4", out="out/")             # a folder: streamed, a tensor at a time
    model = woqfx.load("out/")
    plan = woqfx.plan("folder", dtype="int8")

Names are loaded when they are first used, so that `import woqfx` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from woqfx.errors import CalibrationError, WoqfxError
from woqfx.hookspecs import hookimpl

if TYPE_CHECKING:
    from woqfx.accelerator import Accelerator
    from woqfx.algorithm import Algorithm, Fold, Layer, NoOptions, Statistics, option
    from woqfx.api import load, plan, quantize, register, save, unregister
    from woqfx.backend import Backend, PackedWeight, Support
    from woqfx.blocks.block import Block, Call, Feed
    from woqfx.calibration.contract import CalibrationSet, Document
    from woqfx.calibration.data import Calibration
    from woqfx.calibration.hub import HubSet
    from woqfx.calibration.request import CalibrationRequest
    from woqfx.calibration.subject import Subject
    from woqfx.clipping import data_fit, fit_to_data
    from woqfx.compute import ComputeDType
    from woqfx.cpu import CPU, this_cpu
    from woqfx.dtype import Codebook, DType, GroupParams, IntegerGrid
    from woqfx.format import Format, StoredModel, StoredWeight
    from woqfx.groups import split_groups
    from woqfx.nearest import quantize_nearest
    from woqfx.planning import Plan
    from woqfx.plugins import registry
    from woqfx.qtensor import QTensor
    from woqfx.roofline import Roofline
    from woqfx.scheme import Rule, Scheme

__version__ = "0.1.0"

_HOMES = {
    "plugins": ("registry",),
    "accelerator": ("Accelerator",),
    "algorithm": ("Algorithm", "Fold", "Layer", "NoOptions", "Statistics", "option"),
    "api": ("load", "plan", "quantize", "register", "save", "unregister"),
    "backend": ("Backend", "PackedWeight", "Support"),
    "blocks.block": ("Block", "Call", "Feed"),
    "calibration.contract": ("CalibrationSet", "Document"),
    "calibration.data": ("Calibration",),
    "calibration.hub": ("HubSet",),
    "calibration.request": ("CalibrationRequest",),
    "calibration.subject": ("Subject",),
    "clipping": ("data_fit", "fit_to_data"),
    "compute": ("ComputeDType",),
    "cpu": ("CPU", "this_cpu"),
    "dtype": ("Codebook", "DType", "GroupParams", "IntegerGrid"),
    "groups": ("split_groups",),
    "format": ("Format", "StoredModel", "StoredWeight"),
    "nearest": ("quantize_nearest",),
    "planning": ("Plan",),
    "qtensor": ("QTensor",),
    "roofline": ("Roofline",),
    "scheme": ("Rule", "Scheme"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CPU",
    "Accelerator",
    "Algorithm",
    "Backend",
    "Block",
    "Calibration",
    "CalibrationError",
    "CalibrationRequest",
    "CalibrationSet",
    "Call",
    "Codebook",
    "ComputeDType",
    "DType",
    "Document",
    "Feed",
    "Fold",
    "Format",
    "GroupParams",
    "HubSet",
    "IntegerGrid",
    "Layer",
    "NoOptions",
    "PackedWeight",
    "Plan",
    "QTensor",
    "Roofline",
    "Rule",
    "Scheme",
    "Statistics",
    "StoredModel",
    "StoredWeight",
    "Subject",
    "Support",
    "WoqfxError",
    "__version__",
    "data_fit",
    "fit_to_data",
    "hookimpl",
    "load",
    "option",
    "plan",
    "quantize",
    "quantize_nearest",
    "register",
    "registry",
    "save",
    "split_groups",
    "this_cpu",
    "unregister",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'woqfx' has no attribute {name!r}")
    return getattr(importlib.import_module(f"woqfx.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
