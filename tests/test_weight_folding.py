from __future__ import annotations

import torch

from woqfx import Feed, Fold
from woqfx.blocks.folding import divide, fold

SCALE = torch.tensor([2.0, 0.5, 4.0])


def test_rows_elements_and_columns() -> None:
    parameters = {"p.weight": torch.ones(4, 2), "p.bias": torch.ones(4), "c.weight": torch.ones(2, 6)}
    rows, columns = torch.tensor([-1, 0, 2, 1]), torch.tensor([0, 0, 1, 1, 2, -1])
    feed = Feed("p", 3, {"p.weight": rows, "p.bias": rows}, {"c.weight": columns})
    changed = fold(feed, SCALE, parameters)
    assert changed["p.weight"].tolist() == [[1, 1], [0.5, 0.5], [0.25, 0.25], [2, 2]]
    assert changed["p.bias"].tolist() == [1, 0.5, 0.25, 2]
    assert changed["c.weight"].tolist() == [[2, 2, 0.5, 0.5, 4, 1]] * 2
    assert parameters["c.weight"].tolist() == [[1] * 6] * 2
    assert divide(feed, SCALE, parameters).keys() == feed.producers.keys()


def test_a_norm_that_holds_one_less() -> None:
    feed = Feed("norm", 3, {"norm.weight": torch.arange(3)}, {}, frozenset({"norm.weight"}))
    weight = torch.tensor([0.0, 1.0, -0.25])
    changed = fold(feed, SCALE, {"norm.weight": weight})["norm.weight"]
    torch.testing.assert_close(1 + changed, (1 + weight) / SCALE)
    assert torch.equal(fold(feed, torch.ones(3), {"norm.weight": weight})["norm.weight"], weight)


def test_a_weight_on_both_sides_of_a_feed() -> None:
    feed = Feed("w", 3, {"w": torch.arange(3)}, {"w": torch.arange(3)})
    changed = fold(feed, SCALE, {"w": torch.ones(3, 3)})["w"]
    torch.testing.assert_close(changed, SCALE / SCALE.unsqueeze(-1))


def test_experts_have_scales_of_their_own() -> None:
    index = torch.tensor([[0, 1], [2, -1]])
    feed = Feed("e", 3, {"up": index}, {"down": index})
    changed = fold(feed, SCALE, {"up": torch.ones(2, 2, 5), "down": torch.ones(2, 4, 2)})
    assert changed["up"][:, :, 0].tolist() == [[0.5, 2], [0.25, 1]]
    assert changed["down"][:, 0].tolist() == [[2, 0.5], [4, 1]]


def test_a_fold_is_differentiable_in_its_scale() -> None:
    scale = SCALE.clone().requires_grad_()
    feed = Feed("n", 3, {"n": torch.arange(3)}, {"w": torch.arange(3)})
    changed = Fold(feed, scale).apply({"n": torch.ones(3), "w": torch.ones(2, 3)})
    (changed["n"].sum() + changed["w"].sum()).backward()
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, 2 - SCALE**-2)
