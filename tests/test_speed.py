"""What the benchmarks' readers read is what the model generates."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model

from woqfx.speed import Seq2SeqReader, reader_of

TOKENS = [5, 9, 3, 17, 11]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_reading_on_gives_transformers_greedy_tokens(family: str) -> None:
    model = tiny_model(family)
    settings = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "suppress_tokens": None}
    whole = model.generate(torch.tensor([TOKENS]), **settings, eos_token_id=None)[0].tolist()
    reader = reader_of(model)
    assert isinstance(reader, Seq2SeqReader) == model.config.is_encoder_decoder
    for _ in range(2):  # the second time, as if nothing had been read
        reader.begin()
        found = [reader.read(TOKENS)]
        while len(found) < 6:
            found.append(reader.read(found[-1:]))
        assert found == whole[-6:]
