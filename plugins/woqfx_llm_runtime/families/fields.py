"""A model's config, read so that nothing in it is overlooked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from woqfx.errors import WoqfxError

T = TypeVar("T")

#: Fields that say nothing of what a decoder computes when it generates: training, bookkeeping, special tokens, and what
#: shapes of tensors say as well.
_HARMLESS = frozenset(
    {"architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label", "init_std"}
    | {"initializer_range", "is_decoder", "is_encoder_decoder", "label2id", "output_hidden_states", "pad_token_id"}
    | {"output_router_logits", "pretraining_tp", "problem_type", "reorder_and_upcast_attn", "return_dict"}
    | {
        "decoder_start_token_id",
        "initializer_factor",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "tie_word_embeddings",
        "transformers_version",
        "use_cache",
    }
)
_HARMLESS_WORDS = ("dropout", "pdrop", "layerdrop", "summary_")


class UnsupportedModelError(WoqfxError):
    """The runtime cannot run a model; `problems` names each thing that is missing."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))


class Fields:
    """The fields of a transformers config. Reading one marks it as honoured; `finish` refuses if one was left over.

    So a family that forgets a field, or a config with a field that the family does not know, gives an error where the
    field is not at its default, and never other arithmetic. Problems are collected: `finish` raises them together.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.problems: list[str] = []
        self._read = set[str]()

    def get(self, name: str) -> Any:
        """A field's value; None where the config has no such field."""
        self._read.add(name)
        return getattr(self.config, name, None)

    def size(self, name: str) -> int:
        """A count or a dimension. What is none is a problem, and read as 1."""
        value = self.get(name)
        if type(value) is int and value > 0:
            return value
        self.problems.append(f"{name} is {_short(value)}, not a positive whole number")
        return 1

    def number(self, name: str) -> float:
        """A factor, or the epsilon of a norm. What is none is a problem, and read as 1."""
        value = self.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
            return float(value)
        self.problems.append(f"{name} is {_short(value)}, not a number")
        return 1.0

    def flag(self, name: str) -> bool:
        """A switch; what is not there is off."""
        return bool(self.get(name))

    def choice(self, name: str, known: Mapping[str, T]) -> T:
        """What the field's value stands for in `known`. Another value is a problem, and read as the first."""
        value = self.get(name)
        if isinstance(value, str) and value in known:
            return known[value]
        self.problems.append(f"{name} {_short(value)} is not one of {', '.join(known)}")
        return next(iter(known.values()))

    def refuse_unless(self, name: str, *accepted: Any) -> None:
        """A field that the runtime has only one way for."""
        value = self.get(name)
        if value not in accepted:
            self.problems.append(f"{name} is {_short(value)}: the runtime knows only {_short(accepted[0])}")

    def layer_types(self, count: int) -> tuple[str, ...]:
        """Which attention each layer has: "full_attention" or "sliding_attention"."""
        types = self.get("layer_types")
        if types is None:
            return ("full_attention",) * count
        unknown = sorted({str(one) for one in types} - {"full_attention", "sliding_attention"})
        if unknown or len(types) != count:
            what = f"{', '.join(unknown)}" if unknown else f"{len(types)} entries for {count} layers"
            self.problems.append(f"layer_types: {what}; the runtime knows full_attention and sliding_attention")
            return ("full_attention",) * count
        return tuple(types)

    def finish(self) -> None:
        """Raise `UnsupportedModelError` with every problem, and with every field that was not read and not at rest."""
        for field in dataclasses.fields(self.config):
            if field.name in self._read or field.name in _HARMLESS or field.name.startswith("_"):
                continue
            if any(word in field.name for word in _HARMLESS_WORDS):
                continue
            value = getattr(self.config, field.name, None)
            if value != _default(field):
                self.problems.append(f"{field.name} is {_short(value)}, which the runtime does not know")
        if getattr(self.config, "is_causal", True) is False:
            self.problems.append("is_causal is False: the runtime knows causal models only")
        if self.problems:
            raise UnsupportedModelError(self.problems)

    def overlooked(self) -> set[str]:
        """The config's fields that were neither read nor are harmless, whatever their value: for tests of families."""
        declared = {field.name for field in dataclasses.fields(self.config)} - self._read - _HARMLESS
        return {name for name in declared if not any(word in name for word in _HARMLESS_WORDS)}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
