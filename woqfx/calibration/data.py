"""`Calibration`: the tokens that data-driven algorithms see."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: A batch holds about so many tokens: enough for matrix products to be quick, few enough to share out to threads.
BATCH_TOKENS = 2048


@dataclass(frozen=True, eq=False)
class Calibration:
    """Tokens without padding, in batches: int64 [B, T], where B and T may differ from batch to batch.

    `digest` is the SHA-256 of the tokens in hexadecimal: the same sequences in the same order give the same digest.
    `description` says in a few words, for people, what they are; it names no folder of this machine.
    """

    batches: tuple[Tensor, ...]
    digest: str
    description: str

    @classmethod
    def of(cls, sequences: Iterable[Tensor], description: str) -> Calibration:
        """From sequences of token ids int64 [T]; those of one length share batches, in the order of their coming."""
        by_length: dict[int, list[Tensor]] = {}
        for sequence in sequences:
            by_length.setdefault(len(sequence), []).append(sequence)
        batches = []
        for length, alike in by_length.items():
            size = max(1, BATCH_TOKENS // length)
            batches += [torch.stack(alike[start : start + size]) for start in range(0, len(alike), size)]
        return cls(tuple(batches), digest_of(batches), description)

    @property
    def sequences(self) -> int:
        """How many sequences there are."""
        return sum(len(batch) for batch in self.batches)

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return sum(batch.numel() for batch in self.batches)


def digest_of(batches: Sequence[Tensor]) -> str:
    """The SHA-256 of the sequences in hexadecimal: of each, its length and its ids as little-endian int64."""
    total = hashlib.sha256()
    for batch in batches:
        for sequence in batch:
            total.update(len(sequence).to_bytes(8, "little"))
            total.update(sequence.numpy().astype("<i8").tobytes())
    return total.hexdigest()
