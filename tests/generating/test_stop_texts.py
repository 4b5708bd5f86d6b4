from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woqfx.generating.stopping import StopFinder

texts = st.text("ab\n.", max_size=30)
stops = st.lists(st.text("ab\n.", min_size=1, max_size=4), max_size=3)


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character, as the definition says it."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(text=texts, stops=stops, cuts=st.lists(st.integers(0, 30)))
def test_the_cut_is_where_the_definition_says_however_the_text_comes(text: str, stops: list[str], cuts: list[int]):
    finder, passed = StopFinder(stops), ""
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for start, end in itertools.pairwise(places):
        passed += finder.feed(text[start:end])
        assert expected(text, stops)[0].startswith(passed)  # nothing is passed on that a stop text takes back
    if finder.found is None:
        passed += finder.finish()
    assert (passed, finder.found) == expected(text, stops)


@pytest.mark.parametrize("stop", [".", "+", "(", "\\d", "[a"])
def test_a_stop_text_is_no_pattern(stop: str):
    finder = StopFinder([stop])
    assert finder.feed(f"a 1 {stop} b") == "a 1 " and finder.found == stop
    assert StopFinder([stop]).feed("a1b") == "a1b"
