"""The same model on other grids: input channels of its linears are scaled, and the scales folded away exactly.

A model that comes from a 4-bit file has its weights on that file's grid, which flatters some dtypes. Here the input
channels of each linear of a llama are multiplied by random factors exp(sigma * N(0, 1)), and what feeds them is
divided by the same: a norm's weights, or the rows of the linear before. The float model computes what it did.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def rescale(model: nn.Module, sigma: float = 0.15, seed: int = 0) -> None:
    """Rescale a transformers model of the llama architecture, in place."""
    draw = torch.Generator().manual_seed(seed)

    def factors(count: int) -> Tensor:
        return torch.exp(sigma * torch.randn(count, generator=draw))

    decoder: Any = model.get_submodule("model")
    config: Any = decoder.config
    groups = config.num_attention_heads // config.num_key_value_heads
    with torch.no_grad():
        for layer in decoder.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                scale = factors(len(norm.weight))
                norm.weight /= scale
                for reader in readers:
                    reader.weight *= scale
            scale = factors(mlp.down_proj.in_features)
            mlp.up_proj.weight /= scale[:, None]
            mlp.down_proj.weight *= scale
            # A channel of v is read by every query head that shares its key-value head.
            scale = factors(attention.v_proj.out_features)
            attention.v_proj.weight /= scale[:, None]
            heads = scale.view(config.num_key_value_heads, 1, -1).expand(-1, groups, -1)
            attention.o_proj.weight *= heads.reshape(-1)
