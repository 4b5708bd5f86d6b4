"""From tokens to text, as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: What decoders give for bytes that are no text (yet).
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
#: How many tokens before a new one may decide about its text: a space in front, bytes of one character.
_CONTEXT = 6


class Detokenizer:
    """Turns a sequence of tokens into text, piece by piece, so that the pieces together are the whole's text.

    A token's text depends on the tokens before it (a space at the front of a word, characters of several tokens), so
    a few of them are decoded again with it. `context` are tokens that come before, whose text is not given: the end
    of the prompt that is gone on with. With `special`, special tokens are text too.
    """

    def __init__(self, tokenizer: Any, context: Sequence[int] = (), *, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._tokens = list(context[-_CONTEXT:])
        self._given = len(self._tokens)
        self._start = 0

    def feed(self, token: int) -> str:
        """The text that is complete with this token: often a word, sometimes nothing."""
        self._tokens.append(token)
        before, text = self._decode(self._given), self._decode(len(self._tokens))
        if len(text) <= len(before) or text.endswith(_INCOMPLETE):
            return ""
        self._start, self._given = self._given, len(self._tokens)
        return text[len(before) :]

    def finish(self) -> str:
        """The text of what is left, though it is no complete character."""
        before, text = self._decode(self._given), self._decode(len(self._tokens))
        self._start, self._given = self._given, len(self._tokens)
        return text[len(before) :]

    def _decode(self, end: int) -> str:
        text: str = self._tokenizer.decode(
            self._tokens[self._start : end], skip_special_tokens=not self._special, clean_up_tokenization_spaces=False
        )
        return text
