"""GPTQ: the algorithm and its options."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from woqfx import Algorithm, GroupParams, Layer, QTensor, data_fit, fit_to_data, option, split_groups
from woqfx_gptq.columns import round_columns
from woqfx_gptq.factor import factorize
from woqfx_gptq.order import descending, group_aware


@dataclass(frozen=True)
class GPTQOptions:
    """What GPTQ can be asked."""

    damp_percent: float = option(
        0.05, "Share of the inputs' mean second moment that is added to each; raised where it does not do."
    )
    desc_act: bool = option(
        False, "Round columns by descending second moment, and store their order, which costs time in use."
    )
    static_groups: bool = option(
        False, "Fit all groups to the weight as it was: then no order needs to be stored with desc_act."
    )
    act_group_aware: bool = option(
        True, "Round groups, and the columns of each, by descending second moment; costs nothing in use."
    )
    token_weights: bool = option(
        True, "Count each token by how much the block's output depends on its product; experts' tokens count alike."
    )
    true_sequential: bool = option(
        True, "Round weights in the order of their use, on inputs that come from rounded ones."
    )
    blocksize: int = option(128, "Columns between two updates of the rest of the weight: for speed, not for results.")


class GPTQ(Algorithm):
    """Column by column, each error made up for by the columns still to come (Frantar et al., arXiv 2210.17323).

    Groups are fitted when their first column comes, to the weights as they then are, by a search over clippings in
    which an error counts for as much as later columns cannot make up for (`Factor.costs`). Works with every grid,
    through its `fit`, `encode` and `decode`. A weight without data is rounded to the nearest.
    """

    name = "gptq"
    Options = GPTQOptions
    needs_data = True

    @property
    def ordered(self) -> bool:
        """See `woqfx.Algorithm.ordered`."""
        return bool(self.options.desc_act and not self.options.static_groups)

    @property
    def weighs_tokens(self) -> bool:
        """See `woqfx.Algorithm.weighs_tokens`."""
        return bool(self.options.token_weights)

    @property
    def sequential(self) -> bool:
        """See `woqfx.Algorithm.sequential`."""
        return bool(self.options.true_sequential)

    def round(self, layer: Layer) -> QTensor:
        """See `woqfx.Algorithm.round`."""
        if layer.inputs is None or not layer.inputs.tokens:
            layer.note(fallback="rounded to nearest: no data reached it")
            return super().round(layer)
        moments, weight, dtype, scheme = layer.inputs.moments, layer.weight.float(), layer.dtype, layer.scheme
        k = weight.shape[1]
        width = scheme.group_width(k)
        order = self._order(moments.diagonal(), width)
        factor = factorize(moments[order][:, order], self.options.damp_percent)
        layer.note(damp_percent=factor.damp)

        def fit(start: int, columns: Tensor) -> GroupParams:
            costs = factor.costs[start : start + len(columns)]
            return _part(fit_to_data(columns.T.unsqueeze(1), costs.unsqueeze(0), dtype, scheme), 0)

        codes, params = round_columns(
            weight.T[order],
            factor.upper,
            (torch.arange(k) if self.ordered else order) // width,
            _static(weight, moments, layer) if self.options.static_groups else fit,
            dtype,
            self.options.blocksize,
        )
        stacked = _stack(params)
        if not bool(torch.isfinite(stacked.scale).all()):
            return super().round(layer)  # which says where the weight is bad
        if not self.ordered:
            codes = torch.empty_like(codes).index_copy_(0, order, codes)
        stored = order.int() if self.ordered else None
        return QTensor.build(dtype, scheme, codes.T.contiguous(), stacked, stored)

    def _order(self, diagonal: Tensor, width: int) -> Tensor:
        if self.options.desc_act:
            return descending(diagonal)
        if self.options.act_group_aware:
            return group_aware(diagonal, width)
        return torch.arange(len(diagonal))


def _static(weight: Tensor, moments: Tensor, layer: Layer) -> list[GroupParams]:
    """The parameters [N] of each group, fitted to the weight as it is."""
    fit = data_fit(moments.diagonal(), layer.dtype, layer.scheme)
    blocks = split_groups(weight, layer.scheme.group_width(weight.shape[1]))
    return [_part(fit(block), group) for which, _, block in blocks for group in range(which.stop - which.start)]


def _part(params: GroupParams, group: int) -> GroupParams:
    return GroupParams(params.scale[:, group], None if params.zero is None else params.zero[:, group])


def _stack(parts: list[GroupParams]) -> GroupParams:
    """Parameters [N] of each group as [N, G]."""
    zeros = [part.zero for part in parts if part.zero is not None]
    return GroupParams(torch.stack([part.scale for part in parts], 1), torch.stack(zeros, 1) if zeros else None)
