"""An encoder-decoder of flan-t5-base's sizes (arXiv 2210.11416), whose weights are to be random.

`benchmarks.make_model` writes it; the names are those of transformers' `T5ForConditionalGeneration`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from benchmarks.make_model import Shape


@dataclass(frozen=True)
class T5:
    """An encoder-decoder's sizes, under the names of its `config.json`."""

    d_model: int = 768
    d_ff: int = 2048
    d_kv: int = 64
    num_heads: int = 12
    num_layers: int = 12
    num_decoder_layers: int = 12
    vocab_size: int = 32128
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128

    def config(self) -> dict[str, object]:
        """The content of `config.json`."""
        return {
            "architectures": ["T5ForConditionalGeneration"],
            "model_type": "t5",
            "dtype": "bfloat16",
            "is_encoder_decoder": True,
            "feed_forward_proj": "gated-gelu",
            "layer_norm_epsilon": 1e-6,
            "tie_word_embeddings": False,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
            **asdict(self),
        }

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Every tensor's name and shape, in the order of the file."""
        yield "shared.weight", (self.vocab_size, self.d_model)
        yield from self._stack("encoder", self.num_layers, ("SelfAttention",))
        yield from self._stack("decoder", self.num_decoder_layers, ("SelfAttention", "EncDecAttention"))
        yield "lm_head.weight", (self.vocab_size, self.d_model)

    def _stack(self, stack: str, layers: int, attentions: tuple[str, ...]) -> Iterator[tuple[str, Shape]]:
        hidden, inner = self.d_model, self.num_heads * self.d_kv
        for i in range(layers):
            for number, attention in enumerate(attentions):
                part = f"{stack}.block.{i}.layer.{number}"
                for name in "qkv":
                    yield f"{part}.{attention}.{name}.weight", (inner, hidden)
                yield f"{part}.{attention}.o.weight", (hidden, inner)
                if i == 0 and number == 0:
                    buckets = (self.relative_attention_num_buckets, self.num_heads)
                    yield f"{part}.{attention}.relative_attention_bias.weight", buckets
                yield f"{part}.layer_norm.weight", (hidden,)
            part = f"{stack}.block.{i}.layer.{len(attentions)}"
            yield f"{part}.DenseReluDense.wi_0.weight", (self.d_ff, hidden)
            yield f"{part}.DenseReluDense.wi_1.weight", (self.d_ff, hidden)
            yield f"{part}.DenseReluDense.wo.weight", (hidden, self.d_ff)
            yield f"{part}.layer_norm.weight", (hidden,)
        yield f"{stack}.final_layer_norm.weight", (hidden,)
