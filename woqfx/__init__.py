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

from woqfx.errors import WoqfxError
from woqfx.hookspecs import hookimpl

if TYPE_CHECKING:
    from woqfx.algorithm import Algorithm, Layer, NoOptions, option
    from woqfx.api import load, plan, quantize, register, save, unregister
    from woqfx.backend import Backend, PackedWeight, Support
    from woqfx.compute import ComputeDType
    from woqfx.cpu import CPU
    from woqfx.dtype import Codebook, DType, GroupParams, IntegerGrid
    from woqfx.format import Format, StoredModel, StoredWeight
    from woqfx.groups import split_groups
    from woqfx.nearest import quantize_nearest
    from woqfx.planning import Plan
    from woqfx.plugins import registry
    from woqfx.qtensor import QTensor
    from woqfx.scheme import Rule, Scheme

__version__ = "0.1.0"

_HOMES = {
    "plugins": ("registry",),
    "algorithm": ("Algorithm", "Layer", "NoOptions", "option"),
    "api": ("load", "plan", "quantize", "register", "save", "unregister"),
    "backend": ("Backend", "PackedWeight", "Support"),
    "compute": ("ComputeDType",),
    "cpu": ("CPU",),
    "dtype": ("Codebook", "DType", "GroupParams", "IntegerGrid"),
    "groups": ("split_groups",),
    "format": ("Format", "StoredModel", "StoredWeight"),
    "nearest": ("quantize_nearest",),
    "planning": ("Plan",),
    "qtensor": ("QTensor",),
    "scheme": ("Rule", "Scheme"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CPU",
    "Algorithm",
    "Backend",
    "Codebook",
    "ComputeDType",
    "DType",
    "Format",
    "GroupParams",
    "IntegerGrid",
    "Layer",
    "NoOptions",
    "PackedWeight",
    "Plan",
    "QTensor",
    "Rule",
    "Scheme",
    "StoredModel",
    "StoredWeight",
    "Support",
    "WoqfxError",
    "__version__",
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
    "unregister",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'woqfx' has no attribute {name!r}")
    return getattr(importlib.import_module(f"woqfx.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
