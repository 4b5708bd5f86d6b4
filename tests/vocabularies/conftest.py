from __future__ import annotations

import pytest
from tiny_models import save_tokenizer, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama", vocab_size=259, max_position_embeddings=512).save_pretrained(folder)
    save_tokenizer(folder)
    return folder
