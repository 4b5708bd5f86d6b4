"""woqfx's own vocabulary: the arguments of `woqfx.quantize` themselves, as a configuration of transformers."""

from __future__ import annotations

from woqfx.vocabularies.readers import asks
from woqfx.vocabularies.vocabulary import Parameter, Vocabulary

_ARGUMENTS = (
    *("algorithm", "dtype", "group_size", "symmetric", "scale_dtype", "double_quant", "compute_dtype"),
    *("outlier_threshold", "backend", "rules", "options", "calibration", "samples", "seq_len", "calibration_seed"),
    *("column", "split", "tokenizer", "propagate"),
)

WOQFX = Vocabulary(
    "WoqfxConfig", tuple(Parameter(name, None, asks(name), f"`{name}` of woqfx.quantize") for name in _ARGUMENTS)
)
