"""The model that calibration data are for, as much of it as the data may depend on."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from woqfx.disk.manifest import CONFIG, as_json
from woqfx.errors import CalibrationError
from woqfx.original import original_of

if TYPE_CHECKING:
    from woqfx.source import Source

_NO_TOKENIZER = "pass tokenizer=..., or put the original's tokenizer.json and tokenizer_config.json beside the model"


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that is to be calibrated: `given` is the tokenizer, or where to load it from, if not the model's own."""

    source: Source
    given: Any = None

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.source.label

    @property
    def structure(self) -> nn.Module:
        """The module tree; its weights may be on the meta device."""
        return self.source.skeleton

    def load(self) -> nn.Module:
        """The whole float model, ready to run: as much memory as it takes. The caller's own object if it is live."""
        return original_of(self.source)

    def digest(self) -> str:
        """The SHA-256 of the config and all tensors in hexadecimal: reads the whole model."""
        total = hashlib.sha256(as_json(self.source.config(), sort_keys=True))
        for name in sorted(self.source.tensors):
            tensor = self.source.read(name)
            total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return total.hexdigest()

    @cached_property
    def vocabulary(self) -> int | None:
        """How many token ids the model knows; None if it has no embedding of tokens that we can find."""
        embedding = _attempt(self.structure, "get_input_embeddings")
        rows = getattr(embedding, "num_embeddings", None)
        return rows if isinstance(rows, int) else None

    @cached_property
    def positions(self) -> int | None:
        """The longest sequence that the model takes; None if its config names no limit."""
        config = getattr(self.structure, "config", None)
        text = _attempt(config, "get_text_config") or config
        limit = getattr(text, "max_position_embeddings", None)
        return limit if isinstance(limit, int) and limit > 0 else None

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, as transformers gives it. Raises `CalibrationError` if there is none."""
        if self.given is None:
            return self._own_tokenizer()
        if isinstance(self.given, str | Path):
            return _load_tokenizer(self.given, str(self.given))
        if not callable(self.given):
            raise CalibrationError(f"calibration: tokenizer is {self.given!r}, not a tokenizer of transformers")
        return self.given

    def _own_tokenizer(self) -> Any:
        files = {name: data for name, data in self.source.sidecars().items() if "token" in name or "vocab" in name}
        if not files:
            raise CalibrationError(f"{self.label} has no tokenizer to read the calibration texts with: {_NO_TOKENIZER}")
        with tempfile.TemporaryDirectory() as folder:
            for name, data in {**self.source.sidecars(), CONFIG: as_json(self.source.config())}.items():
                Path(folder, name).write_bytes(data)
            return _load_tokenizer(folder, self.label)


def _load_tokenizer(path: str | Path, label: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=Path(path).is_dir(), trust_remote_code=False)
    except Exception as error:  # transformers' parsers on files of any kind, and the Hub's own errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CalibrationError(
            f"{label} has no tokenizer that transformers can read: {reason}; {_NO_TOKENIZER}"
        ) from error


def _attempt(thing: Any, method: str) -> Any:
    """What a method of a model or config gives, None if it has no such method or is not made for it."""
    try:
        return getattr(thing, method)()
    except (AttributeError, NotImplementedError):
        return None
