"""Charts: that what is drawn is what is known."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woqfx.report.svg import bars, color_key, color_table, line_chart, text

HOSTILE = '</title><script>alert("1")</script>&amp;\'"><x y=\'z'
VALUES = st.none() | st.floats(0, 1e12, allow_nan=False)


def elements(chart, tag):
    (svg,) = re.findall(r"<svg.*</svg>", chart)
    return [element for element in ET.fromstring(svg).iter() if element.tag == tag]


def shown(value):
    return f"{value:.3g}"


def test_lines_go_up_with_the_logarithm():
    chart = line_chart({"a": [1e-4, 1e-3, 1e-2], "b": [1e-3, None, 1e-3]}, ["0", "1", "2"], shown)
    places = {e.find("title").text: (float(e.get("cx")), float(e.get("cy"))) for e in elements(chart, "circle")}
    xs = [places[f"{n}, a: {v}"][0] for n, v in enumerate(("0.0001", "0.001", "0.01"))]
    ys = [places[f"{n}, a: {v}"][1] for n, v in enumerate(("0.0001", "0.001", "0.01"))]
    assert xs[2] - xs[1] == pytest.approx(xs[1] - xs[0], abs=0.11) and xs[1] > xs[0]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.11) and ys[0] > ys[1]
    assert places["0, b: 0.001"][1] == places["2, b: 0.001"][1] == ys[1]
    assert len(places) == 5


def test_a_gap_in_a_line_is_a_gap():
    chart = line_chart({"a": [1.0, None, 2.0, 3.0]}, list("0123"), shown)
    (path,) = elements(chart, "path")
    assert re.sub(r"[\d. ]+", "", path.get("d")) == "MML"


def test_the_scale_says_what_the_lines_are_at():
    chart = line_chart({"a": [0.011, 0.9]}, ["x", "y"], shown)
    labels = {e.text: float(e.get("y")) for e in elements(chart, "text")}
    assert list(labels)[:7] == ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]
    assert labels["0.01"] - labels["0.1"] == pytest.approx(labels["0.1"] - labels["1"], abs=0.2)


def test_bars_are_as_long_as_their_values():
    heights = [float(e.get("height")) for e in elements(bars([1.0, None, 4.0, 0.0], list("abcd"), shown), "rect")]
    assert heights == [pytest.approx(30), pytest.approx(120), 0]


def test_cells_are_as_strong_as_the_shade_says():
    chart = color_table({"row": [1.0, None, 0.0]}, list("abc"), shown, lambda value: ("plain", value))
    colored = [e for e in elements(chart, "rect") if e.get("fill")]
    assert [(e.find("title").text, e.get("fill-opacity")) for e in colored] == [
        ("a row: 1", "1.00"),
        ("c row: 0", "0.06"),
    ]


@given(st.dictionaries(st.text(max_size=40), st.lists(VALUES, min_size=3, max_size=3), max_size=4))
def test_every_chart_is_well_formed_whatever_it_shows(rows):
    columns = [HOSTILE, "1", ""]
    charts = [line_chart(rows, columns, shown), color_table(rows, columns, shown, lambda v: ("good", v))]
    charts += [bars(values, columns, shown) for values in rows.values()]
    for chart in charts:
        for svg in re.findall(r"<svg.*?</svg>", chart, re.DOTALL):
            clean = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "", svg)
            ET.fromstring(clean)


@pytest.mark.parametrize("values", [[], [None], [0.0], [None, 0.0]])
def test_nothing_to_show_is_no_chart(values):
    columns = [str(index) for index in range(len(values))]
    assert line_chart({"a": values}, columns, shown) == "" == bars(values, columns, shown)


def test_names_are_text():
    assert (
        text(HOSTILE)
        == "&lt;/title&gt;&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;amp;&#x27;&quot;&gt;&lt;x y=&#x27;z"
    )
    assert len(text("x" * 10_000)) == 201


def test_a_thousand_columns_are_not_named_on_top_of_each_other():
    chart = line_chart({"a": [1.0] * 1000}, [str(n) for n in range(1000)], shown)
    names = [float(e.get("x")) for e in elements(chart, "text") if e.get("text-anchor") == "middle"]
    assert len(names) > 10 and min(b - a for a, b in itertools.pairwise(names)) > 25


def test_a_key_has_its_ends():
    assert re.findall(r"^<p class=\"key\">(.*?) <i.*</i> (.*?)</p>$", color_key(["plain"], "<1", "9")) == [
        ("&lt;1", "9")
    ]
