"""Packing never drifts: the bytes of today are those of the golden file."""

from __future__ import annotations

import json

import pytest
from golden_bytes import GOLDEN, digests, schemes, weight

EXPECTED = json.loads(GOLDEN.read_text())


def test_the_weight_is_what_it_was():
    assert [int(value * 2**14) for value in weight()[0, :4]] == [-4096, 966, -2163, 2900]


def test_the_golden_file_covers_every_scheme():
    assert set(EXPECTED) == set(schemes())


@pytest.mark.parametrize("label", schemes())
def test_bytes(label):
    assert digests(schemes()[label]) == EXPECTED[label], "if the change is meant: python tests/plugins/golden_bytes.py"
