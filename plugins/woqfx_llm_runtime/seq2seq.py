"""A model with an encoder as transformers sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.generic import ModelOutput

from woqfx_llm_runtime.causal_lm import RuntimeModel, check_length, check_tokens, own_cache, own_mask, refuse
from woqfx_llm_runtime.requests.errors import ContextError, RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from woqfx_llm_runtime.cache import RuntimeCache
    from woqfx_llm_runtime.requests.request import Request


@dataclass
class Source(ModelOutput):
    """What the encoder is to read, where transformers passes around what one has made.

    Keys and values of the decoder's cross attention are the engine's; the encoder runs when a row gets its slot.
    """

    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None


class RuntimeSeq2Seq(RuntimeModel):  # type: ignore[no-untyped-call]
    """An encoder-decoder language model on the native engine: see `RuntimeModel`.

    `submit` takes the source; the answer's tokens are the decoder's.
    """

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: RuntimeCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Logits float32 [B, T, V] of `decoder_input_ids` int64 [B, T], which follow those in `past_key_values`.

        `input_ids` [B, S] are the sources, needed until there are `past_key_values`; `attention_mask` [B, S] tells
        their tokens from padding at either end. `decoder_attention_mask` [B, past + T] and `logits_to_keep` are as in
        `RuntimeModel.forward`.
        """
        refuse(labels=labels, **others)
        if decoder_input_ids is None or decoder_input_ids.dim() != 2:
            raise RequestError("the runtime takes decoder_input_ids [rows, tokens]: pass tokens, or call generate")
        cache = own_cache(past_key_values, self.engine)
        if not cache.slots:
            sources = self._sources(Source(input_ids, attention_mask) if encoder_outputs is None else encoder_outputs)
            self._making_room(lambda: cache.begin_with(sources))
        keep = bool(self.config.use_cache if use_cache is None else use_cache) or past_key_values is not None
        mask = own_mask(decoder_attention_mask, decoder_input_ids, cache)
        logits = self._compute(decoder_input_ids, mask, cache, logits_to_keep)
        output = Seq2SeqLMOutput(logits=logits, past_key_values=cache if keep else None)  # type: ignore[arg-type]
        if not keep:
            cache.reset()
        return output.to_tuple() if return_dict is False else output

    def _sources(self, given: Any) -> list[Tensor]:
        """The tokens of each row's source, int64 [n], without padding. Raises `RequestError`."""
        if not isinstance(given, Source) or given.input_ids is None or given.input_ids.dim() != 2:
            raise RequestError(
                "the runtime's encoder takes input_ids [rows, tokens], and gives nothing but what its decoder reads: "
                "pass input_ids, not inputs_embeds or encoder_outputs"
            )
        check_length(given.input_ids)
        check_tokens(given.input_ids, self.engine.vocab_size)
        ids, mask = given.input_ids.to(torch.int64, copy=True), given.attention_mask
        if mask is None:
            return list(ids)
        if mask.shape != ids.shape:
            raise RequestError(f"attention_mask has shape {list(mask.shape)}, input_ids {list(ids.shape)}")
        return [_within(row, shown.bool(), number) for number, (row, shown) in enumerate(zip(ids, mask, strict=True))]

    def _prepare_text_encoder_decoder_kwargs_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any], *others: Any, **more: Any
    ) -> dict[str, Any]:
        """For `generate`: nothing is encoded before a row gets its slot."""
        model_kwargs["encoder_outputs"] = Source(inputs_tensor, model_kwargs.get("attention_mask"))
        return model_kwargs

    def _request(  # type: ignore[override]
        self,
        input_ids: Tensor,
        encoder_outputs: Any = None,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        **prepared: Any,
    ) -> Request | None:
        sources = self._sources(encoder_outputs)
        self._check_length(sources)
        return super()._request(input_ids, attention_mask=decoder_attention_mask, sources=sources, **prepared)

    def _check_length(self, sources: Sequence[Tensor]) -> None:
        longest = max(map(len, sources))
        if longest > self.engine.context:
            raise ContextError(
                f"a source of {longest} tokens is more than the runtime takes, {self.engine.context}: shorten it"
            )


def _within(row: Tensor, shown: Tensor, number: int) -> Tensor:
    places = torch.nonzero(shown).flatten()
    if not len(places) or int(places[-1] - places[0]) != len(places) - 1:
        raise RequestError(
            f"row {number} of attention_mask leaves {'out tokens between others' if len(places) else 'no token'}: the "
            "runtime takes sources that are padded at their ends"
        )
    return row[shown]
