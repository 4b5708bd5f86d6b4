"""The model of `make_model` as a GGUF file in bfloat16, for llama.cpp: `python -m benchmarks.peers.make_gguf [CACHE]`.

The weights are the same numbers under llama.cpp's names. Rows of the query and key projections are in the order that
llama.cpp's rotary embedding expects (pairs side by side), as its own converter puts them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from benchmarks.cache import default_cache
from benchmarks.make_model import Llama, make_model
from woqfx.disk.tensorfile import TensorFile

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def make_gguf(folder: Path, target: Path, model: Llama | None = None) -> Path:
    """Write the model in `folder` to `target`, a tensor at a time, unless it is there; returns `target`."""
    if target.exists():
        return target
    model = model or Llama()
    unfinished = target.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, "llama")
    _describe(writer, model)
    with TensorFile(folder / "model.safetensors") as file:
        names = {name: gguf_name(name) for name in file.entries}
        for name, renamed in names.items():
            shape, kind = file.entries[name].shape, _kind(file.read(name))
            size = 4 if kind == gguf.GGMLQuantizationType.F32 else 2
            writer.add_tensor_info(renamed, shape, np.dtype(np.float32), size * int(np.prod(shape)), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in names:
            writer.write_tensor_data(_data(name, file.read(name), model))
    writer.close()
    return unfinished.rename(target)


def _describe(writer: gguf.GGUFWriter, model: Llama) -> None:
    writer.add_block_count(model.num_hidden_layers)
    writer.add_context_length(model.max_position_embeddings)
    writer.add_embedding_length(model.hidden_size)
    writer.add_feed_forward_length(model.intermediate_size)
    writer.add_head_count(model.num_attention_heads)
    writer.add_head_count_kv(model.num_key_value_heads)
    writer.add_layer_norm_rms_eps(model.rms_norm_eps)
    writer.add_rope_dimension_count(model.hidden_size // model.num_attention_heads)
    writer.add_vocab_size(model.vocab_size)
    writer.add_tokenizer_model("no_vocab")  # llama.cpp loads no file that says nothing of one
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def gguf_name(name: str) -> str:
    """What llama.cpp calls a tensor."""
    module = name.removesuffix(".weight")
    if module.startswith("model.layers."):
        _, _, number, inner = module.split(".", 3)
        return f"blk.{number}.{_NAMES[inner]}.weight"
    return f"{_NAMES[module]}.weight"


def _kind(weight: Tensor) -> gguf.GGMLQuantizationType:
    whole = weight.dim() == 1 or weight.dtype == torch.float32
    return gguf.GGMLQuantizationType.F32 if whole else gguf.GGMLQuantizationType.BF16


def _data(name: str, weight: Tensor, model: Llama) -> np.ndarray:
    if weight.dim() == 1:  # llama.cpp wants norms in float32
        return weight.float().numpy()
    if name.endswith("q_proj.weight"):
        weight = _paired(weight, model.num_attention_heads)
    elif name.endswith("k_proj.weight"):
        weight = _paired(weight, model.num_key_value_heads)
    return weight.view(torch.uint8).numpy()


def _paired(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from two halves to pairs."""
    n, k = weight.shape
    return weight.view(heads, 2, n // heads // 2, k).transpose(1, 2).reshape(n, k)


def main() -> None:
    """Make the file in the cache folder that the command line names."""
    parser = argparse.ArgumentParser(description="Write the 1.1B model as GGUF in bf16.")
    parser.add_argument("cache", nargs="?", type=Path, default=default_cache(), help="where (default: %(default)s)")
    cache = parser.parse_args().cache
    print(make_gguf(make_model(cache / "llama-1.1b"), cache / "llama-1.1b-bf16.gguf"))


if __name__ == "__main__":
    main()
