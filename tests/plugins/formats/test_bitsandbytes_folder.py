"""Folders that transformers saved with the real bitsandbytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import INT8_CONFIG, int8_encode
from folders_of_models import saved
from foreign_folders import quantized_folder
from safetensors.torch import load_file
from tiny_models import tiny_inputs

import woqfx
from woqfx.backend import PackedWeight

bitsandbytes = pytest.importorskip("bitsandbytes")

FOUR_BITS = {
    "nf4": {"bnb_4bit_quant_type": "nf4"},
    "nf4-nested": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"bnb_4bit_quant_type": "fp4"},
    "fp4-nested": {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "nf4-in-bf16": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": torch.bfloat16},
}


def quantized(tmp_path: Path, **config: Any) -> tuple[Path, Any]:
    """A folder that transformers saved, and the model that it saved. Rows of 64 and 128 are whole blocks."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dense = saved("llama", tmp_path, intermediate_size=128)
    model = AutoModelForCausalLM.from_pretrained(dense, quantization_config=BitsAndBytesConfig(**config))
    model.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs", model


def packed(model: torch.nn.Module) -> dict[str, PackedWeight]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedWeight)}


@pytest.mark.parametrize("config", FOUR_BITS.values(), ids=FOUR_BITS)
def test_four_bits(tmp_path, config):
    folder, theirs = quantized(tmp_path, load_in_4bit=True, **config)
    ours = woqfx.load(folder)
    weights = packed(ours)
    assert len(weights) == 14
    for name, weight in weights.items():
        stored = theirs.get_parameter(name)
        expected = bitsandbytes.functional.dequantize_4bit(stored.data, stored.quant_state)
        assert torch.equal(weight.dequantize(), expected), name
        assert weight.scheme.double_quant is config.get("bnb_4bit_use_double_quant", False)
    assert ours.generate(torch.arange(6).unsqueeze(0), max_new_tokens=3, do_sample=False).shape == (1, 9)


def test_eight_bits(tmp_path):
    folder, theirs = quantized(tmp_path, load_in_8bit=True, llm_int8_threshold=4.0)
    ours = woqfx.load(folder)
    for name, weight in packed(ours).items():
        stored = theirs.get_parameter(name)
        expected = stored.data.float() * (stored.SCB.view(-1, 1) / 127)
        assert torch.allclose(weight.dequantize(), expected, rtol=1e-6, atol=0), name
        assert (weight.scheme.compute_dtype, weight.scheme.outlier_threshold) == ("int8", 4.0)
    with torch.no_grad():
        inputs = tiny_inputs(ours)
        made, expected = ours(**inputs).logits, theirs(**inputs).logits.float()
    # Both round inputs to 8 bits; bitsandbytes does so from fp16.
    assert float((made - expected).norm() / expected.norm()) < 0.02


def test_rows_of_eight_bits_as_described(tmp_path):
    folder, dense = quantized_folder(tmp_path / "theirs", INT8_CONFIG, int8_encode, dtype=torch.float32)
    meant = load_file(dense / "model.safetensors")
    for name, weight in packed(woqfx.load(folder)).items():
        assert torch.allclose(weight.dequantize(), meant[name], rtol=1e-6, atol=0), name


def test_a_folder_that_only_says_so_is_refused(tmp_path):
    import json

    folder = saved("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(woqfx.WoqfxError, match="none of its tensors is quantized"):
        woqfx.load(folder)
