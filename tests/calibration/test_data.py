"""The result: batches and their digest."""

from __future__ import annotations

import hashlib
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from woqfx import Calibration
from woqfx.calibration.data import BATCH_TOKENS

SEQUENCES = st.lists(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=5), min_size=1, max_size=20)


@given(SEQUENCES)
def test_batches_hold_every_sequence_beside_its_equals_in_length(sequences):
    found = Calibration.of([torch.tensor(ids) for ids in sequences], "")
    rows = [row.tolist() for batch in found.batches for row in batch]
    assert sorted(rows) == sorted(sequences)
    for length in {len(ids) for ids in sequences}:  # in the order of their coming
        assert [row for row in rows if len(row) == length] == [ids for ids in sequences if len(ids) == length]
    assert len({batch.shape[1] for batch in found.batches}) == len(found.batches)
    assert (found.sequences, found.tokens) == (len(sequences), sum(map(len, sequences)))


@pytest.mark.parametrize(("length", "sizes"), [(512, [4, 4, 2]), (2048, [1] * 10), (5000, [1] * 10), (100, [10])])
def test_batches_are_of_a_size_to_share_out(length, sizes):
    found = Calibration.of(list(torch.zeros(10, length, dtype=torch.int64)), "")
    assert [len(batch) for batch in found.batches] == sizes
    assert all(batch.numel() <= max(BATCH_TOKENS, length) for batch in found.batches)


def test_the_digest_is_that_of_lengths_and_ids():
    found = Calibration.of([torch.tensor([1, 2, 3]), torch.tensor([4])], "")
    assert found.digest == hashlib.sha256(struct.pack("<6q", 3, 1, 2, 3, 1, 4)).hexdigest()


@given(SEQUENCES, SEQUENCES)
def test_other_tokens_have_another_digest(one, two):
    digests = [Calibration.of([torch.tensor(ids) for ids in each], "").digest for each in (one, two)]
    by_length = [sorted(each, key=lambda ids: [len(e) for e in each].index(len(ids))) for each in (one, two)]
    assert (digests[0] == digests[1]) is (by_length[0] == by_length[1])
