"""Where an adapter's model comes from: loaded when it is first needed, and told apart from every other."""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from woqfx import api
from woqfx.errors import SettingsError
from woqfx.generating import TextGenerator
from woqfx.loading import is_quantized
from woqfx.original import load_original
from woqfx.provenance import Provenance
from woqfx.source.tokenizer import load_tokenizer


class ModelSource(Protocol):
    """Something that a text generator can be had from."""

    def load(self) -> TextGenerator:
        """Load it."""
        ...

    def identity(self) -> dict[str, Any]:
        """What it is, in plain values: no two models, nor two ways to quantize one, have the same. Loads nothing."""
        ...


@dataclass(frozen=True)
class NamedModel:
    """A checkpoint of woqfx, or a model that is quantized when it is loaded; as it is, without a `quantization`."""

    model: str
    tokenizer: str | None
    backend: str
    backend_options: Mapping[str, Any]
    quantization: Any
    batch_size: int

    def load(self) -> TextGenerator:
        """Load it. Raises woqfx's errors of loading and quantizing."""
        if self.quantization is not None:
            model = api.quantize(
                self.model,
                config=self.quantization,
                backend=self.backend,
                backend_options=self.backend_options,
            )
        elif is_quantized(Path(self.model)):
            model = api.load(self.model, backend=self.backend, backend_options=self.backend_options)
        elif self.backend != "torch_cpu":
            raise SettingsError(f"{self.model} is not quantized, and {self.backend} runs quantized models alone")
        elif self.backend_options:
            named = ", ".join(self.backend_options)
            raise SettingsError(f"{self.model} is not quantized, and runs without a backend: leave out {named}")
        else:
            model = load_original(self.model)
        return TextGenerator(model, load_tokenizer(self.tokenizer or self.model), batch_size=self.batch_size)

    def identity(self) -> dict[str, Any]:
        """Names, options, the quantization, and, of a folder, which files are in it, how large and how old."""
        return {
            "model": self.model,
            "tokenizer": self.tokenizer,
            "backend": self.backend,
            "backend_options": plain(self.backend_options),
            "quantization": plain(self.quantization),
            "files": digest_of_files(Path(self.model)),
        }


@dataclass(frozen=True)
class LiveModel:
    """A model that is loaded. If the caller did it, it is like no other: nobody can tell what was done to it."""

    generator: TextGenerator
    #: What is known of it.
    known: Mapping[str, Any] = field(default_factory=dict)
    #: Empty if what is known tells it from all others.
    number: str = field(default_factory=lambda: uuid.uuid4().hex)

    def load(self) -> TextGenerator:
        """The caller's own."""
        return self.generator

    def identity(self) -> dict[str, Any]:
        """A number, and the request by which woqfx quantized it."""
        model = self.generator.model
        origin = getattr(model, "woqfx_provenance", None)
        request = dict(origin.request) if isinstance(origin, Provenance) else None
        known = {name: plain(value) for name, value in self.known.items()}
        return {"model": name_of(model), "live": self.number, "quantization": plain(request), **known}


class Lazy:
    """A source's text generator, loaded once, by the first who needs it. Copies share it; a pickle holds the source."""

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self._lock = threading.Lock()
        self._generator: TextGenerator | None = None

    def get(self) -> TextGenerator:
        """The text generator, which may take a while."""
        with self._lock:
            if self._generator is None:
                self._generator = self.source.load()
            return self._generator

    def __deepcopy__(self, memo: Any) -> Lazy:
        return self

    def __copy__(self) -> Lazy:
        return self

    def __reduce__(self) -> Any:
        return Lazy, (self.source,)


def name_of(model: Any) -> str:
    """What a loaded model is called: where it was loaded from, else its class."""
    return getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__


def plain(configuration: Any) -> Any:
    """A configuration in values that JSON has: for logs and caches."""
    if configuration is None:
        return None
    values = configuration.to_dict() if hasattr(configuration, "to_dict") else configuration
    return json.loads(json.dumps(values, sort_keys=True, default=_named))


def _named(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def digest_of_files(path: Path) -> str | None:
    """A digest of what is in a folder or file, by names, sizes and times; None for a name on the Hub."""
    if not path.exists():
        return None
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files]
    facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps([str(path.resolve()), facts]).encode()).hexdigest()
