"""What is made once for all processes of a test run, however the tests are shared out to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once(factory: pytest.TempPathFactory, worker: str, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`, filled by `make` in whichever process comes first; `worker` is xdist's fixture `worker_id`."""
    base = factory.getbasetemp()
    folder = (base if worker == "master" else base.parent) / name
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
