"""Families of models: from a model's config to a `Description`, for each class of transformers that is known here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from woqfx_llm_runtime.families import gemma, gpt, llama, mixtures, t5
from woqfx_llm_runtime.families.fields import Fields

if TYPE_CHECKING:
    from torch import nn

    from woqfx_llm_runtime.description import Description

#: From a module tree, which may be on the meta device, to what it computes. Raises `UnsupportedModelError`.
Family = Callable[["nn.Module"], "Description"]

_KNOWN: Mapping[str, Callable[[Fields, Any], Description]] = {
    "GPT2LMHeadModel": gpt.gpt2,
    "GPTNeoXForCausalLM": gpt.gpt_neox,
    "Gemma2ForCausalLM": gemma.gemma2,
    "Gemma3ForCausalLM": gemma.gemma3,
    "GraniteForCausalLM": llama.granite,
    "LlamaForCausalLM": llama.llama,
    "MT5ForConditionalGeneration": t5.mt5,
    "MistralForCausalLM": llama.mistral,
    "MixtralForCausalLM": mixtures.mixtral,
    "OPTForCausalLM": gpt.opt,
    "Olmo2ForCausalLM": llama.olmo2,
    "Phi3ForCausalLM": llama.phi3,
    "Qwen2ForCausalLM": llama.qwen2,
    "Qwen3ForCausalLM": llama.qwen3,
    "Qwen3MoeForCausalLM": mixtures.qwen3_moe,
    "SmolLM3ForCausalLM": llama.smollm3,
    "T5ForConditionalGeneration": t5.t5,
    "UMT5ForConditionalGeneration": t5.umt5,
}

#: The classes of transformers that are known.
NAMES = tuple(sorted(_KNOWN))


def family_of(model: nn.Module) -> Family | None:
    """The family of a model of transformers, if it is one of these. A subclass is another model."""
    kind = type(model)
    if not kind.__module__.startswith("transformers.models.") or kind.__name__ not in _KNOWN:
        return None
    read = _KNOWN[kind.__name__]

    def describe(model: nn.Module) -> Description:
        fields = Fields(model.config)
        description = read(fields, model)
        fields.finish()
        return description

    return describe
