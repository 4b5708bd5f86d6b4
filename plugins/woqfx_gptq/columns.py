"""The loop over the columns of a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from woqfx import DType, GroupParams

#: Parameters [N] of a group, from its columns [width, N] as they are when the first of them comes, at `start`.
FitGroup = Callable[[int, Tensor], GroupParams]


def round_columns(
    columns: Tensor, upper: Tensor, groups: Tensor, fit: FitGroup | Sequence[GroupParams], dtype: DType, batch: int
) -> tuple[Tensor, list[GroupParams]]:
    """Round `columns` float32 [K, N], in order, to codes uint8 [K, N], and give the parameters of each group.

    `groups` int64 [K] is the group of each column; groups are fitted on the way, or all known before. Each column's
    error, over upper[i, i], times upper[i, j] is taken off each later column j (arXiv 2210.17323, algorithm 1): at
    once within a batch of about `batch` columns, and for those beyond when the batch is done.
    """
    columns = columns.clone()
    codes = torch.empty(columns.shape, dtype=torch.uint8)
    known = {} if callable(fit) else dict(enumerate(fit))
    ends, numbers = dict(_runs(groups)), groups.tolist()
    for start, stop in _batches(ends, batch):
        errors = torch.empty(stop - start, columns.shape[1])
        for i in range(start, stop):
            params = known.get(numbers[i])
            if params is None:
                assert callable(fit)
                params = known[numbers[i]] = fit(i, columns[i : ends[i]])
            code = dtype.encode(columns[i].unsqueeze(1), params)
            codes[i] = code[:, 0]
            error = errors[i - start]
            torch.sub(columns[i], dtype.decode(code, params)[:, 0], out=error)
            error /= upper[i, i]
            columns[i + 1 : stop].addr_(upper[i, i + 1 : stop], error, alpha=-1)
        columns[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return codes, [known[group] for group in range(len(known))]


def _runs(groups: Tensor) -> Iterator[tuple[int, int]]:
    """Where each run of columns of one group starts and stops."""
    start = 0
    for count in torch.unique_consecutive(groups, return_counts=True)[1].tolist():
        yield start, start + count
        start += count


def _batches(runs: dict[int, int], batch: int) -> Iterator[tuple[int, int]]:
    """Ranges of columns: whole runs, together while they have at most `batch`; a longer run is cut.

    So a group always begins with its columns as all earlier errors leave them.
    """
    begun = end = 0
    for start, end in runs.items():
        if end - begun > batch and start > begun:
            yield begun, start
            begun = start
        while end - begun > batch:
            yield begun, begun + batch
            begun += batch
    if end > begun:
        yield begun, end
