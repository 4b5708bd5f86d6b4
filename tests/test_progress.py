"""What a run shows: a bar that counts weights, lines, JSON, or nothing; and a terminal that is left as it was."""

from __future__ import annotations

import io
import json
import re
import threading
from types import SimpleNamespace

import pytest
from folders_of_models import saved

import woqfx
from woqfx import events, progress
from woqfx.plugin_loading import PluginWarning
from woqfx.plugins import registry
from woqfx.progress import showing

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor (DECTCEM)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def an_ordinary_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def folder(tmp_path):
    return saved("llama", tmp_path)


def started(run="r", *, tensors=4, resumed=0, weights=1000, resumed_weights=0):
    return events.RunStarted(run, "model", "out", tensors, resumed, weights, resumed_weights)


def done(count, weights, run="r", *, seconds=0.5):
    return events.TensorDone(run, f"w{count}", count, 4, weights, seconds, 0.1 if weights else None)


def shown(*sequence, stream=None):
    stream = stream or Terminal()
    with showing("bar", stream):
        for event in sequence:
            registry().emit(event)
    return stream.getvalue()


def percentages(text):
    return [int(number) for number in re.findall(r"(\d+)%", text)]


def test_the_bar_counts_weights_not_tensors():
    assert percentages(shown(started(), done(1, 0), done(2, 900)))[-1] == 90
    assert percentages(shown(started(), done(1, 1), done(2, 1), done(3, 1)))[-1] == 0


def test_the_bar_begins_where_the_killed_run_was():
    text = shown(started(tensors=4, resumed=2, resumed_weights=600), done(3, 200))
    assert "going on" in text
    assert percentages(text)[0] == 60
    assert percentages(text)[-1] == 80


def test_the_bar_tells_tensors_and_speed():
    text = shown(started(), done(1, 30_000_000, seconds=2.0))
    assert "1/4 tensors" in text
    assert "15 M weights/s" in text


def test_each_run_has_its_own_bar():
    text = shown(started("a"), started("b"), done(1, 1000, "a"), done(1, 100, "b"))
    assert percentages(text)[-2:] == [100, 10]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_cursor_comes_back_however_it_ends(error):
    stream = Terminal()
    with pytest.raises(error), showing("bar", stream):
        registry().emit(started())
        raise error
    text = stream.getvalue()
    assert text.count(HIDE) == text.count(SHOW) == 1
    assert text.rindex(SHOW) > text.rindex(HIDE)
    assert text.rstrip(SHOW).endswith("\n")


def test_nothing_stays_registered():
    before = [plugin.name for plugin in registry().plugins]
    with pytest.raises(RuntimeError), showing("json", io.StringIO()):
        raise RuntimeError
    assert [plugin.name for plugin in registry().plugins] == before


def test_json_lines_are_the_events():
    stream, sequence = (
        io.StringIO(),
        [started(), done(1, 900), events.Committed("r", 1, 77), events.RunFailed("r", "x")],
    )
    with showing("json", stream):
        for event in sequence:
            registry().emit(event)
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [event.to_json() for event in sequence]


def lines(monkeypatch, *sequence):
    """What is said when five seconds pass before each event."""
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    stream = io.StringIO()
    with showing("lines", stream):
        for event in sequence:
            registry().emit(event)
    return stream.getvalue().splitlines()


def test_a_log_gets_a_line_now_and_then(monkeypatch):
    said = lines(
        monkeypatch, started(), *(done(count, 250) for count in range(1, 5)), events.RunFinished("r", None, 21)
    )
    assert said == [
        "quantizing 4 tensors",
        "quantizing: 2 of 4 tensors, 50 % of the weights",
        "quantizing: 4 of 4 tensors, 100 % of the weights",
        "quantizing: done in 21 s",
    ]


def test_a_log_of_a_run_that_goes_on_counts_what_was_done(monkeypatch):
    said = lines(monkeypatch, started(resumed=2, resumed_weights=600), done(3, 100), done(4, 300))
    assert said == ["quantizing 4 tensors, going on behind 2", "quantizing: 4 of 4 tensors, 100 % of the weights"]


def test_a_log_of_blocks_has_a_line_for_each(monkeypatch):
    blocks = [events.BlockDone("r", f"layers.{n}", n, 2, 1.25, 2_000_000_000, 0.1) for n in (1, 2)]
    assert lines(monkeypatch, started(), *blocks)[1:] == ["block 1 of 2: 1.2 s, 2.0 GB", "block 2 of 2: 1.2 s, 2.0 GB"]


@pytest.mark.parametrize(
    ("choice", "stream", "expected"),
    [("auto", io.StringIO, "none"), ("auto", Terminal, "bar"), ("none", Terminal, "none"), ("json", Terminal, "json")],
    ids=["auto in a pipe", "auto on a terminal", "none", "json on a terminal"],
)
def test_choices(choice, stream, expected):
    opened = stream()
    with showing(choice, opened):
        registry().emit(started())
    text = opened.getvalue()
    assert {"none": text == "", "bar": HIDE in text, "json": text.startswith('{"event"')}[expected]


def test_runs_of_other_threads_are_not_shown():
    stream = io.StringIO()
    with showing("json", stream):
        other = threading.Thread(target=lambda: registry().emit(started("other")))
        other.start()
        other.join()
        registry().emit(started("own"))
    assert [json.loads(line)["run"] for line in stream.getvalue().splitlines()] == ["own"]


def test_a_stream_that_broke_does_not_stop_the_run(folder, tmp_path, monkeypatch):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(progress.sys, "stderr", Broken())
    with pytest.warns(PluginWarning, match="BrokenPipeError"):
        woqfx.quantize(folder, out=tmp_path / "out", progress="json")
    assert (tmp_path / "out" / "woqfx.json").is_file()


def test_the_events_of_a_real_run(folder, tmp_path, capsys):
    woqfx.quantize(folder, out=tmp_path / "out", progress="json")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (run,) = {line["run"] for line in lines}
    assert run
    first, *middle, last = lines
    assert (first["event"], last["event"]) == ("RunStarted", "RunFinished")
    tensors = [line for line in middle if line["event"] == "TensorDone"]
    assert [line["done"] for line in tensors] == list(range(1, first["tensors"] + 1))
    assert sum(line["weights"] for line in tensors) == first["weights"]
    assert (first["resumed"], first["resumed_weights"]) == (0, 0)
    assert all((line["error"] is None) == (line["weights"] == 0) for line in tensors)
    committed = [line for line in middle if line["event"] == "Committed"][-1]
    assert committed["done"] == first["tensors"]
    assert committed["bytes_written"] == (tmp_path / "out" / "model.safetensors").stat().st_size


def test_two_runs_have_two_names(folder, capsys):
    for _ in range(2):
        woqfx.quantize(folder, progress="json")
    runs = [json.loads(line)["run"] for line in capsys.readouterr().err.splitlines()]
    assert len(set(runs)) == 2


def test_python_is_silent_off_a_terminal(folder, capsys):
    woqfx.quantize(folder)
    assert capsys.readouterr() == ("", "")


def test_what_was_resumed_is_told_in_weights(folder, tmp_path, capsys):
    class Stop:
        @woqfx.hookimpl
        def woqfx_event(self, event):
            if isinstance(event, events.Committed):
                raise KeyboardInterrupt

    woqfx.register(Stop(), "stop")
    try:
        with pytest.raises(KeyboardInterrupt):
            woqfx.quantize(folder, out=tmp_path / "out")
    finally:
        woqfx.unregister("stop")
    woqfx.quantize(folder, out=tmp_path / "out", progress="json")
    first = json.loads(capsys.readouterr().err.splitlines()[0])
    assert first["resumed"] == first["tensors"]
    assert first["resumed_weights"] == first["weights"] > 0
