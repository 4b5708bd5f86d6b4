"""Values come in order, few at a time, and errors in their place."""

from __future__ import annotations

import threading
import time

import pytest

from woqfx.ahead import read_ahead


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_values_come_in_order(threads, count):
    def read(key):
        time.sleep(0.002 * (count - key))  # later ones are done first
        return key * key

    assert list(read_ahead(range(count), read, threads)) == [(key, key * key) for key in range(count)]


def test_no_more_than_so_many_are_held():
    begun = []
    values = read_ahead(range(10), begun.append, 2)
    for taken in range(10):
        assert next(values) == (taken, None)
        assert len(begun) <= taken + 3


def test_an_error_comes_where_its_value_would_have():
    def read(key):
        if key == 2:
            raise OSError("gone")
        return key

    values = read_ahead(range(5), read, 2)
    assert [next(values), next(values)] == [(0, 0), (1, 1)]
    with pytest.raises(OSError, match="gone"):
        next(values)


def test_no_thread_outlives_the_reading():
    values = read_ahead(range(5), lambda key: key, 2)
    next(values)
    values.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("woqfx-read")]
