"""Which names are suggested."""

from __future__ import annotations

import pytest

from woqfx.wording import nearest

DTYPES = ["fp4_bnb", "int2", "int4_clip", "int4_fullrange", "int8", "nf4"]


@pytest.mark.parametrize(
    ("name", "most", "expected"),
    [
        ("int4", 3, ["int4_clip", "int4_fullrange"]),
        ("int4", 1, ["int4_clip"]),
        ("nf44", 3, ["nf4"]),
        ("int4_clp", 1, ["int4_clip"]),
        ("cuda", 3, []),
        ("", 3, []),
    ],
    ids=lambda value: repr(value) if isinstance(value, str) else "",
)
def test_names_that_go_on_come_before_those_spelt_alike(name, most, expected):
    assert nearest(name, DTYPES, most) == expected
