"""woqfx inside transformers. Importing this registers the method "woqfx" with transformers:

    import woqfx.transformers
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained("folder", quantization_config=woqfx.WeightOnlyQuantConfig(weight_dtype="nf4"))
    AutoModelForCausalLM.from_pretrained("out/")  # a woqfx checkpoint

transformers finds no packages by itself. Whatever uses this package imports it too: `woqfx.WeightOnlyQuantConfig`,
`woqfx.langchain`.
"""

from __future__ import annotations

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from woqfx.transformers.config import (
    AutoRoundConfig,
    AwqConfig,
    CheckpointConfig,
    GPTQConfig,
    RtnConfig,
    TeqConfig,
    WeightOnlyQuantConfig,
    WoqfxConfig,
)
from woqfx.transformers.quantizer import WoqfxHfQuantizer

__all__ = [
    "AutoRoundConfig",
    "AwqConfig",
    "CheckpointConfig",
    "GPTQConfig",
    "RtnConfig",
    "TeqConfig",
    "WeightOnlyQuantConfig",
    "WoqfxConfig",
    "WoqfxHfQuantizer",
]

# Assigned, not through transformers' decorators, which refuse a second time: a module may be reloaded.
AUTO_QUANTIZATION_CONFIG_MAPPING["woqfx"] = CheckpointConfig
AUTO_QUANTIZER_MAPPING["woqfx"] = WoqfxHfQuantizer
