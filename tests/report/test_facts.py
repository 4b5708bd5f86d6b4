"""Reading what a checkpoint tells: healthy, absent, hostile."""

from __future__ import annotations

import copy
import json
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report.conftest import BLOCKS, REQUEST, TIMES
from tiny_models import tiny_model

import woqfx
from woqfx import engine
from woqfx.errors import CheckpointError
from woqfx.report import read_report, write_page
from woqfx.report.facts import number
from woqfx.source import open_source


def test_what_is_told_is_read(told):
    report = read_report(told())
    first, second = report.blocks
    assert (first.name, first.reached, first.seconds, first.memory) == ("model.layers.0", True, 4.5, 1_500_000_000)
    assert second.error == {"nearest": 0.02, "transform": 0.015, "round": 0.005}
    assert [(feed.name, feed.used, feed.facts) for feed in second.feeds] == [
        ("input_layernorm", True, {"alpha": 0.75}),
        ("v_proj", False, {"alpha": 0.5}),
    ]
    layer = first.layers["self_attn.q_proj.weight"]
    assert (layer.tokens, layer.output_error["round"], layer.notes["clip"]) == (1234, 0.001, [0.8, 0.9])
    assert [(e.tokens, e.fallback) for e in first.layers["mlp.experts.down_proj"].experts] == [
        (900, ""),
        (3, "3 tokens are too few"),
    ]
    assert report.request == REQUEST


def test_without_a_report_there_are_the_weights(plain):
    report = read_report(plain)
    assert report.blocks == () and len(report.checkpoint.weights) == 14
    assert report.request["algorithm"] == "rtn"


def test_json_holds_the_same_numbers(told, plain_bytes):
    found = read_report(told()).to_json()
    assert found["blocks"] == [
        {**block, "seconds": time["seconds"], "memory": time["memory"]}
        for block, time in zip(BLOCKS, TIMES, strict=True)
    ]
    errors = {name: facts["error"] for name, facts in json.loads(plain_bytes["woqfx.json"])["weights"].items()}
    assert {weight["name"]: weight["error"] for weight in found["checkpoint"]["weights"]} == errors
    json.dumps(found, allow_nan=False)


def test_timings_are_of_use_and_not_needed(told):
    folder = told()
    (folder / "woqfx-timings.json").unlink()
    assert [block.seconds for block in read_report(folder).blocks] == [None, None]


def test_a_block_that_text_does_not_reach(told):
    report = read_report(told(blocks=[*BLOCKS, {"name": "vision.0", "unreached": True}]))
    assert [block.reached for block in report.blocks] == [True, True, False]
    assert "vision.0" in write_page(report)


def test_steps_that_are_not_known_and_errors_that_are_none_are_left_out(told):
    blocks = copy.deepcopy(BLOCKS)
    blocks[0]["error"] = {"refine": 0.1, "dance": 0.2, "round": None, "nearest": -1, "transform": True}
    assert read_report(told(blocks=blocks)).blocks[0].error == {"refine": 0.1}


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        read_report(tmp_path / "nowhere")


def test_an_unfinished_run(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    source = open_source(tmp_path / "model")
    plan = woqfx.plan(tmp_path / "model")
    with closing(engine.write_checkpoint(source, plan, tmp_path / "out", shard_bytes=1)) as steps:
        next(steps)
    with pytest.raises(CheckpointError, match="holds a run that was stopped: finish it first"):
        read_report(tmp_path / "out")


def _with(path, value):
    """The report with one place of it changed."""
    report = {"woqfx_report": 1, "request": REQUEST, "blocks": copy.deepcopy(BLOCKS)}
    place = report
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return report


Q = ("blocks", 0, "layers", "self_attn.q_proj.weight")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("woqfx_report",), 2, "its version is 2"),
        (("woqfx_report",), True, "its version is true"),
        (("request",), [], r"request is \[\]"),
        (("blocks",), {}, "blocks is an object of 0"),
        (("blocks", 0), 5, "a block is 5"),
        (("blocks", 0, "name"), None, "a block's name is null"),
        (("blocks", 0, "error"), [], r"the error of model.layers.0 is \[\]"),
        (("blocks", 0, "feeds"), {}, "feeds of model.layers.0 is an object"),
        (("blocks", 0, "feeds", 0), "x", "a feed of model.layers.0 is "),
        (("blocks", 0, "feeds", 0, "name"), 4, "the name of a feed of model.layers.0 is 4"),
        (("blocks", 0, "feeds", 1, "reason"), 4, "the reason of model.layers.0 v_proj is 4"),
        (("blocks", 0, "layers"), [], "layers of model.layers.0 is"),
        (("blocks", 0, "notes"), "x" * 500, "notes of model.layers.0 is .{190,210}\\.\\.\\.;"),
        (Q, 5, "model.layers.0.self_attn.q_proj.weight is 5"),
        ((*Q, "tokens"), -1, "tokens of .* is -1"),
        ((*Q, "tokens"), 0.5, "tokens of .* is 0.5"),
        ((*Q, "experts"), {}, "experts of"),
        ((*Q, "experts"), [4], "an expert of"),
        ((*Q, "experts"), [{"tokens": "x"}], "an expert's tokens of"),
        ((*Q, "output_error"), 0.5, "the output error of .* is 0.5"),
    ],
    ids=str,
)
def test_what_is_not_as_the_format_says_is_named(told, path, value, says):
    with pytest.raises(CheckpointError, match=rf"woqfx-report.json cannot be used: .*{says}"):
        read_report(told(report=_with(path, value)))


@pytest.mark.parametrize(
    ("timings", "says"),
    [
        ({"woqfx_timings": 2, "blocks": []}, "its version is 2"),
        ({"woqfx_timings": 1}, "blocks is null"),
        ({"woqfx_timings": 1, "blocks": [{"name": "a", "seconds": "5", "memory": 1}]}, "seconds or memory"),
        ({"woqfx_timings": 1, "blocks": [{"name": 1, "seconds": 5, "memory": 1}]}, "a block's name is 1"),
    ],
    ids=str,
)
def test_timings_that_are_not_as_the_format_says(told, timings, says):
    with pytest.raises(CheckpointError, match=rf"woqfx-timings.json cannot be used: .*{says}"):
        read_report(told(timings=timings))


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a": 1, "a": 2}'], ids=lambda d: str(d[:9]))
def test_files_that_are_no_json_object(told, data):
    with pytest.raises(CheckpointError, match=r"woqfx-report.json"):
        read_report(told(report=data))


def test_a_link_out_of_the_folder_is_not_followed(told, tmp_path):
    folder = told()
    (tmp_path / "elsewhere.json").write_text("{}")
    (folder / "woqfx-timings.json").unlink()
    (folder / "woqfx-timings.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(CheckpointError, match="outside of the model's folder"):
        read_report(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PLACES = [
    ("request",),
    ("blocks", 0, "error", "round"),
    ("blocks", 0, "feeds", 0, "alpha"),
    ("blocks", 0, "notes", "steps"),
    ("blocks", 0, "layers"),
    (*Q, "notes"),
    (*Q, "weight_error"),
    (*Q, "experts"),
]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), JSON)
def test_whatever_stands_in_a_place_there_is_a_page_or_a_refusal(told, path, value):
    try:
        page = write_page(read_report(told(report=json.dumps(_with(path, value)).encode())))
    except CheckpointError:
        return
    assert page.endswith("</html>\n")


@pytest.mark.parametrize("found", [None, True, "5", [], float("nan"), float("inf"), 10**400, -(10**400)])
def test_what_is_no_number(found):
    assert number(found) is None
