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
    from woqfx.algorithm import Algorithm, Fold, Layer, Statistics
    from woqfx.api import load, plan, quantize, register, save, unregister
    from woqfx.architecture import Architecture
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
    from woqfx.dequantizing import dequantize
    from woqfx.disk.shards import Shard
    from woqfx.disk.tensorfile import Entry, Layout
    from woqfx.doublequant import ScaleCodes, dynamic_map
    from woqfx.dtype import Codebook, DType, GroupParams, IntegerGrid
    from woqfx.foreign.files import ModelFiles
    from woqfx.foreign.gguf import BlockReader, GGUFModel
    from woqfx.foreign.naming import FileNames, Matrix
    from woqfx.foreign.packed import Packed, PackedModel
    from woqfx.foreign.roles import layers_of, module_tree
    from woqfx.format import Format, Obstacle, Output, StoredModel, StoredWeight
    from woqfx.gradients import gradient_products
    from woqfx.groups import split_groups
    from woqfx.layers import LayerInfo, Role
    from woqfx.learning.learning import Learning, Rates
    from woqfx.loading import assemble
    from woqfx.memory import single_threaded
    from woqfx.nearest import quantize_nearest
    from woqfx.options import NoOptions, option
    from woqfx.packing import pack, packed_width, unpack
    from woqfx.planned import Plan
    from woqfx.plugins import registry
    from woqfx.qtensor import QTensor
    from woqfx.roofline import Roofline
    from woqfx.scheme import Rule, Scheme
    from woqfx.source.base import TensorInfo
    from woqfx.transcoding import convert
    from woqfx.transformers.config import WeightOnlyQuantConfig
    from woqfx.tuning.options import TuningOptions
    from woqfx.tuning.tune import Tuning, tune

__version__ = "0.1.0"

_HOMES = {
    "plugins": ("registry",),
    "accelerator": ("Accelerator",),
    "algorithm": ("Algorithm", "Fold", "Layer", "Statistics"),
    "api": ("load", "plan", "quantize", "register", "save", "unregister"),
    "architecture": ("Architecture",),
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
    "disk.shards": ("Shard",),
    "disk.tensorfile": ("Entry", "Layout"),
    "dequantizing": ("dequantize",),
    "doublequant": ("ScaleCodes", "dynamic_map"),
    "dtype": ("Codebook", "DType", "GroupParams", "IntegerGrid"),
    "gradients": ("gradient_products",),
    "groups": ("split_groups",),
    "foreign.files": ("ModelFiles",),
    "foreign.gguf": ("BlockReader", "GGUFModel"),
    "foreign.roles": ("layers_of", "module_tree"),
    "foreign.naming": ("FileNames", "Matrix"),
    "foreign.packed": ("Packed", "PackedModel"),
    "format": ("Format", "Obstacle", "Output", "StoredModel", "StoredWeight"),
    "layers": ("LayerInfo", "Role"),
    "learning.learning": ("Learning", "Rates"),
    "loading": ("assemble",),
    "memory": ("single_threaded",),
    "nearest": ("quantize_nearest",),
    "options": ("NoOptions", "option"),
    "packing": ("pack", "packed_width", "unpack"),
    "planned": ("Plan",),
    "qtensor": ("QTensor",),
    "roofline": ("Roofline",),
    "scheme": ("Rule", "Scheme"),
    "source.base": ("TensorInfo",),
    "transcoding": ("convert",),
    "transformers.config": ("WeightOnlyQuantConfig",),
    "tuning.options": ("TuningOptions",),
    "tuning.tune": ("Tuning", "tune"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CPU",
    "Accelerator",
    "Algorithm",
    "Architecture",
    "Backend",
    "Block",
    "BlockReader",
    "Calibration",
    "CalibrationError",
    "CalibrationRequest",
    "CalibrationSet",
    "Call",
    "Codebook",
    "ComputeDType",
    "DType",
    "Document",
    "Entry",
    "Feed",
    "FileNames",
    "Fold",
    "Format",
    "GGUFModel",
    "GroupParams",
    "HubSet",
    "IntegerGrid",
    "Layer",
    "LayerInfo",
    "Layout",
    "Learning",
    "Matrix",
    "ModelFiles",
    "NoOptions",
    "Obstacle",
    "Output",
    "Packed",
    "PackedModel",
    "PackedWeight",
    "Plan",
    "QTensor",
    "Rates",
    "Role",
    "Roofline",
    "Rule",
    "ScaleCodes",
    "Scheme",
    "Shard",
    "Statistics",
    "StoredModel",
    "StoredWeight",
    "Subject",
    "Support",
    "TensorInfo",
    "Tuning",
    "TuningOptions",
    "WeightOnlyQuantConfig",
    "WoqfxError",
    "__version__",
    "assemble",
    "convert",
    "data_fit",
    "dequantize",
    "dynamic_map",
    "fit_to_data",
    "gradient_products",
    "hookimpl",
    "layers_of",
    "load",
    "module_tree",
    "option",
    "pack",
    "packed_width",
    "plan",
    "quantize",
    "quantize_nearest",
    "register",
    "registry",
    "save",
    "single_threaded",
    "split_groups",
    "this_cpu",
    "tune",
    "unpack",
    "unregister",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'woqfx' has no attribute {name!r}")
    return getattr(importlib.import_module(f"woqfx.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
