"""One writer at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from woqfx.disk import journal
from woqfx.disk.journal import Contents, Journal
from woqfx.errors import OutputError

RUN = {"source": "tiny", "dtype": "nf4"}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "journal"


def test_a_second_writer_is_refused_until_the_first_is_done(path):
    with Journal.open(path, RUN) as first:
        first.append([{"tensor": "a"}])
        for act in (lambda: Journal.open(path, RUN), lambda: Journal.discard(path)):
            with pytest.raises(OutputError, match=rf"another woqfx is writing to {path.parent} .*journal"):
                act()
        first.append([{"tensor": "b"}])
    with Journal.open(path, RUN) as second:
        assert second.records == [{"tensor": "a"}, {"tensor": "b"}]


def test_a_refused_journal_is_not_kept_locked(path):
    Journal.open(path, RUN).close()
    with pytest.raises(OutputError) as caught:
        Journal.open(path, {})
    with Journal.open(path, RUN):
        assert caught, "kept, with the frames that it came from, so that nothing is closed by chance"


def test_the_lock_of_a_killed_process_does_not_outlive_it(path):
    program = f"""
        import time
        from woqfx.disk.journal import Journal
        opened = Journal.open({str(path)!r}, {RUN!r})
        opened.append([{{"tensor": "a"}}])
        print("ready", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    root = Path(journal.__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as child:
        try:
            assert child.stdout.readline() == b"ready\n"
            with pytest.raises(OutputError, match="another woqfx"):
                Journal.open(path, RUN)
        finally:
            child.send_signal(signal.SIGKILL)
    with Journal.open(path, RUN) as opened:
        assert opened.records == [{"tensor": "a"}]


def test_a_journal_removed_while_we_were_opening_it_is_begun_anew(path, monkeypatch):
    with Journal.open(path, RUN) as others:
        others.append([{"tensor": "a"}])
    real = fcntl.flock
    removed = []

    def others_finish_first(file, operation):
        if not removed:
            path.unlink()
            removed.append(path)
        return real(file, operation)

    monkeypatch.setattr(fcntl, "flock", others_finish_first)
    with Journal.open(path, RUN) as opened:
        assert opened.records == []
        opened.append([{"tensor": "b"}])
    assert Journal.peek(path) == Contents(RUN, [{"tensor": "b"}])


def test_a_file_system_without_locks_is_an_error(path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OutputError, match="No locks available"):
        Journal.open(path, RUN)
