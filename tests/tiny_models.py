"""Tiny random models of the usual families: large enough to have structure, small enough to build in milliseconds.

No two of hidden, intermediate and vocabulary size are equal, so a mixed-up dimension shows.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    """The config of a tiny model of `family`; `changes` go to the config's class, under its own names."""
    import transformers

    class_name, values = {**_FAMILIES, **_FURTHER}[family]
    config: PreTrainedConfig = getattr(transformers, f"{class_name}Config")(**{**values(), **changes})
    return config


def tiny_model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A tiny random model of `family` in evaluation mode; the same for the same arguments.

    Every parameter is random, norms and biases too, so that none of them can be lost unseen.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = tiny_config(family, **changes)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = auto.from_config(config, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            center = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(center + 0.1 * noise)
    return model.eval()


def tiny_inputs(model: PreTrainedModel, *, seed: int = 0, length: int = 9) -> dict[str, torch.Tensor]:
    """Token ids [2, length] that the model takes, also as the decoder's if it has one."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, model.config.vocab_size, (2, length), generator=generator)
    return {"input_ids": tokens, **({"decoder_input_ids": tokens[:, :4]} if model.config.is_encoder_decoder else {})}


def _llama_like(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 128,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


def _gpt_like(**more: Any) -> dict[str, Any]:
    return {"vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **more}


_FAMILIES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "llama": ("Llama", _llama_like),
    "mistral": ("Mistral", _llama_like),
    "qwen2": ("Qwen2", lambda: _llama_like(tie_word_embeddings=True)),
    "qwen3": ("Qwen3", _llama_like),
    "phi3": ("Phi3", _llama_like),
    "gemma2": ("Gemma2", lambda: _llama_like(sliding_window=16)),
    "gemma3": ("Gemma3Text", lambda: _llama_like(sliding_window=16)),
    "gpt2": ("GPT2", lambda: _gpt_like(n_embd=64, n_layer=2, n_head=4, n_inner=96, n_positions=64)),
    "opt": (
        "OPT",
        lambda: _gpt_like(
            hidden_size=64,
            word_embed_proj_dim=64,
            ffn_dim=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        ),
    ),
    "gpt_neox": (
        "GPTNeoX",
        lambda: _gpt_like(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        ),
    ),
    "bloom": ("Bloom", lambda: _gpt_like(hidden_size=64, n_layer=2, n_head=4)),
    "falcon": (
        "Falcon",
        lambda: _gpt_like(hidden_size=64, ffn_hidden_size=96, num_hidden_layers=2, num_attention_heads=4),
    ),
    "mixtral": ("Mixtral", lambda: _llama_like(num_local_experts=4, num_experts_per_tok=2)),
    "qwen3_moe": (
        "Qwen3Moe",
        lambda: _llama_like(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, decoder_sparse_step=1),
    ),
    "lfm2": (
        "Lfm2",
        lambda: _gpt_like(
            hidden_size=64,
            intermediate_size=96,
            block_auto_adjust_ff_dim=False,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            layer_types=["conv", "full_attention"],
            max_position_embeddings=64,
            tie_word_embeddings=True,
        ),
    ),
    "t5": (
        "T5",
        lambda: {
            "vocab_size": 128,
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 96,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": (
        "Bart",
        lambda: _gpt_like(
            d_model=64,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=96,
            decoder_ffn_dim=96,
            max_position_embeddings=64,
            decoder_start_token_id=2,
            forced_eos_token_id=2,
        ),
    ),
}

#: The usual families, which tests go through; `tiny_config` and `tiny_model` also take those of `_FURTHER`.
FAMILIES = tuple(_FAMILIES)

_FURTHER: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "smollm3": ("SmolLM3", _llama_like),
    "granite": ("Granite", _llama_like),
    "olmo2": ("Olmo2", _llama_like),
    "mt5": ("MT5", _FAMILIES["t5"][1]),
    "umt5": ("UMT5", _FAMILIES["t5"][1]),
}


def processor_seconds(work: Callable[[], object]) -> float:
    """What `work` costs this process: for ratios, never against a clock."""
    start = time.process_time()
    work()
    return time.process_time() - start


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of single bytes: 256 of them and three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "
    fast.save_pretrained(folder)
