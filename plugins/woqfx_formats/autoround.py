"""auto-round's own checkpoints (`quant_method: auto-round`): layers in GPTQ's or AWQ's layout."""

from __future__ import annotations

from woqfx import Format, ModelFiles, PackedModel, StoredModel
from woqfx_formats.awq import awq_modules, packed_awq
from woqfx_formats.codecs.gptq import ZeroPoints
from woqfx_formats.gptq_layers import gptq_modules, packed_gptq
from woqfx_formats.settings import Settings

_METHODS = ("auto-round", "auto_round", "intel/auto-round")
_MINUS_ONE = ("auto", "auto_round:auto_gptq", "auto_round:gptq")
_PLAIN = ("auto_round", "auto_round:gptqmodel")
_AWQ = ("auto_round:auto_awq", "auto_round:awq")


class AutoRound(Format):
    """auto-round's packings of integers. What it exports as GPTQ, AWQ or compressed-tensors are those formats."""

    name = "auto-round"
    title = "auto-round"
    reads = "auto_round, auto_round:auto_gptq, auto_round:gptqmodel, auto_round:auto_awq; 2 to 8 bits"
    checked_with = "the layouts, written independently in numpy; files of auto-round 0.16"

    def detect(self, files: ModelFiles) -> bool:
        """By the config: its layouts are those of others."""
        return files.quantization.get("quant_method") in _METHODS

    def open(self, files: ModelFiles) -> StoredModel:
        """See `Format.open`. Layers of `extra_config` say for themselves how they are quantized."""
        settings = Settings(files, files.quantization)
        packing = settings.text("packing_format", "backend") or "auto"
        if packing in _AWQ:
            return PackedModel(files, {one.weight: packed_awq(one, settings) for one in awq_modules(files)})
        if packing not in _MINUS_ONE + _PLAIN:
            known = ", ".join((*_PLAIN, *_MINUS_ONE[1:], *_AWQ))
            raise settings.bad(
                "packing_format", f"where {known} are read: export it with one of those, or from the original"
            )
        zeros = ZeroPoints.LESS_ONE if packing in _MINUS_ONE else ZeroPoints.PLAIN
        modules = gptq_modules(files)
        return PackedModel(files, {one.weight: packed_gptq(one, settings, zeros=zeros) for one in modules})
