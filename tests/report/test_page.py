"""The page: whole, self-contained, and harmless whatever the folder holds."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser

import pytest
from report.conftest import BLOCKS, REQUEST, TIMES

from woqfx.report import read_report, write_page

HOSTILE = '"><script>alert(1)</script><img src=http://evil.example onerror=x>'


class Page(HTMLParser):
    """A page taken apart: its elements, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += f" {data}"


def page_of(folder):
    page = write_page(read_report(folder))
    parsed = Page(page)
    assert parsed.open == []
    return page, parsed


def headings(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_what_a_calibrated_run_shows(told):
    page, parsed = page_of(told())
    assert headings(page) == [
        "How it was made",
        "Error of each block&#x27;s output",
        "Error of each layer",
        "Rescaling",
        "What was chosen",
        "Experts",
        "Time and memory",
        "Error of each weight",
        "Bits",
        "Every layer",
    ]
    for shown in (
        "0, rounded to nearest as it came: 0.04",
        "1, rounded: 0.005",
        "0 self_attn.q_proj: 0.001",
        "0 self_attn.q_proj: -50%",
        "1 mlp.experts.down_proj: +50%",
        "1 input_layernorm: 0.75",
        "it changes the output",
        "0.85 everywhere",  # the mean of the clips
        "200 everywhere",
        "why: as told",
        "1 model.layers.0.mlp.experts.down_proj: 3",
        "3 tokens are too few",
        "0: 4.5 s",
        "1.5 GB",
        "awq+gptq",
        "data python-docs, samples 32",
        "-75%",  # of the blocks' output error, in all
        "int8 group 32",
    ):
        assert shown in parsed.text, shown


def test_of_a_feed_that_was_not_used_no_choice_is_shown(told):
    _, parsed = page_of(told())
    assert "0 v_proj: 0.5" in parsed.text and "1 v_proj: 0.5" not in parsed.text


def test_what_a_checkpoint_without_a_report_shows(plain):
    page, parsed = page_of(plain)
    assert headings(page) == ["How it was made", "Error of each weight", "Bits", "Every layer"]
    assert "14 weights quantized by rtn" in parsed.text
    report = read_report(plain)
    for weight in report.checkpoint.weights:
        assert weight.name.removesuffix(".weight") in parsed.text and f"{weight.error:.4f}" in parsed.text


def test_it_needs_nothing_else(told):
    page, parsed = page_of(told())
    assert not {"script", "link", "img", "iframe", "object", "image", "use", "a"} & set(parsed.tags)
    assert not {"src", "href", "xlink:href", "srcset"} & {name for name, _ in parsed.attributes}
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert "http://" not in page and "https://" not in page and "url(" not in page and "@import" not in page
    assert "default-src 'none'; style-src 'unsafe-inline'" in page


def test_the_same_folder_gives_the_same_page(told):
    folder = told()
    assert write_page(read_report(folder)) == write_page(read_report(folder))


@pytest.mark.parametrize("where", ["names", "words", "request"])
def test_nothing_of_the_folder_becomes_markup(told, where):
    blocks, request, times = copy.deepcopy(BLOCKS), copy.deepcopy(REQUEST), TIMES
    if where == "names":
        times = [{**time, "name": HOSTILE + time["name"]} for time in TIMES]
        for block in blocks:
            block["name"] = HOSTILE + block["name"]
            block["layers"] = {HOSTILE + name: layer for name, layer in block["layers"].items()}
            block["feeds"] = [{**feed, "name": HOSTILE + feed["name"], HOSTILE: 0.5} for feed in block["feeds"]]
    if where == "words":
        for block in blocks:
            block["notes"] = {HOSTILE: 4, "b": HOSTILE}
            block["feeds"][1]["reason"] = HOSTILE
            for layer in block["layers"].values():
                layer["notes"] = {HOSTILE: HOSTILE, HOSTILE + "2": [1, HOSTILE]}
            block["layers"]["mlp.experts.down_proj"]["experts"][1]["fallback"] = HOSTILE
    if where == "request":
        request = {HOSTILE: HOSTILE, "algorithm": HOSTILE, "scheme": {HOSTILE: [HOSTILE]}, "x": {HOSTILE: HOSTILE}}
    page, parsed = page_of(told(blocks=blocks, request=request, times=times))
    assert "script" not in parsed.tags and "img" not in parsed.tags
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name == "src"]
    assert "alert(1)" in parsed.text  # it was there, as text
    assert page.count("<script") == 0


def test_a_folder_whose_name_is_hostile(told, tmp_path):
    folder = told()
    renamed = folder.rename(folder.with_name("<img src=x>"))
    _, parsed = page_of(renamed)
    assert "img" not in parsed.tags and "<img src=x>" in parsed.text


def test_two_stacks_of_blocks_are_told_apart(told):
    blocks = [{**copy.deepcopy(BLOCKS[0]), "name": name} for name in ("encoder.block.0", "decoder.block.0")]
    _, parsed = page_of(told(blocks=blocks, times=[]))
    assert "encoder.0, rounded: 0.01" in parsed.text and "decoder.0, rounded: 0.01" in parsed.text
