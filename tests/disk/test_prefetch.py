"""What is fetched, in which bounds; the page cache itself is asked whether it is there."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from woqfx.disk import prefetch
from woqfx.disk.prefetch import Prefetch

PIECE, AHEAD = 4096, 5 * 4096
SIZE = 20 * PIECE + 1000


def wait():
    """Until no thread fetches."""
    for thread in threading.enumerate():
        if thread.name == "woqfx-prefetch":
            thread.join()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(SIZE))
    with path.open("rb", buffering=0) as opened:
        yield opened


@pytest.fixture
def small(monkeypatch):
    """Small pieces, of which the page cache is taken to have none."""
    monkeypatch.setattr(prefetch, "PIECE", PIECE)
    monkeypatch.setattr(prefetch, "AHEAD", AHEAD)
    monkeypatch.setattr(prefetch, "_NOWAIT", None)


@pytest.fixture
def sent(small, monkeypatch):
    """Where each stretch that is sent nowhere begins and ends."""
    stretches = []
    monkeypatch.setattr(os, "sendfile", lambda _, __, start, count: stretches.append((start, start + count)))
    return stretches


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(positions=st.lists(st.integers(0, SIZE), min_size=1, max_size=8))
def test_whole_pieces_within_reach_are_fetched_once_each(file, sent, positions):
    sent.clear()
    fetching = Prefetch(file)
    for position in positions:
        fetching.expect(position)
        wait()
    reached = {
        start
        for position in positions
        for start in range(0, SIZE, PIECE)
        if position <= start < min(position + AHEAD, SIZE)
    }
    assert sorted(sent) == [(start, min(start + PIECE, SIZE)) for start in sorted(reached)]


def test_what_is_read_piece_after_piece_stays_within_reach_until_the_end(file, sent):
    fetching = Prefetch(file)
    fetching.expect(0)
    wait()
    assert sent[-1] == (AHEAD - PIECE, AHEAD)
    for start in range(0, SIZE, PIECE):
        fetching.follow(start, start + PIECE)
        wait()
        assert sent[-1][1] <= start + PIECE + AHEAD
    assert sent == [(start, min(start + PIECE, SIZE)) for start in range(0, SIZE, PIECE)]


def test_single_reads_here_and_there_have_nothing_fetched(file, sent):
    fetching = Prefetch(file)
    for start in (0, 5000, 3000, 9000):
        fetching.follow(start, start + 1000)
    wait()
    assert sent == []
    fetching.follow(6000, 7000)  # behind the second
    wait()
    assert sent[0] == (2 * PIECE, 3 * PIECE)


def test_two_threads_that_read_in_turn_are_followed(file, sent):
    fetching = Prefetch(file)
    for start in (0, 2 * PIECE, PIECE, 3 * PIECE):
        fetching.follow(start, start + PIECE)
    wait()
    assert sent[-1][1] == 4 * PIECE + AHEAD


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the system does not say what its page cache holds")
def test_the_page_cache_holds_what_was_expected_and_no_more(tmp_path):
    path = tmp_path / "large"
    size = prefetch.AHEAD // 8
    path.write_bytes(os.urandom(1 << 20) * (size >> 20))
    with path.open("rb", buffering=0) as file:

        def held(start):
            try:
                return os.preadv(file.fileno(), [bytearray(4096)], start, os.RWF_NOWAIT) == 4096
            except BlockingIOError:
                return False

        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if held(size // 2):
            pytest.skip("the system does not forget files of this folder")
        Prefetch(file).expect(size // 2)
        wait()
        assert all(held(start) for start in range(size // 2, size, 1 << 20))
        assert not held(2 << 20)


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the system does not say what its page cache holds")
def test_nothing_is_fetched_that_is_in_the_page_cache(file, sent, monkeypatch):
    monkeypatch.setattr(prefetch, "_NOWAIT", os.RWF_NOWAIT)
    file.read()
    Prefetch(file).expect(0)
    assert sent == []


def test_pieces_from_the_first_that_is_absent_on_are_fetched(file, sent, monkeypatch):
    def read_now(_, __, position, ___):
        if position == 3 * PIECE - 1:
            raise BlockingIOError
        return 1

    monkeypatch.setattr(prefetch, "_NOWAIT", 8)
    monkeypatch.setattr(os, "preadv", read_now)
    Prefetch(file).expect(0)
    wait()
    assert sent == [(start, start + PIECE) for start in range(2 * PIECE, AHEAD, PIECE)]


@pytest.mark.parametrize("fault", [OSError(22, "Invalid argument"), OSError(5, "Input/output error")], ids=str)
def test_a_system_that_refuses_is_asked_once(file, small, monkeypatch, fault):
    calls = []

    def refuse(*_):
        calls.append(1)
        raise fault

    monkeypatch.setattr(os, "sendfile", refuse)
    fetching = Prefetch(file)
    for position in range(0, SIZE, PIECE):
        fetching.expect(position)
        wait()
    assert len(calls) == 1


def test_without_threads_nothing_is_fetched(file, sent, monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    fetching = Prefetch(file)
    fetching.expect(0)
    fetching.expect(PIECE)
    assert sent == []


def test_nothing_more_is_fetched_once_it_is_closed(file, small, monkeypatch):
    begun, go_on, calls = threading.Event(), threading.Event(), []

    def send(_, source, start, count):
        calls.append(start)
        begun.set()
        assert go_on.wait(10)
        os.fstat(source)  # still open

    monkeypatch.setattr(os, "sendfile", send)
    fetching = Prefetch(file)
    fetching.expect(0)
    assert begun.wait(10)
    fetching.close()
    file.close()
    go_on.set()
    wait()
    assert calls == [0]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_process_that_is_forked_meanwhile_reads_on(file, small, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def send(*_):
        begun.set()
        assert go_on.wait(10)

    monkeypatch.setattr(os, "sendfile", send)
    fetching = Prefetch(file)
    fetching.expect(0)
    assert begun.wait(10)
    child = os.fork()
    if not child:
        fetching.follow(0, PIECE)
        fetching.follow(PIECE, 2 * PIECE)  # would ask for more
        fetching.close()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    go_on.set()
    wait()
    assert status == 0
