"""What calibration data were asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from woqfx.calibration.contract import CalibrationSet
from woqfx.errors import CalibrationError

#: A name, a file, or the data themselves: texts, conversations, tokens, a `datasets.Dataset`, a `DataLoader`, a set.
Data: TypeAlias = "str | Path | Iterable[Any] | CalibrationSet"


@dataclass(frozen=True, eq=False)
class CalibrationRequest:
    """Which data, and how much: `samples` sequences of `seq_len` tokens.

    `data` is the name of a set (`python-docs`), a file (.txt, .jsonl, .json, .csv, .parquet), a set on the Hugging Face
    Hub (`organisation/name`), or the data themselves. `seed` decides which of the texts are taken. `column` and `split`
    say where in a table or set the texts are. `tokenizer` stands in for the model's own: one that transformers loaded,
    or the folder or name to load it from.

    Raises `CalibrationError` for numbers that cannot be meant.
    """

    data: Data = "python-docs"
    samples: int = 128
    seq_len: int = 512
    seed: int = 0
    column: str | None = None
    split: str | None = None
    tokenizer: Any = None

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("seq_len", 2), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value < 1 << 63:
                raise CalibrationError(f"calibration: {name} must be a whole number from {least}, not {value!r}")

    @property
    def label(self) -> str:
        """What messages and manifests call the data; of a file its name alone, so that no folder is told."""
        if isinstance(self.data, Path):
            return self.data.name
        if isinstance(self.data, CalibrationSet):
            return self.data.name
        if not isinstance(self.data, str):
            return f"a {type(self.data).__name__} of the caller's"
        return Path(self.data).name if is_path(self.data) else self.data

    @property
    def choices(self) -> list[str]:
        """What of it is somebody's choice, in words: what is not as it is by default."""
        own = [] if isinstance(self.data, str) and self.data == CalibrationRequest.data else [self.label]
        for name in ("samples", "seq_len", "seed", "column", "split"):
            value = getattr(self, name)
            own += [] if value == getattr(CalibrationRequest, name) else [f"{name} {value}"]
        return own

    def to_json(self) -> dict[str, Any]:
        """For manifests and journals."""
        where = {name: value for name in ("column", "split") if (value := getattr(self, name)) is not None}
        return {"data": self.label, "samples": self.samples, "seq_len": self.seq_len, "seed": self.seed, **where}


def is_path(data: str) -> bool:
    """Whether a string means a file: it is there, or its name ends like one that woqfx reads."""
    from woqfx.calibration.files import READERS

    return Path(data).suffix.lower() in READERS or Path(data).exists()
