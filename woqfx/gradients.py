"""How gradients are computed."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from woqfx.cpu import this_cpu


def gradient_products() -> AbstractContextManager[None]:
    """Products in bfloat16, in this thread and for a while, where the CPU has instructions for it; else as ever.

    Gradients say where to go: a mantissa of 8 bits does, and is quicker. What is stored, and the activations that
    blocks hand on, never come of such products.
    """
    quick = this_cpu().has("avx512_bf16") or this_cpu().has("amx_bf16")
    return torch.autocast("cpu", torch.bfloat16, enabled=quick)
