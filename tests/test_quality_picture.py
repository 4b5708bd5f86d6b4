"""The picture of the quality benchmark: lengths are what was measured, and it can be drawn anywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # where `benchmarks` is

from benchmarks import quality_picture  # noqa: E402
from benchmarks.quality_picture import Bar, bars, draw  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


def test_lengths_are_in_proportion_and_names_are_escaped():
    picture = ET.fromstring(draw([Bar("a & b", True, 4.5, 0.05), Bar("c", False, 5.5, 0.2)]))
    widths = [float(bar.get("width", "0")) for bar in picture.iter(f"{SVG}rect")]
    assert widths[1] == pytest.approx(4 * widths[0], rel=0.01)
    texts = ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")]
    assert "woqfx: a & b" in texts and "+20.0%  5.5 bits" in texts


def test_nothing_is_fetched():
    text = draw([Bar("a", True, 4.5, 0.05)])
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "") and "url(" not in text


def test_rows_are_those_of_the_table_best_first(monkeypatch):
    measured = {
        "int4_fullrange awq": {"perplexity": 11.0, "float": 10.0},
        "int4_fullrange rtn": {"perplexity": 13.0, "float": 10.0},
        "int4_fullrange gptq no-token-weights": {"perplexity": 10.5, "float": 10.0},
        "llama.cpp Q4_0, importance matrix": {"perplexity": 12.0, "float": 10.0},
        "int4_fullrange gptq": {"failed": "it did"},
    }
    monkeypatch.setattr(quality_picture, "read", lambda name: measured)
    shown = [(bar.name, bar.ours, pytest.approx(bar.growth)) for bar in bars()]
    assert shown == [
        ("int4_fullrange awq", True, 0.1),
        ("llama.cpp Q4_0, importance matrix", False, 0.2),
        ("int4_fullrange rtn", True, 0.3),
    ]
