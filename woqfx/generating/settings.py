"""What a caller may ask of a generation, checked when it is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, cast

from woqfx.errors import SettingsError
from woqfx.wording import nearest

#: Other names that callers know our settings by.
ALIASES: Final = MappingProxyType({"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"})

# Fields of transformers' GenerationConfig that this package decides by itself, and what to do instead.
_OURS: Final = MappingProxyType(
    {
        "eos_token_id": "put the token's text into stop",
        "stop_strings": "use stop",
        "num_return_sequences": "ask as many times",
        "return_dict_in_generate": "an answer tells its tokens, with logprobs their scores",
        "output_scores": "use logprobs",
        "output_logits": "use logprobs",
        "output_attentions": "run the model itself",
        "output_hidden_states": "run the model itself",
    }
)


# Logits are divided by these, in float32: beyond, quotients overflow, and there is nothing to draw from.
_LEAST_TEMPERATURE: Final = 1e-6
_PENALTIES: Final = (1e-3, 1e3)

_MOST_SEED: Final = 2**64 - 1  # PyTorch's generators begin with 64 bits


@dataclass(frozen=True)
class Settings:
    """How to go on with a prompt. What is None is as the model's own generation config has it.

    `temperature` 0 always takes the likeliest token; above 0, tokens are drawn: `top_k`, `top_p` and `min_p` say from
    which. `repetition_penalty` is transformers', and counts the prompt too; `frequency_penalty` and `presence_penalty`
    are OpenAI's: taken off the logits of tokens that the answer has already, for each time and once. With a `seed`, the
    same prompt gives the same answer, whatever else runs beside it. `stop` are texts (no patterns): the answer ends
    before the first of them. With `logprobs`, an answer tells the log-probability of each token, and that many of the
    likeliest alternatives.

    After `timeout` seconds from its beginning, waiting included, a generation ends with a `GenerationError`.

    `max_length` counts the prompt too, as in transformers; the smaller of both limits holds. `more` are other fields of
    transformers' GenerationConfig, such as `num_beams` or `no_repeat_ngram_size`.

    Raises `SettingsError` with every value that cannot be meant.
    """

    max_new_tokens: int = 256
    max_length: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    timeout: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = [*self._problems()]
        if problems:
            raise SettingsError("generation settings: " + "; ".join(problems))

    @classmethod
    def read(cls, values: Mapping[str, Any], base: Settings | None = None) -> Settings:
        """The settings that `values` name, on top of `base`; a value of None leaves the base's.

        `do_sample` and `max_tokens` are understood as others mean them. Raises `SettingsError` for unknown names.
        """
        known: dict[str, Any] = (
            {} if base is None else {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
        )
        given = {ALIASES.get(name, name): value for name, value in values.items() if value is not None}
        sampled = given.pop("do_sample", None)
        if sampled is False:
            given["temperature"] = 0.0
        elif sampled and not given.get("temperature"):
            given["temperature"] = 1.0
        if "stop" in given:
            given["stop"] = (given["stop"],) if isinstance(given["stop"], str) else tuple(given["stop"])
        ours = {f.name for f in dataclasses.fields(cls)} - {"more"}
        more = {name: value for name, value in given.items() if name not in ours}
        _check_names(more, ours)
        known.update({name: value for name, value in given.items() if name in ours})
        known["more"] = {**known.get("more", {}), **more}
        return cls(**known)

    @property
    def beams(self) -> bool:
        """Whether transformers' own search decides, which sees whole answers instead of token after token."""
        return int(self.more.get("num_beams") or 1) > 1

    def described(self) -> dict[str, Any]:
        """What was set, in plain values: for logs and caches."""
        empty = Settings()
        names = [f.name for f in dataclasses.fields(self) if f.name != "more"]
        changed = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(empty, name)}
        return {"max_new_tokens": self.max_new_tokens, **changed, **self.more}

    def _problems(self) -> list[str]:
        return [
            *_below("max_new_tokens", self.max_new_tokens, 1, int),
            *_below("max_length", self.max_length, 1, int),
            *_below("temperature", self.temperature, 0, (int, float)),
            *_below("top_k", self.top_k, 1, int),
            *_outside("top_p", self.top_p, (0, 1)),
            *_outside("min_p", self.min_p, (0, 1)),
            *_undividable(self.temperature),
            *_outside("repetition_penalty", self.repetition_penalty, _PENALTIES),
            *_below("logprobs", self.logprobs, 0, int),
            *_beyond("frequency_penalty", self.frequency_penalty),
            *_beyond("presence_penalty", self.presence_penalty),
            *_below("timeout", self.timeout, 0, (int, float)),
            *(_below("seed", self.seed, 0, int) or _outside("seed", self.seed, (0, _MOST_SEED))),
            *(
                f"stop holds {text!r}: it must be a text of at least one character"
                for text in self.stop
                if not _text(text)
            ),
        ]


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _below(name: str, value: Any, least: float, kind: type | tuple[type, ...]) -> list[str]:
    if value is None or (not isinstance(value, bool) and isinstance(value, kind) and cast("float", value) >= least):
        return []
    return [f"{name} must be a {'whole ' if kind is int else ''}number of at least {least}, not {value!r}"]


def _outside(name: str, value: Any, bounds: tuple[float, float]) -> list[str]:
    least, most = bounds
    if value is None or (isinstance(value, int | float) and least <= value <= most and not isinstance(value, bool)):
        return []
    return [f"{name} must be a number from {least} to {most}, not {value!r}"]


def _beyond(name: str, value: Any) -> list[str]:
    if isinstance(value, int | float) and -2 <= value <= 2 and not isinstance(value, bool):
        return []
    return [f"{name} must be a number from -2 to 2, not {value!r}"]


def _undividable(temperature: Any) -> list[str]:
    if not isinstance(temperature, int | float) or not 0 < temperature < _LEAST_TEMPERATURE:
        return []
    return [f"temperature {temperature!r} is too small to divide by: 0 always takes the likeliest token"]


def _check_names(more: Mapping[str, Any], ours: set[str]) -> None:
    if not more:
        return
    import transformers

    config: Any = transformers.GenerationConfig
    theirs = {name for name in vars(config()) if not name.startswith("_")} - {"transformers_version"}
    problems = []
    for name in more:
        if name in _OURS:
            problems.append(f"{name} cannot be set here: {_OURS[name]}")
        elif name not in theirs:
            near = nearest(name, [*ours, *theirs, *ALIASES, "do_sample"])
            problems.append(f"there is no setting {name!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    if problems:
        raise SettingsError("generation settings: " + "; ".join(problems))
