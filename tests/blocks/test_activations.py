from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from woqfx.blocks.activations import FileShelf, Shelf, Store
from woqfx.errors import CheckpointError, OutputError

TENSORS = [
    torch.randn(2, 3, 5),
    torch.zeros(1, dtype=torch.bool),
    torch.arange(7),
    torch.randn(3, dtype=torch.bfloat16),
]


def same(found, expected):
    return len(found) == len(expected) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True)
    )


@pytest.fixture(params=["memory", "temporary", "named"])
def shelf(request, tmp_path):
    made = {
        "memory": Shelf,
        "temporary": lambda: FileShelf.temporary(tmp_path),
        "named": lambda: FileShelf.create(tmp_path / "shelf"),
    }[request.param]()
    yield made
    made.clear()


def test_what_is_put_down_is_read(shelf):
    assert [shelf.append(tensor) for tensor in TENSORS] == [0, 1, 2, 3]
    assert same(shelf, TENSORS)
    assert same(shelf[1:3], TENSORS[1:3])
    assert shelf[0] is shelf[0]  # whoever tells tensors apart by identity may
    shelf.append(torch.ones(4))
    assert same(shelf, [*TENSORS, torch.ones(4)])


def test_what_is_read_outlives_the_shelf(shelf):
    shelf.append(TENSORS[0])
    kept = shelf[0]
    shelf.clear()
    assert torch.equal(kept, TENSORS[0])


def test_views_that_are_not_contiguous(shelf):
    base = torch.arange(24.0).view(4, 6)
    shelf.append(base.T)
    shelf.append(base[:, 1])
    assert same(shelf, [base.T, base[:, 1]])


def test_whoever_writes_to_what_was_read_does_not_change_the_file(tmp_path):
    shelf = FileShelf.create(tmp_path / "shelf")
    shelf.append(torch.zeros(4))
    record = shelf.commit()
    shelf[0][0] = 1
    assert same(FileShelf.reopen(tmp_path, record), [torch.zeros(4)])


@given(st.lists(st.tuples(st.sampled_from(TENSORS), st.integers(0, 5)), min_size=1, max_size=8))
def test_a_committed_shelf_reopens(tmp_path_factory, puts):
    folder = tmp_path_factory.mktemp("shelf")
    shelf = FileShelf.create(folder / "shelf")
    tensors = [tensor.repeat_interleave(times, 0) for tensor, times in puts] + [torch.ones(1)]
    for tensor in tensors:
        shelf.append(tensor)
    record = shelf.commit()
    shelf.clear()
    again = FileShelf.reopen(folder, record)
    assert same(again, tensors)
    assert record["bytes"] == (folder / "shelf").stat().st_size
    again.clear()


@pytest.mark.parametrize("damage", ["altered", "longer", "shorter", "gone", "a link"])
def test_a_damaged_shelf_is_refused(tmp_path, damage):
    path = tmp_path / "shelf"
    shelf = FileShelf.create(path)
    shelf.append(torch.ones(100))
    record = shelf.commit()
    shelf.clear()
    content = path.read_bytes()
    if damage in ("gone", "a link"):
        path.rename(tmp_path / "moved")
    if damage == "a link":
        path.symlink_to(tmp_path / "moved")
    changed = {"altered": b"x" + content[1:], "longer": content + b"x", "shorter": content[:-1]}
    if damage in changed:
        path.write_bytes(changed[damage])
    with pytest.raises(CheckpointError, match="overwrite=True") as caught:
        FileShelf.reopen(tmp_path, record)
    assert str(path) in str(caught.value)


def test_a_shelf_outside_of_the_folder_is_not_touched(tmp_path):
    shelf = FileShelf.create(tmp_path / "shelf")
    shelf.append(torch.ones(4))
    record = shelf.commit()
    shelf.clear()
    inside = tmp_path / "inside"
    inside.mkdir()
    for name in ("../shelf", str(tmp_path / "shelf")):
        with pytest.raises(CheckpointError, match="leads out of"):
            FileShelf.reopen(inside, record | {"file": name})


def test_a_folder_that_cannot_be_written_is_explained(tmp_path):
    with pytest.raises(OutputError, match="is not there"):
        FileShelf.create(tmp_path / "nowhere" / "shelf")


def test_memory_up_to_a_budget_then_files_without_names(tmp_path):
    store = Store(tmp_path, budget=100)
    first, second = store.shelf(80), store.shelf(80)
    first.append(torch.ones(20))
    assert (type(first), type(second)) == (Shelf, Shelf)  # nothing was put down yet when the second came
    third = store.shelf(80)
    assert type(third) is FileShelf
    third.append(torch.ones(20))
    assert list(tmp_path.iterdir()) == []
    store.discard(first)
    assert type(store.shelf(80)) is Shelf
    store.close()


def test_what_is_to_last_is_in_the_folder_until_it_is_discarded(tmp_path):
    store = Store(tmp_path, budget=1 << 20)
    shelf = store.lasting("kept", 4)
    shelf.append(torch.ones(1))
    record = shelf.commit()
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    again = Store(tmp_path)
    found = again.reopen(record)
    assert same(found, [torch.ones(1)])
    again.discard(found)
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_nothing_lasts():
    store = Store(None, budget=1 << 20)
    assert type(store.lasting("kept", 4)) is Shelf
    assert type(store.lasting("kept", 1 << 21)) is FileShelf
    store.close()


def test_no_file_stays_open(tmp_path):
    def open_here():
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return [link for link in links if str(tmp_path) in str(link.readlink())]

    store = Store(tmp_path, budget=0)
    for number in range(20):
        shelf = store.lasting(str(number), 4)
        shelf.append(torch.ones(1))
        assert float(shelf[0]) == 1
    assert open_here()
    store.close()
    del shelf
    gc.collect()
    assert open_here() == []
