"""Calibration data in files: healthy, damaged and hostile."""

from __future__ import annotations

import csv
import errno
import json
import os
import tracemalloc

import pytest

from woqfx import CalibrationError
from woqfx.calibration import files
from woqfx.calibration.files import read_records

CHAT = [{"role": "user", "content": "hello"}]
ROWS = [{"text": "one, two"}, {"text": 'three "four"\nfive'}, {"text": "sechs ü"}]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def read(path, column=None):
    return list(read_records(path, column))


@pytest.mark.parametrize(
    ("name", "content", "records"),
    [
        ("a.txt", "one\n\ntwo", ["one\n\ntwo"]),
        ("a.TXT", "\ufeffone", ["one"]),
        ("a.txt", "", [""]),
        ("a.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n", ROWS),
        ("a.jsonl", f'"text"\n{json.dumps(CHAT)}\n[1, 2]', ["text", CHAT, [1, 2]]),
        ("a.jsonl", "", []),
        ("a.json", json.dumps(ROWS), ROWS),
        ("a.json", json.dumps({"version": 1, "data": [CHAT]}), [CHAT]),
        ("a.json", "\ufeff[]", []),
        (
            "a.csv",
            'id,text\n1,"one, two"\n2,"three ""four""\nfive"\n',
            [{"id": "1", **ROWS[0]}, {"id": "2", **ROWS[1]}],
        ),
        ("a.csv", "text,more\none\ntwo,2,3\n", [{"text": "one", "more": ""}, {"text": "two", "more": "2"}]),
        ("a.csv", "", []),
    ],
)
def test_what_a_file_holds(write, name, content, records):
    assert read(write(name, content)) == records


def test_csv_as_the_library_writes_it(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text"])
        writer.writeheader()
        writer.writerows(ROWS)
    assert read(tmp_path / "a.csv") == ROWS


def test_a_large_text_comes_in_parts_that_end_with_a_line(write, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 100)
    text = "a line of twenty-one.\n" * 50
    parts = read(write("a.txt", text))
    assert "".join(parts) == text
    assert [len(part) for part in parts if part] == [5 * 22] * 10


def test_no_more_of_a_file_is_in_memory_than_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for _ in range(3000):
            file.write(json.dumps("x" * 10_000) + "\n")
    tracemalloc.start()
    try:
        assert sum(len(record) for record in read_records(path, None)) == 30_000_000
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.md", "text", r"a.md is not a file of calibration data that woqfx reads: .txt, .jsonl"),
        ("a.txt", b"\xff\xfeh\0i\0", "a.txt is not UTF-8 text: .*; convert it first"),
        ("a.jsonl", b'"a"\n"\xe9"', "a.jsonl is not UTF-8 text"),
        ("a.json", b'["\xe9"]', "a.json is not UTF-8 text"),
        ("a.csv", b"text\n\xe9", "a.csv is not UTF-8 text"),
        ("a.jsonl", '"a"\n\n{"text": ', "a.jsonl, line 3 is not valid JSON"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1 is nested too deeply"),
        ("a.json", "[" * 100_000, "a.json is nested too deeply"),
        ("a.json", '"text"', "a.json holds a str where a list"),
        ("a.json", '{"a": 1}', "a.json holds an object with no list, or several, where a list"),
        ("a.json", '{"a": [], "b": []}', "a.json holds an object with no list, or several, where a list"),
        ("a.csv", "text\n" + "x" * 200_000, "a.csv, line 1 is not CSV: field larger than field limit"),
    ],
)
def test_what_cannot_be_read(write, name, content, says):
    with pytest.raises(CalibrationError, match=says):
        read(write(name, content))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_line_without_end(write, monkeypatch, name):
    monkeypatch.setattr(files, "MAX_LINE", 100)
    with pytest.raises(CalibrationError, match=r"line 2 has more than 100 characters; split it"):
        read(write(name, '"text"\n' + '"' + "x" * 200))


def test_json_that_is_too_large_to_parse_at_once(write, monkeypatch):
    monkeypatch.setattr(files, "MAX_JSON", 100)
    with pytest.raises(CalibrationError, match=r"more than 100 bytes; make it .jsonl"):
        read(write("a.json", " " * 101))


class TestNotAFile:
    def test_absent(self, tmp_path):
        with pytest.raises(CalibrationError, match=r"there is no file .*a.txt"):
            read(tmp_path / "a.txt")

    def test_a_folder(self, tmp_path):
        (tmp_path / "a.txt").mkdir()
        with pytest.raises(CalibrationError, match=r"a.txt is not a regular file"):
            read(tmp_path / "a.txt")

    def test_a_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "a.txt")
        with pytest.raises(CalibrationError, match=r"a.txt is not a regular file"):
            read(tmp_path / "a.txt")

    def test_of_someone_else(self, write, monkeypatch):
        def refuse(path, *_, **__):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

        path = write("a.txt", "text")
        monkeypatch.setattr("pathlib.Path.open", refuse)
        with pytest.raises(CalibrationError, match=r"a.txt cannot be read: Permission denied"):
            read(path)


class TestParquet:
    @pytest.fixture
    def table(self, tmp_path):
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "a.parquet"
        columns = {
            "id": list(range(600)),
            "body": ["b"] * 600,
            "text": [f"text {n}" for n in range(600)],
            "chat": [CHAT] * 600,
        }
        parquet.write_table(arrow.table(columns), path)
        return path

    def test_the_texts_alone_are_read(self, table):
        assert read(table) == [{"text": f"text {n}"} for n in range(600)]

    @pytest.mark.parametrize(("column", "value"), [("body", "b"), ("chat", CHAT)])
    def test_a_column_by_name(self, table, column, value):
        assert read(table, column) == [{column: value}] * 600

    def test_damaged(self, table):
        table.write_bytes(table.read_bytes()[:-100])
        with pytest.raises(CalibrationError, match=r"a.parquet is not a parquet file that pyarrow reads"):
            read(table)

    def test_without_the_library(self, write, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
        with pytest.raises(CalibrationError, match=r"needs pyarrow: pip install 'woqfx\[datasets\]'"):
            read(write("a.parquet", b"PAR1"))
