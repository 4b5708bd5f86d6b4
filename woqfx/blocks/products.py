"""Seeing the products with a module's weights while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class ProductWatch(TorchFunctionMode):
    """Calls `see(name, expert, x)` for every product of an input x [..., K] with a watched weight.

    Known are `linear(x, weight)`, `addmm(bias, x, weight)` (transformers' `Conv1D`, whose weight is [K, N]),
    `x @ weight.T`, and each of these with `weight[expert]`. `watched` are the tensors that the module multiplies by,
    by name. `made(name, product)` is called with what came of it.
    """

    def __init__(
        self,
        watched: Mapping[str, Tensor],
        see: Callable[[str, int, Tensor], None] | None = None,
        made: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        self.see, self.made = see, made
        # Each tensor is held so that its id stays its own. A transposed view counts as its weight.
        self.known: dict[int, tuple[Tensor, str, int]] = {id(t): (t, name, 0) for name, t in watched.items()}

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        # Before the product is computed: whoever has seen enough stops here.
        name = None
        if func is nn.functional.linear:
            weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
            name = self._report(weight, args[0] if args else kwargs["input"])
        elif func is torch.addmm:
            name = self._report(args[2], args[1])
        elif func in _MATMULS:
            name = self._report(args[1], args[0])
        result = func(*args, **kwargs)
        if name is not None and self.made is not None:
            self.made(name, result)
        if func is torch.Tensor.__getitem__ or func == torch.Tensor.T.__get__:  # type: ignore[attr-defined]
            found = self.known.get(id(args[0]))
            if found is not None:
                expert = int(args[1]) if func is torch.Tensor.__getitem__ else found[2]
                self.known[id(result)] = (result, found[1], expert)
        return result

    def _report(self, weight: Tensor | None, x: Tensor) -> str | None:
        """The name of the weight, if it is watched."""
        found = self.known.get(id(weight))
        if found is None:
            return None
        if self.see is not None:
            self.see(found[1], found[2], x)
        return found[1]


_MATMULS = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__}
