from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from woqfx.disk import durable
from woqfx.errors import OutputError

STEPS = ("open", "write", "ftruncate", "fdatasync", "fsync", "replace", "unlink", "mkdir")


class Steps:
    """Records the calls of `os` that matter, each with the file it acts on, and makes one of them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[tuple[str, str]] = []
        self.failing: dict[str, int] = {}
        for step in STEPS:
            monkeypatch.setattr(os, step, self._stand_in(step, getattr(os, step)))

    def _stand_in(self, step: str, real):
        def stand_in(first, *rest, **named):
            name = (Path(f"/proc/self/fd/{first}").readlink() if isinstance(first, int) else Path(first)).name
            self.taken.append((step, "temporary" if name.endswith(".woqfx-tmp") else name))
            if step in self.failing:
                raise OSError(self.failing[step], os.strerror(self.failing[step]))
            return real(first, *rest, **named)

        return stand_in


@pytest.fixture
def steps(monkeypatch) -> Steps:
    return Steps(monkeypatch)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# The order of steps is what makes a power cut harmless.


def test_write_file_syncs_the_bytes_before_the_name_and_the_folder_after_it(folder, steps):
    durable.write_file(folder / "config.json", b"new")
    assert steps.taken == [
        ("open", "temporary"),
        ("write", "temporary"),
        ("fdatasync", "temporary"),
        ("replace", "temporary"),
        ("open", "out"),
        ("fsync", "out"),
    ]


def test_replace_syncs_both_folders_the_new_name_first(folder, steps):
    (folder / "work").mkdir()
    (folder / "work" / "shard").write_bytes(b"x")
    steps.taken.clear()
    durable.replace(folder / "work" / "shard", folder / "shard")
    assert [step for step in steps.taken if step[0] != "open"] == [
        ("replace", "shard"),
        ("fsync", "out"),
        ("fsync", "work"),
    ]


def test_remove_syncs_the_folder(folder, steps):
    (folder / "journal").write_bytes(b"x")
    durable.remove(folder / "journal")
    assert steps.taken == [("unlink", "journal"), ("open", "out"), ("fsync", "out")]
    assert not (folder / "journal").exists()


def test_remove_of_what_is_gone_still_syncs_the_folder(folder, steps):
    durable.remove(folder / "journal")
    assert ("fsync", "out") in steps.taken


def test_make_folder_syncs_the_parent_of_each_folder_it_makes(folder, steps):
    durable.make_folder(folder / "a" / "b")
    assert (folder / "a" / "b").is_dir()
    assert [step for step in steps.taken if step[0] != "open"] == [
        ("mkdir", "a"),
        ("fsync", "out"),
        ("mkdir", "b"),
        ("fsync", "a"),
    ]


def test_make_folder_syncs_the_parent_of_a_folder_that_a_killed_run_made(folder, steps):
    durable.make_folder(folder)
    assert steps.taken[-1] == ("fsync", folder.parent.name)


def test_truncate_syncs(folder, steps):
    with (folder / "journal").open("w+b", buffering=0) as file:
        file.write(b"0123456789")
        steps.taken.clear()
        durable.truncate(file.fileno(), 4)
    assert steps.taken == [("ftruncate", "journal"), ("fdatasync", "journal")]
    assert (folder / "journal").read_bytes() == b"0123"


def test_sync_does_with_fsync_where_there_is_no_fdatasync(folder, steps, monkeypatch):
    monkeypatch.delattr(os, "fdatasync")
    with (folder / "file").open("wb") as file:
        durable.sync(file.fileno())
    assert steps.taken == [("fsync", "file")]


# Content.


@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_append_goes_on_after_a_short_write(folder, monkeypatch, piece):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:piece]))
    with (folder / "file").open("wb", buffering=0) as file:
        durable.append(file.fileno(), b"the whole of it")
    assert (folder / "file").read_bytes() == b"the whole of it"


def test_append_counts_bytes_and_not_items(folder, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    numbers = memoryview(bytes(range(16))).cast("f")
    with (folder / "file").open("wb", buffering=0) as file:
        durable.append(file.fileno(), numbers)
        durable.append(file.fileno(), numbers[:0])
        durable.append(file.fileno(), b"")
    assert (folder / "file").read_bytes() == bytes(range(16))


def test_write_file_replaces_and_leaves_nothing_else(folder):
    for data in (b"old", b"", b"a longer new one"):
        durable.write_file(folder / "config.json", data)
        assert (folder / "config.json").read_bytes() == data
    assert names(folder) == ["config.json"]


def test_write_file_honours_the_umask(folder):
    before = os.umask(0o027)
    try:
        durable.write_file(folder / "config.json", b"{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "config.json").stat().st_mode) == 0o640


def test_write_file_replaces_a_link_and_not_what_it_points_to(folder):
    (folder / "original").write_bytes(b"original")
    (folder / "config.json").symlink_to(folder / "original")
    durable.write_file(folder / "config.json", b"new")
    assert (folder / "original").read_bytes() == b"original"
    assert not (folder / "config.json").is_symlink()


# Failure at each step.

REMEDIES = {
    errno.ENOSPC: r"MiB free there\); free some space and run the same command again",
    errno.EDQUOT: r"MiB free there\); .*quota",
    errno.EIO: "check it",
    errno.EROFS: "read-only; choose another output path",
    errno.EPERM: "permissions",
}


@pytest.mark.parametrize("number", REMEDIES, ids=errno.errorcode.get)
@pytest.mark.parametrize("step", ["open", "write", "fdatasync", "replace"])
def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_other(folder, steps, step, number):
    (folder / "config.json").write_bytes(b"old")
    steps.failing = {step: number}
    with pytest.raises(OutputError, match=REMEDIES[number]) as caught:
        durable.write_file(folder / "config.json", b"new")
    assert str(folder / "config.json") in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert names(folder) == ["config.json"]
    assert (folder / "config.json").read_bytes() == b"old"


def test_a_folder_that_cannot_be_synced_is_an_error_with_the_new_file_whole(folder, steps):
    (folder / "config.json").write_bytes(b"old")
    steps.failing = {"fsync": errno.EIO}
    with pytest.raises(OutputError, match="check it"):
        durable.write_file(folder / "config.json", b"new")
    assert names(folder) == ["config.json"]
    assert (folder / "config.json").read_bytes() == b"new"


@pytest.mark.parametrize("step", ["write", "fdatasync", "replace"])
def test_an_interrupted_write_leaves_no_temporary(folder, monkeypatch, step):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        durable.write_file(folder / "config.json", b"new")
    assert names(folder) == []


def test_leftovers_finds_what_a_killed_write_left_and_nothing_else(folder, steps):
    (folder / ".gitattributes").write_bytes(b"")
    (folder / "model.safetensors").write_bytes(b"")
    steps.failing = {"replace": errno.EIO, "unlink": errno.EIO}  # as if killed: the clean-up does not happen
    with pytest.raises(OutputError):
        durable.write_file(folder / "config.json", b"new")
    steps.failing = {}
    (left,) = durable.leftovers(folder)
    assert left.read_bytes() == b"new"
    durable.remove(left)
    assert durable.leftovers(folder) == []


def test_the_first_error_is_the_one_reported(folder, steps):
    steps.failing = {"write": errno.ENOSPC, "unlink": errno.EIO}
    with pytest.raises(OutputError, match="No space left"):
        durable.write_file(folder / "config.json", b"new")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF], ids=errno.errorcode.get)
def test_a_file_system_that_cannot_sync_folders_is_no_error(folder, steps, number):
    steps.failing = {"fsync": number}
    durable.write_file(folder / "config.json", b"new")
    assert (folder / "config.json").read_bytes() == b"new"


def test_a_folder_that_may_not_be_read_is_no_error(folder, steps):
    steps.failing = {"open": errno.EACCES}
    durable.sync_folder(folder)
    assert steps.taken == [("open", "out")]


@pytest.mark.parametrize(
    ("step", "act"),
    [
        ("unlink", lambda folder: durable.remove(folder / "x")),
        ("mkdir", lambda folder: durable.make_folder(folder / "x")),
        ("replace", lambda folder: durable.replace(folder / "y", folder / "x")),
    ],
    ids=["remove", "make_folder", "replace"],
)
def test_each_operation_explains_its_failure(folder, steps, step, act):
    steps.failing = {step: errno.EROFS}
    with pytest.raises(OutputError, match=r"out/x: Read-only file system; .* mount it writable"):
        act(folder)


# Real failures of the real system.


def test_a_full_device():
    with (
        pytest.raises(OutputError, match=r"cannot write /dev/full: No space left on device \(.* MiB free"),
        Path("/dev/full").open("wb", buffering=0) as file,
        durable.explained("/dev/full"),
    ):
        durable.append(file.fileno(), b"x")


def test_a_file_where_a_folder_should_be(folder):
    (folder / "file").write_bytes(b"kept")
    for act in (
        lambda: durable.write_file(folder / "file" / "config.json", b""),
        lambda: durable.make_folder(folder / "file" / "a" / "b"),
        lambda: durable.make_folder(folder / "file"),
    ):
        with pytest.raises(OutputError, match=r"a part of the path is a file|something of this name is there already"):
            act()
    assert (folder / "file").read_bytes() == b"kept"


def test_a_folder_where_the_file_should_be(folder):
    (folder / "config.json").mkdir()
    with pytest.raises(OutputError, match="a folder of this name is there already"):
        durable.write_file(folder / "config.json", b"")
    assert names(folder) == ["config.json"]


def test_a_folder_that_is_not_there(folder):
    with pytest.raises(OutputError, match="the folder is not there"):
        durable.write_file(folder / "absent" / "config.json", b"")


def test_a_name_that_is_too_long(folder):
    with pytest.raises(OutputError, match="with shorter names"):
        durable.write_file(folder / ("x" * 300), b"")


def test_an_error_of_any_other_kind_keeps_its_words(folder):
    with pytest.raises(OutputError, match="Host is down; put that right"), durable.explained(folder):
        raise OSError(errno.EHOSTDOWN, os.strerror(errno.EHOSTDOWN))
    with pytest.raises(OutputError, match="a wordless one"), durable.explained(folder):
        raise OSError("a wordless one")


def test_what_is_not_an_oserror_passes_unchanged(folder):
    with pytest.raises(ZeroDivisionError), durable.explained(folder):
        _ = 1 / 0
