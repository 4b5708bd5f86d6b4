"""GPTQ's checkpoints (`quant_method: gptq`), as AutoGPTQ and GPTQModel write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import woqfx
from woqfx import FileNames, Format, ModelFiles, Obstacle, Output, PackedModel, StoredModel, StoredWeight, registry
from woqfx_formats.codecs import gptq
from woqfx_formats.codecs.gptq import ZeroPoints
from woqfx_formats.gptq_layers import gptq_modules, is_gptq, packed_gptq
from woqfx_formats.itrex import is_itrex
from woqfx_formats.linear import kept_linear, module_of
from woqfx_formats.output import FolderOutput, Specs
from woqfx_formats.settings import Settings
from woqfx_formats.uniform import Judged, misfit, obstacles_of

_V1, _V2 = "gptq", "gptq_v2"


class GPTQ(Format):
    """GPTQ in versions 1 and 2, with any mix of bits, zero points and act-order among the layers."""

    name = "gptq"
    title = "GPTQ (AutoGPTQ, GPTQModel)"
    reads = "v1 and v2; 2, 3, 4, 8 bits; act-order; dynamic overrides"
    writes = "v1 if symmetric, else v2; 2, 3, 4, 8 bits; act-order"
    checked_with = (
        "the layouts, written independently in numpy; files of auto-round; GPTQModel and vLLM read what is written"
    )

    def detect(self, files: ModelFiles) -> bool:
        """By the config, or, if that names no method, by the shapes of the first quantized layer."""
        method = files.quantization.get("quant_method")
        if method is None:
            return any(map(is_gptq, gptq_modules(files)[:1]))
        return method == "gptq" and not is_itrex(files)

    def open(self, files: ModelFiles) -> StoredModel:
        """See `Format.open`."""
        settings = Settings(files, files.quantization)
        version = settings.text("checkpoint_format", "format") or _V1
        if version not in (_V1, _V2):
            raise settings.bad("checkpoint_format", f"where {_V1} and {_V2} are read: convert it with GPTQModel")
        zeros = _zero_points(version, files.quantization)
        return PackedModel(
            files, {module.weight: packed_gptq(module, settings, zeros=zeros) for module in gptq_modules(files)}
        )

    def obstacles(self, model: StoredModel) -> list[Obstacle]:
        """See `Format.obstacles`."""
        return obstacles_of(model, _judge, _unaligned)

    def output(self, model: StoredModel) -> Output:
        """See `Format.output`."""
        version = _version(model)
        zeros = _zero_points(version, _origin(model))
        names = FileNames(model)
        quantization = _quantization(model, names, version)
        return FolderOutput(
            model,
            names,
            _specs,
            lambda weight: gptq.encode(weight, zeros),
            quantization,
            {"quantize_config.json": quantization},  # where older programs look
        )


def _version(model: StoredModel) -> str:
    """The version that it had, if it was GPTQ's before. Otherwise the one that is safe.

    More programs read version 1, but they add the 1 that is missing in zero points to whole words, which goes wrong if
    one is 0: so it is for symmetric weights.
    """
    origin = _origin(model)
    if origin.get("quant_method") == "gptq" and origin.get("checkpoint_format") in (_V1, _V2):
        return str(origin["checkpoint_format"])
    return _V1 if all(weight.scheme.symmetric for weight in model.weights.values()) else _V2


def _origin(model: StoredModel) -> Mapping[str, Any]:
    """What the checkpoint that a model came from says of its quantization; empty if it was none."""
    found: Mapping[str, Any] = model.request.get("quantization_config", {})
    return found


def _zero_points(version: str, quantization: Mapping[str, Any]) -> ZeroPoints:
    """How zero points are held in a version: in version 1 it depends on who wrote them."""
    if version == _V2:
        return ZeroPoints.PLAIN
    by_words = any(one.startswith("gptqmodel") for one in _writers(quantization))
    return ZeroPoints.LESS_ONE_BY_WORDS if by_words else ZeroPoints.LESS_ONE


def _writers(quantization: Mapping[str, Any]) -> list[str]:
    """Programs and versions, as GPTQModel names them; nothing if that is not said, or not in its way."""
    meta = quantization.get("meta")
    found = meta.get("quantizer") if isinstance(meta, Mapping) else None
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def _judge(weight: StoredWeight) -> Judged:
    reason = misfit(weight, set(gptq.COMMON_BITS), ordered=True)
    return (reason, _nearest(weight)) if reason else None


def _nearest(weight: StoredWeight) -> str:
    """The dtype of the fewest bits that holds as many levels."""
    bits = registry().dtype(weight.scheme.dtype).bits
    return gptq.DTYPES[min(known for known in gptq.COMMON_BITS if known >= bits)]


def _unaligned(weight: StoredWeight, dtype: str) -> str:
    n, k = weight.shape
    bits = registry().dtype(dtype).bits
    if n * bits % 32 or k * bits % 32:
        return f"{n} outputs and {k} inputs of {bits} bits do not fill words of 32 bits"
    return ""


def _specs(weight: StoredWeight) -> Specs:
    n, k = weight.shape
    bits, groups = registry().dtype(weight.scheme.dtype).bits, weight.scheme.group_count(k)
    return {
        "qweight": (torch.int32, (k * bits // 32, n)),
        "qzeros": (torch.int32, (groups, n * bits // 32)),
        "scales": (torch.float16, (groups, n)),
        "g_idx": (torch.int32, (k,)),
    }


def _quantization(model: StoredModel, names: FileNames, version: str) -> dict[str, Any]:
    """What GPTQModel and vLLM look for: numbers for all layers, and what differs or is kept, by regular expression."""
    weights = model.weights
    bits = {name: registry().dtype(weight.scheme.dtype).bits for name, weight in weights.items()}
    common = max(bits.values(), key=list(bits.values()).count, default=4)
    symmetric = all(weight.scheme.symmetric for weight in weights.values())
    dynamic: dict[str, Any] = {
        f"+:^{_escaped(module_of(matrix.name))}$": {"bits": own}
        for name, own in bits.items()
        if own != common
        for matrix in names.matrices(name)
    }
    # Zero points of version 1 keep their bytes: who reads them must be told by whose rule.
    kept = _writers(_origin(model)) if version == _V1 else []
    heads = ("lm_head",)  # `lm_head` says it of the head
    dynamic |= {f"-:^{_escaped(name)}$": {} for name in kept_linear(model, names) if name not in heads}
    return {
        "bits": common,
        "group_size": next((weight.scheme.group_size for weight in weights.values()), -1),
        "desc_act": any(weight.ordered for weight in weights.values()),
        "sym": symmetric,
        "quant_method": "gptq",
        "checkpoint_format": version,
        "pack_dtype": "int32",
        "lm_head": "lm_head.weight" in weights,
        "dynamic": dynamic or None,
        "meta": {"quantizer": [*kept, f"woqfx:{woqfx.__version__}"]},
    }


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")
