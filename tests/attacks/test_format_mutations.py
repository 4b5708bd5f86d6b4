"""Ten thousand checkpoints of other programs' formats that were tampered with."""

from __future__ import annotations

import resource
import shutil
import time
from random import Random

import pytest
from foreign import CONFIG, FORMATS, WEIGHTS, one_skeleton_per_config, read_all
from foreign_mutations import mutate_folder, mutate_gguf

from woqfx.errors import WoqfxError

COUNT = 10_000
#: A GGUF file is opened by way of transformers' own reader, which takes its time.
SHARES = {name: 200 if name == "gguf" else (COUNT - 200) // (len(FORMATS) - 1) for name in FORMATS}
SECONDS = 5.0
BYTES = 256 << 20


@pytest.mark.parametrize("name", FORMATS)
def test_tampering_is_refused_or_harmless(name, tmp_path):
    """Only woqfx's own errors, in bounded time and memory; what loads has the tensors of a model, all of them."""
    good = FORMATS[name](tmp_path)
    bad = tmp_path / f"bad{good.suffix}"
    loaded = 0
    with one_skeleton_per_config():
        expected = read_all(good)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for seed in range(SHARES[name]):
            if good.is_dir():
                bad.mkdir(exist_ok=True)
                for file in (CONFIG, WEIGHTS):
                    shutil.copyfile(good / file, bad / file)
                mutate_folder(bad, Random(seed))
            else:
                shutil.copyfile(good, bad)
                mutate_gguf(bad, Random(seed))
            start = time.process_time()
            try:
                found = read_all(bad)
            except WoqfxError as error:
                assert 0 < len(str(error)) < 4000, f"seed {seed}"
                continue
            except Exception as error:
                raise AssertionError(f"{name}, seed {seed}: {error!r}") from error
            finally:
                assert time.process_time() - start < SECONDS, f"seed {seed}"
            loaded += 1
            assert found.keys() == expected.keys() or not good.is_dir(), f"seed {seed}"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
    assert 0 < loaded < SHARES[name]
