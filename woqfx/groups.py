"""Walking over the groups of a row, the shorter last one included."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


def split_groups(rows: Tensor, width: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """The groups of `rows` [..., K] as at most two blocks: all full groups, then the shorter last one.

    Yields (groups, columns, block): which groups these are, which columns, and a view of them [..., n, width].
    """
    k = rows.shape[-1]
    full = k // width
    if full:
        columns = slice(0, full * width)
        yield slice(0, full), columns, rows[..., columns].view(*rows.shape[:-1], full, width)
    if k % width:
        columns = slice(full * width, k)
        yield slice(full, full + 1), columns, rows[..., columns].unsqueeze(-2)
