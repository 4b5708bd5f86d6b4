"""Keys and values as transformers passes them around: slots of the engine, one for each row."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import Cache

if TYPE_CHECKING:
    from woqfx_llm_runtime._core import Engine


class RuntimeCache(Cache):
    """What the rows of a batch have computed. `mask` bool [B, n] tells which of the columns seen are tokens of a row.

    The engine holds tokens without the padding. Slots are given back when the cache is dropped.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(layers=[])
        self._engine = engine
        self.slots: list[int] = []
        self.mask = torch.zeros(0, 0, dtype=torch.bool)
        weakref.finalize(self, _free, engine, self.slots)

    def begin(self, rows: int) -> None:
        """Slots for so many rows, if there are none yet."""
        if not self.slots:
            self.slots += [self._engine.create() for _ in range(rows)]
            self.mask = torch.zeros(rows, 0, dtype=torch.bool)

    def begin_with(self, sources: Sequence[Tensor]) -> None:
        """Slots for rows with these sources, int64 [n] each. What is made of one that comes again is shared."""
        keys = [tuple(source.tolist()) for source in sources]
        distinct = dict(zip(keys, sources, strict=True))
        first = {key: self._engine.create() for key in distinct}
        made = list(first.values())
        try:
            self._engine.encode(made, [len(key) for key in distinct], torch.cat(list(distinct.values())))
        except BaseException:
            _free(self._engine, made)
            raise
        for key in keys:
            slot = first[key]
            self.slots.append(self._engine.copy(slot, 0) if slot in self.slots else slot)
        self.mask = torch.zeros(len(sources), 0, dtype=torch.bool)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many columns were seen, padding included."""
        return self.mask.shape[1]

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """The most tokens of a row."""
        return self._engine.context

    @property
    def batch_size(self) -> int:
        """The number of rows; -1 before the first step."""
        return len(self.slots) or -1

    @property
    def is_compileable(self) -> bool:
        """Nothing here is compiled."""
        return False

    @property
    def is_croppable(self) -> bool:
        """Every layer can go back by any number of tokens."""
        return True

    @property
    def is_initialized(self) -> bool:
        """Whether there are slots."""
        return bool(self.slots)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last columns, their number given as a negative one."""
        columns = max(0, self.mask.shape[1] - abs(tokens_to_remove))
        self.mask = self.mask[:, :columns]
        for slot, length in zip(self.slots, self.mask.sum(1).tolist(), strict=True):
            self._engine.trim(slot, length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order; a row may come more than once."""
        chosen = indices.tolist()
        taken: set[int] = set()
        slots = []
        for row in chosen:
            slot = self.slots[row]
            slots.append(self._engine.copy(slot, self._engine.length(slot)) if row in taken else slot)
            taken.add(row)
        for row, slot in enumerate(self.slots):
            if row not in taken:
                self._engine.free(slot)
        self.slots[:] = slots
        self.mask = self.mask[indices]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row so many times, one after the other."""
        self.batch_select_indices(torch.arange(len(self.slots)).repeat_interleave(repeats))

    def reset(self) -> None:
        """As if nothing had been computed."""
        _free(self._engine, self.slots)
        self.mask = torch.zeros(0, 0, dtype=torch.bool)

    def __len__(self) -> int:
        return 0 if not self.slots else 1

    def __repr__(self) -> str:
        return f"RuntimeCache({len(self.slots)} rows, {self.get_seq_length()} columns)"


def _free(engine: Engine, slots: list[int]) -> None:
    while slots:
        engine.free(slots.pop())
