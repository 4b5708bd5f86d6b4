"""What else multiplies by quantized weights in this process: PyTorch itself, and bitsandbytes where it is installed."""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from woqfx.bench import Contender, Multiply, activation_dtype, copies_of


@dataclass(frozen=True)
class Peer:
    """Somebody else's kernel. `prepare` makes it from a weight [N, K] and a group size, and tells its size in bytes."""

    name: str
    dtype: str
    compute_dtype: str
    prepare: Callable[[Tensor, int], tuple[Multiply, int]]


def contenders(
    weight: Tensor, compute_dtype: str, group_size: int, refused: list[tuple[str, str]]
) -> Iterator[Contender]:
    """The peers that compute in this dtype. Those that cannot take this weight are put into `refused`, with why."""
    x_dtype = activation_dtype(compute_dtype)
    for peer in PEERS:
        if peer.compute_dtype != compute_dtype:
            continue
        try:
            first, nbytes = peer.prepare(weight, group_size)
            with torch.inference_mode():
                first(torch.zeros(1, weight.shape[1], dtype=x_dtype))  # some refuse only now, or pack only now
        except (AssertionError, RuntimeError, ValueError) as error:
            refused.append((f"{peer.name} {peer.dtype}", str(error).partition("\n")[0]))
            continue
        copies = [first, *(copy.deepcopy(first) for _ in range(copies_of(nbytes) - 1))]
        yield Contender(peer.name, peer.dtype, compute_dtype, group_size, "", nbytes, x_dtype, copies)


def _dense(dtype: torch.dtype, weight: Tensor, group_size: int) -> tuple[Multiply, int]:
    own = weight.to(dtype, copy=True)
    return partial(_linear, own), own.nbytes


def _linear(weight: Tensor, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, weight)


def _int4pack(weight: Tensor, group_size: int) -> tuple[Multiply, int]:
    """Codes 0..15 for -8..7, and [G, N, 2] of scale and zero."""
    n, k = weight.shape
    width = k if group_size == -1 else group_size
    groups = weight.view(n, -1, width)
    scale = groups.abs().amax(-1) / 7
    codes = torch.round(groups / scale.unsqueeze(-1)).add_(8).to(torch.int32).view(n, k)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
    scales = torch.stack((scale.T, torch.zeros_like(scale.T)), -1).bfloat16().contiguous()
    multiply = partial(_int4pack_product, packed, scales, width)
    return multiply, packed.nbytes + scales.nbytes


def _int4pack_product(packed: Tensor, scales: Tensor, width: int, x: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, width, scales)
    return result


def _int8pack(weight: Tensor, group_size: int) -> tuple[Multiply, int]:
    """One scale for each row, whatever the group size."""
    scale = weight.abs().amax(-1) / 127
    codes = torch.round(weight / scale.unsqueeze(-1)).to(torch.int8)
    scale = scale.bfloat16()
    return partial(_int8pack_product, codes, scale), codes.nbytes + scale.nbytes


def _int8pack_product(codes: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten._weight_int8pack_mm(x, codes, scale)
    return result


def _bitsandbytes(kind: str, weight: Tensor, group_size: int) -> tuple[Multiply, int]:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses a kernel that is fetched over the network
    bnb: Any = importlib.import_module("bitsandbytes.nn")
    n, k = weight.shape
    layer = bnb.Linear4bit(k, n, bias=False, compute_dtype=torch.bfloat16, quant_type=kind)
    width = k if group_size == -1 else group_size
    layer.weight = bnb.Params4bit(
        weight.bfloat16(), requires_grad=False, quant_type=kind, blocksize=width, compress_statistics=False
    )
    packed: Any = layer.to("cpu").eval()
    return packed, packed.weight.nbytes + packed.weight.quant_state.absmax.nbytes


def _peers() -> Iterator[Peer]:
    yield Peer("torch dense", "fp32", "fp32", partial(_dense, torch.float32))
    yield Peer("torch dense", "bf16", "bf16", partial(_dense, torch.bfloat16))
    yield Peer("ATen int4pack", "int4", "bf16", _int4pack)
    yield Peer("ATen int8pack", "int8", "bf16", _int8pack)
    if find_spec("bitsandbytes") is not None:
        yield Peer("bitsandbytes", "nf4", "bf16", partial(_bitsandbytes, "nf4"))


PEERS = tuple(_peers())
