from __future__ import annotations

import errno
import json
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from woqfx.disk import journal
from woqfx.disk.journal import Contents, Journal
from woqfx.errors import CheckpointError, OutputError

RUN = {"source": "tiny", "scheme": {"dtype": "nf4", "group_size": 32}}
# Three commits: after each of them everything before it is safe.
BATCHES = [
    [{"tensor": "a", "stop": 10}],
    [{"tensor": "b"}, {"tensor": "c", "n": [1, 2]}, {"tensor": "d"}],
    [{"é": "\n"}],
]
RECORDS = [record for batch in BATCHES for record in batch]
FIRST_LINE_OF_LAST_BATCH = 1 + len(RECORDS) - len(BATCHES[-1])

same_folder_again = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def written(path) -> bytes:
    """The bytes of a journal of `RUN` with `BATCHES`; the file is there too."""
    with Journal.open(path, RUN) as opened:
        for batch in BATCHES:
            opened.append(batch)
    return path.read_bytes()


def resumed(path: Path) -> list[dict]:
    """What a resumed run finds; and that it can go on from there."""
    with Journal.open(path, RUN) as opened:
        found = list(opened.records)
        assert opened.run == RUN
        opened.append([{"tensor": "more"}])
    peeked = Journal.peek(path)
    assert peeked == Contents(RUN, [*found, {"tensor": "more"}])
    return found


def traced(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[tuple[str, str]]:
    """Record from now on which of these functions of `os` are called, each with the name of the file it acts on."""
    steps = []

    def stand_in(name, real):
        def act(fd, *rest):
            steps.append((name, Path(f"/proc/self/fd/{fd}").readlink().name))
            return real(fd, *rest)

        return act

    for name in names:
        monkeypatch.setattr(os, name, stand_in(name, getattr(os, name)))
    return steps


# The format.


def test_the_file_is_what_the_module_says_it_is(path):
    with Journal.open(path, {"dtype": "nf4"}) as opened:
        opened.append([{"tensor": "lm_head.weight"}])
    lines = path.read_text().splitlines()
    assert all(line in journal.__doc__ for line in lines)
    for line, (safe, content) in zip(
        lines, [(0, {"journal": 1, "run": {"dtype": "nf4"}}), (1, {"tensor": "lm_head.weight"})], strict=True
    ):
        checksum, *rest = json.loads(line)
        assert rest == [safe, content]
        assert checksum == f"{zlib.crc32(line.split(',', 1)[1].encode()):08x}"


def test_records_of_one_commit_count_as_safe_only_for_the_next(written):
    assert [json.loads(line)[1] for line in written.splitlines()] == [0, 1, 2, 2, 2, 5]


def test_a_commit_is_one_write_and_one_sync(path, monkeypatch):
    with Journal.open(path, RUN) as opened:
        steps = traced(monkeypatch, "write", "fdatasync", "fsync")
        opened.append(BATCHES[1])
    assert [name for name, _ in steps] == ["write", "fdatasync"]


def test_a_new_journal_is_safe_before_it_is_used(path, monkeypatch):
    steps = traced(monkeypatch, "write", "fdatasync", "fsync")
    begun = [("write", "journal"), ("fdatasync", "journal"), ("fsync", path.parent.name)]
    with Journal.open(path, RUN):
        assert steps == begun
    steps.clear()
    with Journal.open(path, RUN):  # whoever wrote it may have been killed before the sync
        assert steps == begun[1:]


def test_records_come_back_as_json(path):
    with Journal.open(path, {"rules": ("a", "b")}) as opened:
        opened.append([{"shape": (2, 3)}])
        assert opened.records == [{"shape": [2, 3]}]
    with Journal.open(path, {"rules": ("a", "b")}) as opened:
        assert opened.run == {"rules": ["a", "b"]}
        assert opened.records == [{"shape": [2, 3]}]


@pytest.mark.parametrize("value", [float("nan"), object()], ids=["nan", "object"])
def test_what_json_cannot_hold_is_not_written(path, value):
    with Journal.open(path, RUN) as opened:
        with pytest.raises((ValueError, TypeError)):
            opened.append([{"fine": 1}, {"loss": value}])
        opened.append([{"fine": 2}])
        assert opened.records == [{"fine": 2}]
    assert resumed(path) == [{"fine": 2}]


# After a power cut.


def test_every_truncation_resumes_with_the_whole_records_before_it(path, written):
    ends = [i + 1 for i, byte in enumerate(written) if byte == ord("\n")]
    for length in range(len(written) + 1):
        path.write_bytes(written[:length])
        complete = sum(end <= length for end in ends)
        assert resumed(path) == RECORDS[: max(complete - 1, 0)], length


@same_folder_again
@given(kept=st.integers(0, 400), tail=st.binary(max_size=60) | st.integers(1, 5000).map(bytes))
def test_a_garbage_tail_resumes_with_the_whole_records_before_it(path, written, kept, tail):
    path.write_bytes(written[:kept] + tail)
    whole = (written[:kept] + tail).startswith(written)
    complete = (len(RECORDS) + 1) if whole else written[:kept].count(b"\n")
    # The tail may by chance be the end of the line it is put after; no more than that.
    assert resumed(path) in (RECORDS[: max(complete - 1, 0)], RECORDS[:complete])


def test_a_dropped_tail_is_gone_from_the_disk_before_anything_is_added(path, written, monkeypatch):
    path.write_bytes(written[:-3])
    steps = traced(monkeypatch, "ftruncate", "fdatasync", "write")
    with Journal.open(path, RUN) as opened:
        assert steps[:2] == [("ftruncate", "journal"), ("fdatasync", "journal")]
        assert ("write", "journal") not in steps
        opened.append([{}])
    assert path.read_bytes().startswith(written[: written[:-1].rindex(b"\n") + 1])


def test_a_lost_page_inside_the_last_commit_drops_the_rest_of_that_commit(path):
    with Journal.open(path, RUN) as opened:
        opened.append(BATCHES[0])
        safe = len(path.read_bytes())
        opened.append(BATCHES[1])
    data = bytearray(path.read_bytes())
    second = data.index(b"\n", safe) + 1
    data[second : second + 20] = bytes(20)
    path.write_bytes(data)
    assert resumed(path) == [*BATCHES[0], BATCHES[1][0]]


def test_each_changed_byte_is_damage_if_it_had_been_safe_and_a_tail_if_not(path, written):
    # Without the last line's beginning nothing is left that says that the line before it had been safe.
    joins_last_two = written[:-1].rindex(b"\n")
    line = 0
    for at, byte in enumerate(written):
        path.write_bytes(written[:at] + bytes([byte ^ 1]) + written[at + 1 :])
        if line < FIRST_LINE_OF_LAST_BATCH and at != joins_last_two:
            for read in (Journal.peek, lambda path: Journal.open(path, RUN)):
                with pytest.raises(
                    CheckpointError, match=rf"journal is damaged: line {line + 1} was safe.*--overwrite"
                ):
                    read(path)
        else:
            assert resumed(path) == RECORDS[: line - 1]
        line += byte == ord("\n")


@pytest.mark.parametrize("line", range(FIRST_LINE_OF_LAST_BATCH))
def test_a_line_that_was_safe_and_is_missing_is_damage(path, written, line):
    lines = written.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:line] + lines[line + 1 :]))
    with pytest.raises(CheckpointError, match="is damaged"):
        Journal.open(path, RUN)


def test_damage_is_left_as_it_is(path, written):
    damaged = written.replace(b'"b"', b'"B"')
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError):
        Journal.open(path, RUN)
    assert path.read_bytes() == damaged


def signed(rest: bytes) -> bytes:
    return b'["%08x",%b\n' % (zlib.crc32(rest), rest)


@pytest.mark.parametrize(
    "rest",
    [b"1,[]]", b'"1",{}]', b"true,{}]", b"1]", b"1,{},2]", b"1,{}", b"[" * 100_000, b"1," + b"9" * 5000 + b"]"],
    ids=["array", "text", "true", "short", "long", "open", "deep", "digits"],
)
def test_a_line_with_the_right_checksum_and_the_wrong_form_is_not_good(path, written, rest):
    path.write_bytes(written + signed(rest))
    assert resumed(path) == RECORDS


@pytest.mark.parametrize(
    "header", [b'{"journal":2,"run":{}}', b'{"journal":1,"run":7}', b'{"run":{}}'], ids=["newer", "run", "no-version"]
)
def test_a_journal_of_another_version_is_not_guessed_at(path, header):
    path.write_bytes(signed(b"0," + header + b"]"))
    with pytest.raises(CheckpointError, match=r"does not understand.*--overwrite"):
        Journal.open(path, RUN)


# Failures while writing.


@pytest.mark.parametrize("step", ["write", "fdatasync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_commit_that_fails_closes_the_journal_and_the_next_run_goes_on(path, monkeypatch, step, number):
    real = os.write
    opened = Journal.open(path, RUN)
    opened.append(BATCHES[0])

    def fail(fd, data=b""):
        if data:
            real(fd, data[: len(data) // 2])
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        broken.setattr(os, step, fail)
        with pytest.raises(OutputError, match=rf"cannot write {path}: {os.strerror(number)}"):
            opened.append([{"tensor": "lost"}])
    assert opened.records == BATCHES[0]
    with pytest.raises(ValueError, match="closed"):
        opened.append([{"tensor": "after half a line"}])
    assert resumed(path) == (BATCHES[0] if step == "write" else [*BATCHES[0], {"tensor": "lost"}])


def test_a_journal_that_cannot_be_begun_can_be_begun_later(path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", fail)
        with pytest.raises(OutputError, match="free some space"):
            Journal.open(path, RUN)
    assert Journal.peek(path) is None
    assert resumed(path) == []


def test_a_folder_that_is_not_there(path):
    with pytest.raises(OutputError, match="the folder is not there"):
        Journal.open(path / "journal", RUN)


def test_a_link_is_not_followed(path, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    with pytest.raises(OutputError, match="a symbolic link is not followed"):
        Journal.open(path, RUN)
    assert victim.read_bytes() == b"precious"


@pytest.mark.timeout(5)
def test_a_pipe_is_no_journal(path):
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="no regular file"):
        Journal.peek(path)


def test_a_file_too_large_for_a_journal_is_not_read(path):
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(CheckpointError, match="no journal"):
        Journal.peek(path)


# A different run.


@pytest.mark.parametrize(
    ("asked", "lines"),
    [
        ({**RUN, "source": "other"}, ['source: "tiny" there, "other" now']),
        ({**RUN, "scheme": {"dtype": "nf4", "group_size": 64}}, ["scheme.group_size: 32 there, 64 now"]),
        ({**RUN, "seed": None}, ["seed: absent there, null now"]),
        ({"source": "tiny"}, ['scheme.dtype: "nf4" there, absent now', "scheme.group_size: 32 there, absent now"]),
        (
            {"source": "tiny", "scheme": "nf4"},
            [
                'scheme.dtype: "nf4" there, absent now',
                "scheme.group_size: 32 there, absent now",
                'scheme: absent there, "nf4" now',
            ],
        ),
        ({**RUN, "scheme": {"dtype": "nf4", "group_size": 32.0}}, ["scheme.group_size: 32 there, 32.0 now"]),
    ],
    ids=["one", "nested", "added-null", "removed", "reshaped", "equal-to-python-only"],
)
def test_a_run_asked_for_differently_is_refused_with_each_difference(path, written, asked, lines):
    with pytest.raises(OutputError) as caught:
        Journal.open(path, asked)
    message = str(caught.value)
    assert [line[4:] for line in message.splitlines() if line.startswith("  - ")] == lines
    assert str(path.parent) in message
    assert "start afresh with overwrite=True (--overwrite)" in message
    assert path.read_bytes() == written


def test_the_order_of_fields_makes_no_difference(path, written):
    with Journal.open(path, dict(reversed(RUN.items()))) as opened:
        assert opened.records == RECORDS


# Looking, and throwing away.


def test_peek_neither_locks_nor_changes(path, written):
    path.write_bytes(written[:-3])
    with Journal.open(path, RUN) as opened:
        os.truncate(path, path.stat().st_size - 3)
        before = path.read_bytes()
        assert Journal.peek(path) == Contents(RUN, RECORDS[:-2])
        assert path.read_bytes() == before
        assert opened.records == RECORDS[:-1]


def test_peek_of_nothing(path):
    assert Journal.peek(path) is None
    assert not path.exists()


def test_discard_removes_even_what_is_damaged(path, written):
    path.write_bytes(written.replace(b'"b"', b'"B"'))
    Journal.discard(path)
    assert not path.exists()
    Journal.discard(path)
    assert not path.exists()
    assert resumed(path) == []
