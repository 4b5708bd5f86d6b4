"""Intel Extension for Transformers' checkpoints (1.4): its own config, and layers in GPTQ's layout."""

from __future__ import annotations

from woqfx import Format, ModelFiles, PackedModel, StoredModel, registry
from woqfx.errors import CheckpointError
from woqfx_formats.codecs.gptq import ZeroPoints
from woqfx_formats.gptq_layers import gptq_modules, packed_gptq
from woqfx_formats.settings import Settings

_METHODS = ("rtn", "awq", "teq", "gptq", "autoround", "auto_round")


def is_itrex(files: ModelFiles) -> bool:
    """Whether a config is ITREX's: whatever the method, it names the dtype of weights."""
    return "weight_dtype" in files.quantization and files.quantization.get("quant_method") in _METHODS


class ITREX(Format):
    """Integers, which ITREX stores as AutoGPTQ does, whatever the method that made them."""

    name = "itrex"
    title = "Intel Extension for Transformers 1.4"
    reads = "int4_clip, int8, of any of its algorithms"
    checked_with = "the layouts, written independently in numpy; files of ITREX 1.4.2"

    def detect(self, files: ModelFiles) -> bool:
        """By the config, which no other program writes."""
        return is_itrex(files)

    def open(self, files: ModelFiles) -> StoredModel:
        """See `Format.open`."""
        settings = Settings(files, files.quantization)
        modules = gptq_modules(files)
        if not modules:
            raise CheckpointError(
                f"{files.label}: ITREX stored {settings.text('weight_dtype')} as its kernels had it in memory, in an "
                "order that depends on the machine and is not documented: quantize the original model again"
            )
        compute = settings.text("compute_dtype") or "fp32"
        if compute not in registry().names("compute dtype"):
            raise settings.bad("compute_dtype", f"which is none of {', '.join(registry().names('compute dtype'))}")
        return PackedModel(
            files,
            {
                one.weight: packed_gptq(one, settings, zeros=ZeroPoints.LESS_ONE, compute_dtype=compute)
                for one in modules
            },
        )
