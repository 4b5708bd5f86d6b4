"""`woqfx quantize`: the same bytes as Python's, a summary, and a way on after Ctrl-C."""

from __future__ import annotations

import json

import pytest
from folders_of_models import digests

import woqfx
from woqfx import events


def test_it_writes_what_python_writes(run, model_folder, tmp_path):
    flags = ["--dtype", "int4_fullrange", "--group-size", "16", "--rule", "*.down_proj=int8", "--mse-range"]
    assert run("quantize", model_folder, *flags, "--out", tmp_path / "cli").exit_code == 0
    woqfx.quantize(
        model_folder,
        dtype="int4_fullrange",
        group_size=16,
        rules=["*.down_proj=int8"],
        options={"mse_range": True},
        out=tmp_path / "python",
    )
    assert digests(tmp_path / "cli") == digests(tmp_path / "python")


def test_the_summary(run, model_folder, tmp_path):
    out = tmp_path / "an out"
    result = run("quantize", model_folder, "--dtype", "int8", "--out", out)
    assert f"written    {out}" in result.stdout
    assert "14 layers, at 8.50 bits per weight" in result.stdout
    assert "(float32) -> " in result.stdout
    assert f"woqfx generate '{out}' -p " in result.stdout
    errors = [float(line.split()[-2]) for line in result.stdout.splitlines() if line.endswith("_proj")]
    assert len(errors) == 3
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[-1] < 0.01


def test_progress_is_a_few_lines_off_a_terminal(run, model_folder, tmp_path):
    result = run("quantize", model_folder, "--out", tmp_path / "out")
    first, *_, last = result.stderr.splitlines()
    assert first.startswith("quantizing ") and first.endswith(" tensors")
    assert last.startswith("quantizing: done in ")


def test_progress_as_json_is_the_events(run, model_folder, tmp_path):
    result = run("quantize", model_folder, "--progress", "json", "--out", tmp_path / "out")
    kinds = [json.loads(line)["event"] for line in result.stderr.splitlines()]
    assert kinds[0] == "RunStarted"
    assert kinds[-1] == "RunFinished"


@pytest.mark.parametrize("flag", [["-q"], ["--progress", "none"]], ids=str)
def test_quiet(run, model_folder, tmp_path, flag):
    result = run("quantize", model_folder, "--out", tmp_path / "out", *flag)
    assert result.stderr == ""
    assert (result.stdout == "") == (flag == ["-q"])


def test_a_finished_checkpoint_is_not_replaced_unless_asked(run, model_folder, tmp_path):
    out = tmp_path / "out"
    run("quantize", model_folder, "-q", "--out", out)
    before = digests(out)
    again = run("quantize", model_folder, "-q", "--dtype", "nf4", "--out", out)
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    assert digests(out) == before
    assert run("quantize", model_folder, "-q", "--dtype", "nf4", "--overwrite", "--out", out).exit_code == 0
    assert digests(out) != before


def test_a_plan_that_cannot_be_is_2_and_writes_nothing(run, model_folder, tmp_path):
    result = run("quantize", model_folder, "--dtype", "nf4", "--asym", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_out_is_required(run, model_folder):
    assert "--out" in run("quantize", model_folder).stderr


class Raising:
    """A plugin that raises after some tensors."""

    def __init__(self, error: BaseException, after: int) -> None:
        self.error, self.left = error, after

    @woqfx.hookimpl
    def woqfx_event(self, event: events.Event) -> None:
        if isinstance(event, events.TensorDone):
            self.left -= 1
            if self.left == 0:
                raise self.error


@pytest.fixture
def raising():
    def register(error: BaseException, after: int) -> None:
        woqfx.register(Raising(error, after), "raising")

    yield register
    woqfx.unregister("raising")


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(run, model_folder, tmp_path, raising):
    out, whole = tmp_path / "out", tmp_path / "whole"
    raising(KeyboardInterrupt(), 5)
    stopped = run("quantize", model_folder, "--progress", "none", "--out", out)
    assert stopped.exit_code == 130
    assert stopped.stdout == ""
    assert "interrupted" in stopped.stderr
    assert "the same command goes on" in stopped.stderr
    look = run("inspect", out)
    assert "stopped" in look.stdout
    assert run("quantize", model_folder, "-q", "--out", out).exit_code == 0
    run("quantize", model_folder, "-q", "--out", whole)
    assert digests(out) == digests(whole)


def test_what_inspect_says_goes_on_does(run, model_folder, tmp_path, raising):
    import shlex

    out = tmp_path / "out"
    flags = ["--dtype", "int4_fullrange", "--asym", "--group-size", "-1", "--mse-range", "--rule", "*.v_proj=keep"]
    raising(KeyboardInterrupt(), 5)
    run("quantize", model_folder, *flags, "--out", out)
    (line,) = [line for line in run("inspect", out).stdout.splitlines() if line.startswith("go on")]
    words = shlex.split(line.removeprefix("go on"))
    assert words[0] == "woqfx"
    assert run(*words[1:], "-q").exit_code == 0
    assert run("inspect", out, "--verify").exit_code == 0


def test_a_faulty_plugin_is_one_clean_line_and_stops_nothing(run, model_folder, tmp_path, raising):
    raising(RuntimeError("out\nof order"), 2)
    result = run("quantize", model_folder, "--progress", "none", "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stderr == "woqfx: plugin 'raising' failed in woqfx_event: RuntimeError: out of order\n"
