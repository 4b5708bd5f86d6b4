"""`woqfx report`: a page beside the checkpoint, or the numbers."""

from __future__ import annotations

import json
import shutil

import pytest

from woqfx.report import read_report, write_page


@pytest.fixture
def folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "out")


def test_the_page_is_beside_the_checkpoint(run, folder, tmp_path):
    result = run("report", folder)
    assert (result.exit_code, result.stdout) == (0, f"written: {tmp_path / 'out.html'}\n")
    assert (tmp_path / "out.html").read_text() == write_page(read_report(folder))


def test_the_page_where_it_is_wanted(run, folder, tmp_path):
    assert run("report", folder, "--to", tmp_path / "page.html").exit_code == 0
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == ["page.html"]


def test_a_file_that_is_there_is_kept_unless_told(run, folder, tmp_path):
    (tmp_path / "out.html").write_text("mine")
    result = run("report", folder)
    assert result.exit_code == 1 and "out.html is there already: give --overwrite, or another name" in result.stderr
    assert (tmp_path / "out.html").read_text() == "mine"
    assert run("report", folder, "--overwrite").exit_code == 0
    assert (tmp_path / "out.html").read_text() != "mine"


def test_a_place_that_cannot_be_written(run, folder, tmp_path):
    result = run("report", folder, "--to", tmp_path / "nowhere" / "page.html")
    assert result.exit_code == 1 and "the folder is not there" in result.stderr


def test_json(run, folder, tmp_path):
    result = run("report", folder, "--json")
    assert json.loads(result.stdout) == read_report(folder).to_json()
    assert not (tmp_path / "out.html").exists()


def test_what_is_no_checkpoint(run, tmp_path):
    result = run("report", tmp_path)
    assert result.exit_code == 1 and str(tmp_path) in result.stderr
