"""The benchmark of loading: a process for each figure, and a page that says which goals were missed."""

from __future__ import annotations

import os

import pytest

from benchmarks import loading_1b


def test_a_job_runs_in_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setitem(loading_1b.JOBS, "say", lambda out, _: (out / "pid").write_text(str(os.getpid())))
    taken = loading_1b.timed("say", tmp_path, tmp_path)
    assert int((tmp_path / "pid").read_text()) != os.getpid()
    assert taken["seconds"] > 0 and taken["processor"] >= 0


def test_a_job_that_fails_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(loading_1b.JOBS, "fail", lambda *_: 1 / 0)
    with pytest.raises(SystemExit, match="fail failed"):
        loading_1b.timed("fail", tmp_path, tmp_path)


def test_the_page_gives_medians_the_quickest_and_what_was_missed():
    def runs(*seconds):
        return [{"seconds": one, "processor": one} for one in seconds]

    names = [*loading_1b.JOBS, *(job + loading_1b._DISK for job in loading_1b.FROM_DISK)]
    result = {"machine": "avx2", "date": "2026-11-22", "neighbours": 0.0}
    result["runs"] = {name: runs(0.9, 0.2, 0.4) for name in names} | {
        "bytes, from the disk": runs(0.5, 0.5, 0.5),
        "model, llm_runtime, from the disk": runs(0.7, 0.6, 1.9),
        "model, llm_runtime, cached": runs(0.32, 0.2, 0.4),
    }
    page = loading_1b.page(result)
    assert "| model, llm_runtime, cached | 0.32 s | 0.20 s | 0.32 s | 0.80 |" in page
    assert "a model from the disk in 1.5 times what reading takes: met, 1.40." in page
    assert "model, llm_runtime, cached in 0.3 s: **missed**, 0.32 s." in page
