"""Answers in the shapes of OpenAI's interface."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import woqfx
from woqfx.generating import Answer, TextGenerator, TokenScore
from woqfx.generating.tools import ToolReply


class Envelope:
    """What all parts of one answer have in common."""

    def __init__(self, kind: str, prefix: str, model: str) -> None:
        self._kind = kind
        self._common = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"woqfx-{woqfx.__version__}",
        }

    def whole(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int]) -> dict[str, Any]:
        """The whole answer."""
        return {**self._common, "object": self._kind, "choices": [*choices], "usage": usage}

    def event(self, choices: Sequence[Mapping[str, Any]], *, chunk: str, usage: Mapping[str, int] | None = None) -> str:
        """A part of a stream, as a server-sent event."""
        told = {} if usage is None else {"usage": usage}
        return event({**self._common, "object": chunk, "choices": [*choices], **told})


def event(data: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


#: How a stream ends.
DONE = "data: [DONE]\n\n"


def usage(prompts: int, answers: Sequence[Answer]) -> dict[str, int]:
    """The numbers of tokens: of the prompts together, and of all answers."""
    new = sum(answer.new_tokens for answer in answers)
    return {"prompt_tokens": prompts, "completion_tokens": new, "total_tokens": prompts + new}


def chat_logprobs(generator: TextGenerator, scores: Sequence[TokenScore]) -> dict[str, Any]:
    """Log-probabilities as chats have them."""
    text = generator.tokenizer.decode

    def shown(token: int, logprob: float) -> dict[str, Any]:
        written = text([token])
        return {"token": written, "logprob": logprob, "bytes": [*written.encode()]}

    return {
        "content": [
            shown(score.token, score.logprob)
            | {"top_logprobs": [shown(token, logprob) for token, logprob in score.top]}
            for score in scores
        ],
        "refusal": None,
    }


def completion_logprobs(
    generator: TextGenerator, scores: Sequence[TokenScore], *, offset: int = 0, first: int | None = None
) -> dict[str, Any]:
    """Log-probabilities as completions have them; `first` is a prompt's first token, which nothing predicts."""
    text = generator.tokenizer.decode
    tokens = [text([token]) for token in [*([] if first is None else [first]), *(score.token for score in scores)]]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    unknown: list[None] = [] if first is None else [None]
    return {
        "tokens": tokens,
        "token_logprobs": [*unknown, *(score.logprob for score in scores)],
        "top_logprobs": [*unknown, *(_alternatives(text, score) for score in scores)],
        "text_offset": offsets,
    }


def _alternatives(text: Any, score: TokenScore) -> dict[str, float]:
    """By text; where two tokens have one text (parts of a character), the likelier. The chosen one is always there."""
    found: dict[str, float] = {}
    for token, logprob in [*score.top, (score.token, score.logprob)]:
        written = text([token])
        found[written] = max(logprob, found.get(written, logprob))
    return found


def tool_calls(reply: ToolReply, *, streamed: bool = False) -> list[dict[str, Any]]:
    """Calls of tools, with their arguments as JSON."""
    return [
        ({"index": at} if streamed else {})
        | {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for at, call in enumerate(reply.calls)
    ]
