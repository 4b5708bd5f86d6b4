"""Whether a request is for this server's model, and within its limits."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from woqfx.generating import Prompt
from woqfx.serve.failures import RefusedError
from woqfx.serve.limits import Limits
from woqfx.serve.local import names_this_machine


@dataclass(frozen=True)
class Admission:
    """`name` is what clients call the model; `key` what they must send, None for nothing.

    `local` is for a server that this machine alone can reach, and refuses pages of the web that come by a browser.
    """

    name: str
    limits: Limits
    key: str | None = None
    local: bool = False

    def check_host(self, header: str | None) -> None:
        """Raises `RefusedError` (403) for a local server that `header`, of Host, calls by another name."""
        if self.local and header is not None and not names_this_machine(header):
            raise RefusedError(
                403,
                f"this server is for its own machine, and the request was for {header[:100]!r}: ask for 127.0.0.1, or "
                "start it with --api-key, or with --no-api-key to let everyone in",
            )

    def authorize(self, header: str | None) -> None:
        """Raises `RefusedError` (401) unless `header`, of Authorization, holds the key."""
        if self.key is None:
            return
        kind, _, sent = (header or "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(sent.strip().encode(), self.key.encode()):
            raise RefusedError(401, "the request has no valid API key: send it as 'Authorization: Bearer KEY'")

    def check_model(self, asked: str | None) -> None:
        """Raises `RefusedError` (404) for another model than the one that is here."""
        if asked not in (None, self.name):
            raise RefusedError(
                404, f"there is no model {asked!r} here, only {self.name!r}", param="model", code="model_not_found"
            )

    def admit(self, prompts: Sequence[Prompt], n: int, new_tokens: int | None) -> None:
        """Raises `RefusedError` (400) for more prompts, longer ones, or longer answers than allowed."""
        limits = self.limits
        if (choices := len(prompts) * n) > limits.choices:
            raise RefusedError(
                400, f"{choices} answers are asked for, and this server gives {limits.choices} at once", param="n"
            )
        longest = max(len(prompt.tokens) for prompt in prompts)
        if limits.prompt_tokens is not None and longest > limits.prompt_tokens:
            raise RefusedError(400, f"the prompt has {longest} tokens, and this server takes {limits.prompt_tokens}")
        if limits.new_tokens is not None and new_tokens is not None and new_tokens > limits.new_tokens:
            raise RefusedError(
                400, f"max_tokens is {new_tokens}, and this server gives {limits.new_tokens}", param="max_tokens"
            )
