from __future__ import annotations

import pytest
import torch
from torch import Tensor

from woqfx.blocks.products import ProductWatch

X, W, STACK = torch.randn(3, 4), torch.randn(5, 4), torch.randn(2, 5, 4)


@pytest.mark.parametrize(
    ("product", "expert"),
    [
        (lambda: torch.nn.functional.linear(X, W), 0),
        (lambda: torch.nn.functional.linear(input=X, weight=W), 0),
        (lambda: torch.addmm(torch.zeros(4), torch.randn(3, 5), W), 0),
        (lambda: X @ W.T, 0),
        (lambda: torch.matmul(X, W.T), 0),
        (lambda: torch.nn.functional.linear(X, STACK[1]), 1),
        (lambda: X @ STACK[1].T, 1),
        (lambda: torch.nn.functional.linear(X, STACK[torch.tensor(1)]), 1),
    ],
    ids=["linear", "linear_by_name", "conv1d", "transposed", "matmul", "expert", "expert_transposed", "tensor_index"],
)
def test_a_product_is_seen(product: object, expert: int) -> None:
    seen: list[tuple[str, int, Tensor]] = []
    with ProductWatch({"w": W, "stack": STACK}, lambda name, number, x: seen.append((name, number, x))):
        product()  # type: ignore[operator]
    ((name, number, x),) = seen
    assert (name, number) == ("stack" if expert else "w", expert)
    assert x.shape[0] == 3


def test_other_tensors_and_other_uses_are_not() -> None:
    seen: list[str] = []
    with ProductWatch({"w": W}, lambda name, *_: seen.append(name)):
        torch.nn.functional.linear(X, W.clone())
        W.sum()
        X @ torch.randn(4, 2)
    torch.nn.functional.linear(X, W)
    assert not seen


def test_what_was_made_is_seen_too() -> None:
    made: list[tuple[str, Tensor]] = []
    with ProductWatch({"w": W, "stack": STACK}, made=lambda name, y: made.append((name, y))):
        results = [torch.nn.functional.linear(X, W), X @ STACK[1].T]
        X @ torch.randn(4, 2)
    assert [name for name, _ in made] == ["w", "stack"]
    assert all(y is result for (_, y), result in zip(made, results, strict=True))
