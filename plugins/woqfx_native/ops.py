"""Products with packed weights, as torch operators.

`linear` and `rows` are registered with `torch.library`, with fakes and gradients, so that `torch.compile`, meta tensors
and adapters on top of a quantized model work. An operator's way through torch's dispatcher takes longer than a small
layer: where nothing of torch looks on (`seen_by_torch`), callers take `run_linear` and `run_rows`, which the operators
stand on.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from woqfx_native import _core

_FLOATS = {torch.float32: _core.Float.f32, torch.float16: _core.Float.f16, torch.bfloat16: _core.Float.bf16}
_COMPUTE = {compute.name: compute for compute in _core.Compute}

_POOL_IS_SIZED = bool(os.environ.get("WOQFX_NUM_THREADS"))


def threads() -> int:
    """How many threads a kernel may use: torch's number; or 0, all of the pool, where WOQFX_NUM_THREADS sizes it."""
    return 0 if _POOL_IS_SIZED else torch.get_num_threads()


def seen_by_torch(x: Tensor, bias: Tensor | None = None) -> bool:
    """Whether something looks on that must see an operator: a compiler, a tracer, a mode, a transform, a gradient."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or type(x) is not Tensor
        or not x.is_cpu
        or (bias is not None and not (bias.is_cpu and type(bias) in (Tensor, torch.nn.Parameter)))
        or (torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)))
    )


def run_linear(weight: _core.PackedWeight, x: Tensor, bias: Tensor | None, compute: str, outliers: float) -> Tensor:
    """`x @ W.T + bias` for x [..., K] of any float type and bias [N]; [..., N] in x's type."""
    n, k = weight.n, weight.k
    if x.shape[-1] != k or (bias is not None and bias.shape != (n,)):
        shape = "" if bias is None else f", the bias {list(bias.shape)}"
        raise ValueError(f"x has shape {list(x.shape)}{shape}, where the weight has [{n}, {k}]")
    kind = _FLOATS.get(x.dtype)
    if kind is None:
        return run_linear(weight, x.float(), bias, compute, outliers).to(x.dtype)
    y = x.new_empty((*x.shape[:-1], n))
    if x.is_contiguous():
        rows, stride = x.numel() // k, k
    else:
        x = x.reshape(-1, k)
        if x.stride(1) != 1 or x.stride(0) < k:
            x = x.contiguous()
        rows, stride = x.shape[0], x.stride(0)
    at, bias_kind = 0, kind
    if bias is not None:
        if bias.dtype not in _FLOATS or not bias.is_contiguous():
            bias = bias.float().contiguous()
        at, bias_kind = bias.data_ptr(), _FLOATS[bias.dtype]
    address = y.data_ptr()
    _core.linear(
        weight, x.data_ptr(), kind, rows, stride, address, at, bias_kind, _COMPUTE[compute], outliers, threads()
    )
    return y


def run_rows(weight: _core.PackedWeight, index: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows `index` [...] of the dequantized weight, [..., K] of a float type."""
    kind = dtype if dtype in _FLOATS else torch.float32
    y = torch.empty((index.numel(), weight.k), dtype=kind)
    _core.gather(weight, index.flatten().long(), y, threads())
    return y.view(*index.shape, weight.k).to(dtype)


@torch.library.custom_op("woqfx_native::linear", mutates_args=())
def linear(x: Tensor, packed: Tensor, bias: Tensor | None, n: int, compute: str, outliers: float) -> Tensor:
    """`x @ W.T + bias` for the bytes of a weight [N, K]; x [..., K] of any float type, bias [N]."""
    return run_linear(_core.PackedWeight(packed), x, bias, compute, outliers)


@linear.register_fake
def _(x: Tensor, packed: Tensor, bias: Tensor | None, n: int, compute: str, outliers: float) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.packed, ctx.bias, ctx.n, _, _ = inputs
    ctx.k = x.shape[-1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None, None, None, None]:
    """The gradient of the float layer with the dequantized weight: rounding of activations is passed through."""
    every = torch.arange(ctx.n, device=ctx.packed.device)
    weight = torch.ops.woqfx_native.rows(every, ctx.packed, ctx.k, torch.float32)
    grad_x = (grad.float() @ weight).to(grad.dtype)
    grad_bias = grad.flatten(0, -2).sum(0).to(ctx.bias.dtype) if ctx.bias is not None else None
    return grad_x, None, grad_bias, None, None, None


linear.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("woqfx_native::rows", mutates_args=())
def rows(index: Tensor, packed: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    """Rows `index` [...] of the dequantized weight [N, K] whose bytes these are: [..., K] of a float type."""
    return run_rows(_core.PackedWeight(packed), index, dtype)


@rows.register_fake
def _(index: Tensor, packed: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    return index.new_empty((*index.shape, k), dtype=dtype)
