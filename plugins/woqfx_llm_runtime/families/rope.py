"""Rotary embeddings, from a model's own rotary module and transformers' own formulas."""

from __future__ import annotations

import math
from typing import Any

from woqfx_llm_runtime.description import Rope
from woqfx_llm_runtime.families.fields import Fields

#: Kinds whose frequencies never change.
_STATIC = ("default", "linear", "llama3", "proportional", "yarn")
#: Kinds whose frequencies depend on the length of the sequence.
_BY_LENGTH = ("dynamic", "longrope")


def read_rope(
    fields: Fields, rotary: Any, head_dim: int, *, partial: bool = False, layer_type: str | None = None
) -> Rope:
    """The rope of a model whose rotary module is `rotary`, for one type of layer if they differ.

    `partial` says that the model leaves the rest of a head as it is where there are fewer frequencies than pairs.
    """
    given = fields.get("rope_parameters")
    parameters = given.get(layer_type) if layer_type is not None and isinstance(given, dict) else given
    kind = parameters.get("rope_type") if isinstance(parameters, dict) else None
    if kind not in _STATIC + _BY_LENGTH:
        fields.problems.append(f"rope_type {kind!r} is not one of {', '.join(_STATIC + _BY_LENGTH)}")
        return Rope((1.0,) * (head_dim // 2))
    assert isinstance(parameters, dict)
    frequencies, factor = _frequencies(fields, rotary, kind, layer_type)
    if 2 * len(frequencies) > head_dim or (2 * len(frequencies) < head_dim and not partial):
        fields.problems.append(f"rope_parameters: {len(frequencies)} frequencies for heads of {head_dim}")
    if kind == "dynamic":
        return Rope(
            frequencies,
            factor,
            beyond=fields.size("max_position_embeddings"),
            base=float(parameters["rope_theta"]),
            growth=float(parameters["factor"]),
        )
    if kind == "longrope":
        beyond = int(parameters["original_max_position_embeddings"])
        long, _ = _frequencies(fields, rotary, kind, layer_type, seq_len=beyond + 1)
        return Rope(frequencies, factor, beyond=beyond, long_frequencies=long)
    return Rope(frequencies, factor)


def context_of(fields: Fields) -> int:
    """How many tokens a sequence may have: with the dynamic kind, `factor` times as many as the model was made for."""
    most, parameters = fields.size("max_position_embeddings"), fields.get("rope_parameters")
    if isinstance(parameters, dict) and parameters.get("rope_type") == "dynamic":
        return math.floor(most * max(1.0, float(parameters.get("factor", 1.0))))
    return most


def _frequencies(
    fields: Fields, rotary: Any, kind: str, layer_type: str | None, **length: int
) -> tuple[tuple[float, ...], float]:
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    compute = rotary.compute_default_rope_parameters if kind == "default" else ROPE_INIT_FUNCTIONS[kind]
    which = {} if layer_type is None else {"layer_type": layer_type}
    try:
        with torch.device("cpu"):
            found, factor = compute(fields.config, device=torch.device("cpu"), **which, **length)
        frequencies = tuple(float(one) for one in found)
    except Exception as error:  # values of a config, in any of transformers' formulas
        fields.problems.append(f"rope_parameters cannot be used: {type(error).__name__}: {error}")
        return (1.0,), 1.0
    if not all(map(math.isfinite, (*frequencies, factor))):
        fields.problems.append("rope_parameters give frequencies that are no numbers")
    return frequencies, float(factor)
