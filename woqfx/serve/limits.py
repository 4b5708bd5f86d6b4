"""What a server gives at most."""

from __future__ import annotations

from dataclasses import dataclass

from woqfx.errors import SettingsError


@dataclass(frozen=True)
class Limits:
    """Beyond these a request is refused. Raises `SettingsError` for a limit below 1."""

    #: Requests that run or wait; more are told to come again (429).
    requests: int = 32
    #: Bytes of a request's body (413).
    body: int = 4 << 20
    #: Tokens of a prompt; None: what the model's context holds.
    prompt_tokens: int | None = None
    #: Tokens of an answer; None: what the model's context holds.
    new_tokens: int | None = None
    #: Answers to one request: prompts times `n`.
    choices: int = 32

    def __post_init__(self) -> None:
        for name in ("requests", "body", "prompt_tokens", "new_tokens", "choices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"the server's limit of {name} must be at least 1, not {value}")
