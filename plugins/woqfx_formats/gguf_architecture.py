"""What llama.cpp must know of a model besides its weights: settings, names of tensors, the order of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gguf
from torch import Tensor

from woqfx import StoredModel, module_tree
from woqfx.errors import CheckpointError
from woqfx_formats.gguf_decoder import Decoder
from woqfx_formats.gguf_families import FAMILIES, ROTARY, ROTARY_TENSORS, Family

#: Stacks of experts that are one parameter here and several tensors there, one below the other in each expert.
_STACKED = {".experts.gate_up_proj": ("ffn_gate_exps", "ffn_up_exps")}
#: Matrices that llama.cpp multiplies by in float32.
_FLOAT32 = ("ffn_gate_inp", "position_embd")


@dataclass(frozen=True)
class Piece:
    """One tensor of a GGUF file: a parameter's rows, or a share of them; `name` is GGUF's.

    `share` is (i, n): the i-th of n equal parts along the dimension before the last.
    """

    name: str
    share: tuple[int, int] = (0, 1)

    @property
    def kind(self) -> str:
        """What it is in its block: `attn_q`, `ffn_norm`."""
        return self.name.split(".")[-2]

    @property
    def is_float32(self) -> bool:
        """Whether it is stored in float32, of whatever type it is."""
        return self.kind in _FLOAT32

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Its shape, of a parameter [..., N, K] or [N]."""
        return whole if self.share == (0, 1) else (*whole[:-2], whole[-2] // self.share[1], whole[-1])

    def take(self, whole: Tensor) -> Tensor:
        """Its rows of a parameter."""
        return whole if self.share == (0, 1) else whole.chunk(self.share[1], dim=-2)[self.share[0]]


@dataclass(frozen=True)
class Architecture:
    """A model in GGUF's terms."""

    decoder: Decoder
    family: Family

    @classmethod
    def of(cls, model: StoredModel) -> Architecture:
        """Raises `CheckpointError` for families that are not written, and for models that GGUF has no words for."""
        found = str((model.config or {}).get("model_type"))
        if found not in FAMILIES:
            raise CheckpointError(
                f"{model.label}: GGUF is written for {', '.join(FAMILIES)}, not for {found!r:.80}; convert "
                "the original with llama.cpp"
            )
        decoder, family = Decoder(module_tree(model).config, model.label), FAMILIES[found]
        wrong = [what for what, holds in family.assumed.items() if not holds(decoder)]
        if decoder.activation not in family.activations:
            wrong.append(f"the activation is {' or '.join(family.activations)}, not {decoder.activation}")
        if decoder.rope_type not in family.rotary:
            kinds = " or ".join(family.rotary)
            wrong.append(f"rotary embeddings are of type {kinds}, not {decoder.rope_type}")
        if wrong:
            raise CheckpointError(
                f"{model.label}: a GGUF file cannot say what this {found} is: llama.cpp takes for granted that "
                f"{'; '.join(wrong)}; write another format for it"
            )
        return cls(decoder, family)

    @property
    def name(self) -> str:
        """GGUF's name of the architecture."""
        return self.family.name

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return self.decoder.integer("vocab_size")

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Add the settings to the metadata."""
        kinds: dict[type, Callable[[str, Any], None]] = {
            int: writer.add_uint32,
            float: writer.add_float32,
            bool: writer.add_bool,
            str: writer.add_string,
        }
        for key, setting in {**self.family.settings, **ROTARY[self.decoder.rope_type]}.items():
            value = setting(self.decoder)
            kinds[type(value)](f"{self.name}.{key}", value)

    @cached_property
    def _names(self) -> gguf.TensorNameMap:
        arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == self.name)
        return gguf.get_tensor_name_map(arch, self.decoder.layers)

    def pieces(self, name: str) -> tuple[Piece, ...]:
        """The tensors that hold a parameter. Raises `CheckpointError` if GGUF has no place for it."""
        for ending, parts in _STACKED.items():
            if name.endswith(ending):
                block = self._names.get_name(name.removesuffix("gate_up_proj") + "down_proj")
                stem = "" if block is None else block.rpartition(".")[0]
                return tuple(Piece(f"{stem}.{part}.weight", (i, len(parts))) for i, part in enumerate(parts))
        stem, _, suffix = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "weight")
        found = self._names.get_name(stem)
        if found is None:
            raise CheckpointError(
                f"{self.decoder.label}: GGUF has no place for {name[:200]} in an architecture {self.name}"
            )
        return (Piece(f"{found}.{suffix}"),)

    def rows(self, piece: Piece, stored: Tensor) -> Tensor:
        """The numbers or blocks of a piece, [N, ...], in llama.cpp's order of rows."""
        order = self.family.rows.get(piece.kind)
        return stored if order is None else order(stored, self.decoder)

    def is_shifted(self, name: str) -> bool:
        """Whether a parameter is stored plus one."""
        return self.family.shifted_norms and name.endswith("norm.weight")

    def extra_tensors(self) -> dict[str, Tensor]:
        """What GGUF keeps as a tensor and transformers computes: factors of rotary frequencies."""
        made = ROTARY_TENSORS.get(self.decoder.rope_type, {})
        return {name: make(self.decoder) for name, make in made.items()}
