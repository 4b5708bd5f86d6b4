"""How far a model's predictions are from another's, cheaply differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from woqfx.blocks.conductor import model_inputs
from woqfx.errors import SourceError

#: Logits that are worked on at a time.
_CHUNK = 1 << 22


class Divergence(nn.Module):
    """Gives, for tokens int64 [B, T], the mean over them of KL(original || model), in nats: differentiable in `model`.

    Both run with products in the type `products`, bfloat16 or float32; the divergence itself is computed in float32.
    """

    def __init__(self, model: nn.Module, original: nn.Module, products: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self._original, self._products = _Apart(original), products

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._products == torch.bfloat16):
            with torch.no_grad():
                wanted = _logits(self._original.module, tokens)
            found = _logits(self.model, tokens)
        return mean_divergence(found.float().flatten(0, -2), wanted.float().flatten(0, -2))


def mean_divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """The mean over rows of KL(softmax(wanted) || softmax(logits)), of [n, V] each; differentiable in `logits`."""
    found: Tensor = _MeanDivergence.apply(logits, wanted)  # type: ignore[no-untyped-call]
    return found


class _MeanDivergence(torch.autograd.Function):
    """A few rows at a time: what autograd would keep of a large vocabulary is several times the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor) -> Tensor:
        slope = torch.empty_like(logits)
        total = torch.zeros((), dtype=torch.float64)
        rows = max(1, _CHUNK // logits.shape[-1])
        for p, q, slopes in zip(*(torch.split(part, rows) for part in (wanted, logits, slope)), strict=True):
            log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
            total += (log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64)
            torch.sub(log_q.exp(), log_p.exp(), out=slopes)
        ctx.save_for_backward(slope.div_(len(logits)))
        return (total / len(logits)).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradient, None


class _Apart:
    """Holds a module that is no part of the one that runs it: never copied, and its parameters are its own."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> _Apart:
        return self


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    output = model(**model_inputs(model, tokens))
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if logits is None:
        raise SourceError(f"{type(model).__name__} gives no logits: there is no prediction to tune")
    found: Tensor = logits
    return found
