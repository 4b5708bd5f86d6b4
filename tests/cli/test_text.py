"""Numbers, names and tables for people."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from woqfx import Scheme
from woqfx.cli import text


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (text.size(0), "0 bytes"),
        (text.size(999), "999 bytes"),
        (text.size(1000), "1.0 kB"),
        (text.size(98_362_432), "98.4 MB"),
        (text.size(2.2e9), "2.2 GB"),
        (text.count(512), "512"),
        (text.count(134_515_008), "134.5 M"),
        (text.duration(0.04), "0.0 s"),
        (text.duration(59.7), "1 min 0 s"),
        (text.duration(250), "4 min 10 s"),
        (text.duration(7384), "2 h 3 min"),
        (text.shape((8, 576, 1536)), "8 x 576 x 1536"),
        (text.layer("model.layers.0.fc.weight"), "model.layers.0.fc"),
        (text.layer("experts.gate_up_proj"), "experts.gate_up_proj"),
        (text.scheme(None), "kept"),
        (text.scheme(Scheme("nf4")), "nf4 group 32"),
        (text.scheme(Scheme("int8", -1, symmetric=False, scale_dtype="bf16")), "int8 per row asym bf16"),
        (text.scheme(Scheme("nf4", double_quant=True, compute_dtype="int8")), "nf4 group 32 double-quant in int8"),
    ],
)
def test_words(found, expected):
    assert found == expected


def shown(width: int) -> list[str]:
    out = Console(file=io.StringIO(), width=width, markup=False)
    grid = text.Grid("name", "why", "size", numbers=("size",), expendable=("why",))
    grid.add("model.layers.0.[x]", "because it is so", "1.0 MB")
    grid.show(out)
    return out.file.getvalue().splitlines()


def test_a_table_on_a_wide_terminal():
    heading, _, row, empty = shown(80)
    assert heading.split() == ["name", "why", "size"]
    assert "model.layers.0.[x]" in row
    assert "because it is so" in row
    assert empty == ""


def test_a_narrow_terminal_loses_the_expendable_column_and_says_so():
    heading, _, row, note, _ = shown(40)
    assert heading.split() == ["name", "size"]
    assert row.split() == ["model.layers.0.[x]", "1.0", "MB"]
    assert note == "(no room for: why)"


def test_a_very_narrow_one_folds_names_and_loses_nothing_else():
    lines = shown(22)
    assert "".join(line.split()[0] for line in lines[2:4]) == "model.layers.0.[x]"
    assert "1.0 MB" in lines[2]


def test_facts_are_not_wrapped():
    out = Console(file=io.StringIO(), width=20, markup=False)
    text.facts(out, {"a": "x" * 50, "long": "first\nsecond [y]"})
    assert out.file.getvalue() == f"a     {'x' * 50}\nlong  first\n      second [y]\n"


def test_nothing_is_said_while_one_waits_off_a_terminal(capsys):
    with text.waiting("loading"), text.bar("measuring") as advance:
        advance(1, 2)
    assert capsys.readouterr() == ("", "")
