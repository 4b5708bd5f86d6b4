"""GGUF files that are written: read back by the gguf package, by transformers and by woqfx itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from folders_of_models import saved, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from woqfx.errors import CheckpointError, PlanError
from woqfx.loading import open_checkpoint
from woqfx.transcoding import convert

SCHEMES: dict[str, dict[str, Any]] = {
    "Q8_0": {"dtype": "int8"},
    "Q4_0": {"dtype": "int4_fullrange"},
    "Q4_0-from-3-bits": {"dtype": "int3"},
    "Q5_0": {"dtype": "int5"},
    "IQ4_NL": {"dtype": "iq4_nl"},
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 128 tokens at most, as GPT-2 has it, with a token in front of texts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:100]
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    merges = [("t", "h"), ("th", "e")]
    vocabulary |= {"th": 100, "the": 101}
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", fast.convert_tokens_to_ids("<s>"))]
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return fast


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = saved("llama", tmp_path_factory.mktemp("model"))
    tokenizer().save_pretrained(path)
    return path


def exported(folder: Path, tmp_path: Path, **how: Any) -> tuple[Path, Path]:
    ours = write(folder, tmp_path / "ours", **{"group_size": 32, **how})
    convert(ours, tmp_path / "theirs", to="gguf")
    return ours, tmp_path / "theirs" / "model.gguf"


@pytest.mark.parametrize("kind", SCHEMES)
def test_the_gguf_package_reads_the_weights(folder, tmp_path, kind):
    ours, path = exported(folder, tmp_path, **SCHEMES[kind])
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    stored = open_checkpoint(ours)
    down = tensors["blk.1.ffn_down.weight"]
    assert down.tensor_type.name == kind.partition("-")[0]
    expected = stored.read_weight("model.layers.1.mlp.down_proj.weight").dequantize()
    assert np.array_equal(gguf.dequantize(down.data, down.tensor_type), expected.numpy())
    assert all(tensor.tensor_type.name == "F32" for tensor in tensors.values() if tensor.name.endswith("norm.weight"))


def test_offsets_and_every_block_type_there_and_back(tmp_path):
    """Files of gguf's own blocks become woqfx's and files again: the same bytes for every tensor."""
    from tiny_gguf import write as write_gguf

    for kind in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4"):
        base = tmp_path / kind
        base.mkdir()
        path = write_gguf(base / "tiny.gguf", "llama", gguf.GGMLQuantizationType[kind])
        convert(path, base / "woqfx")
        convert(base / "woqfx", base / "back", to="gguf")
        first = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        again = {tensor.name: tensor for tensor in gguf.GGUFReader(base / "back" / "model.gguf").tensors}
        assert set(first) == set(again)
        for name, tensor in first.items():
            assert tensor.tensor_type == again[name].tensor_type, (kind, name)
            assert np.array_equal(tensor.data, again[name].data), (kind, name)


def test_metadata_and_tokenizer(folder, tmp_path):
    ours, path = exported(folder, tmp_path, dtype="int4_fullrange")
    fields = {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
    config = json.loads((ours / "config.json").read_text())
    assert fields["general.architecture"] == "llama"
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0
    assert fields["llama.embedding_length"] == config["hidden_size"]
    assert fields["llama.attention.head_count_kv"] == config["num_key_value_heads"]
    assert fields["tokenizer.ggml.pre"] == "smollm"
    assert fields["tokenizer.ggml.merges"] == ["t h", "th e"]
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert len(fields["tokenizer.ggml.tokens"]) == config["vocab_size"]
    assert fields["tokenizer.ggml.tokens"][101] == "the"
    assert "messages" in fields["tokenizer.chat_template"]
    from woqfx.source.tokenizer import load_tokenizer

    text = "the 1984 cats"
    again = load_tokenizer(path)
    own = AutoTokenizer.from_pretrained(folder)
    assert again.tokenize(text) == own.tokenize(text)


def test_rotary_factors_of_llama_3(tmp_path):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from woqfx_formats.gguf_decoder import Decoder

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, rope_parameters=rope, max_position_embeddings=131072)
    factors = Decoder(config, "m").llama3_factors()
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** -(torch.arange(0, 128, 2) / 128)
    assert torch.allclose(plain / factors, scaled, rtol=1e-5)


def test_weights_that_do_not_fit_are_named(folder, tmp_path):
    ours = write(folder, tmp_path / "ours", dtype="nf4", rules=["*.down_proj=dtype:int4_clip,symmetric:false"])
    with pytest.raises(PlanError) as caught:
        convert(ours, tmp_path / "theirs", to="gguf")
    assert "GGUF has no table nf4" in str(caught.value)
    assert "it has zero points" in str(caught.value)
    done = convert(ours, tmp_path / "theirs", to="gguf", requantize=True)
    assert done.losses
    assert max(done.losses.values()) < 0.15


def test_scales_that_are_no_fp16_numbers(folder, tmp_path):
    ours = write(folder, tmp_path / "ours", dtype="int4_fullrange", scale_dtype="fp32")
    with pytest.raises(PlanError, match="scales are not fp16 numbers"):
        convert(ours, tmp_path / "theirs", to="gguf")


@pytest.mark.parametrize("family", ["opt", "falcon"])
def test_other_architectures_are_refused(tmp_path, family):
    ours = write(saved(family, tmp_path), tmp_path / "ours", dtype="int8")
    with pytest.raises(CheckpointError, match="GGUF is written for llama, mistral, mixtral"):
        convert(ours, tmp_path / "theirs", to="gguf")
