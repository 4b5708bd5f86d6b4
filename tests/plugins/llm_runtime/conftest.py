"""What the tests of the runtime share."""

from __future__ import annotations

import pytest
from runtime_pairs import Pair, pair_of


@pytest.fixture
def pair() -> Pair:
    """A tiny llama that rarely comes to an end, on the plain engine and as transformers' model."""
    return pair_of("llama", max_position_embeddings=256)
