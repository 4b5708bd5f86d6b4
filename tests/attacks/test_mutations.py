"""Two thousand checkpoints that were tampered with."""

from __future__ import annotations

import resource
import time
from random import Random

import pytest
import torch
from forgeries import Net, copy_of, read_all
from mutations import mutate

from woqfx.errors import WoqfxError

COUNT = 2000
BATCHES = 10


@pytest.mark.parametrize("batch", range(BATCHES))
def test_tampering_is_refused_or_harmless(original, tmp_path, batch):
    """Only woqfx's own errors. What the hashes cover loads as it was, or not at all.

    Who changes the manifest too can make another checkpoint, but only one that fills the same model.
    """
    expected = read_all(original, Net())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = 0
    for seed in range(batch * COUNT // BATCHES, (batch + 1) * COUNT // BATCHES):
        forgery = copy_of(original, tmp_path / str(seed))
        signed = mutate(forgery, Random(seed))
        start = time.process_time()
        try:
            found = read_all(forgery.path, Net())
        except WoqfxError as error:
            assert str(error), f"seed {seed}"
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        finally:
            assert time.process_time() - start < 5, f"seed {seed}"
        loaded += 1
        assert {name: tensor.shape for name, tensor in found.items()} == {
            name: tensor.shape for name, tensor in expected.items()
        }, f"seed {seed}"
        if not signed:
            assert all(torch.equal(found[name], expected[name]) for name in expected), f"seed {seed}"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 256 << 20
    assert 0 < loaded < COUNT // BATCHES // 2
