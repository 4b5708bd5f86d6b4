"""Products in bfloat16: where the CPU has instructions for it, and only for a while."""

from __future__ import annotations

import pytest
import torch

from woqfx import gradient_products
from woqfx.cpu import CPU


@pytest.mark.parametrize(
    ("features", "expected"),
    [({"avx512_bf16"}, torch.bfloat16), ({"amx_bf16"}, torch.bfloat16), ({"avx512f"}, torch.float32)],
    ids=["avx512", "amx", "none"],
)
def test_the_cpu_decides(features, expected, monkeypatch):
    monkeypatch.setattr("woqfx.gradients.this_cpu", lambda: CPU("x86_64", "any", frozenset(features)))
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with gradient_products():
        product = x @ x.T
    assert product.dtype == expected
    (gradient,) = torch.autograd.grad(product.float().sum(), x)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, (2 * x.detach().sum(0)).expand_as(x), rtol=0.02, atol=0.05)
    assert (x @ x.T).dtype == torch.float32
