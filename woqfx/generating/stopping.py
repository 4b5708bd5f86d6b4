"""Stop texts: cut exactly, however tokens split them."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Passes text on until a stop text is complete, and holds back what may yet become one.

    The text is read character by character: the first stop text to be complete ends it (of two that are complete at the
    same character, the longer), so the result does not depend on how the text came in pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._held = ""
        #: The stop text that ended the text.
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """Take more text; returns what is certain to come before any stop text."""
        if self.found is not None:
            return ""
        self._held += text
        ends = [(at + len(stop), stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            end, self.found = min(ends, key=lambda hit: hit[0])
            passed, self._held = self._held[: end - len(self.found)], ""
            return passed
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        passed, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return passed

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` are the beginning, but not all, of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
