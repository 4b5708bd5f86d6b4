from __future__ import annotations

import os
import resource
import signal
import stat
from pathlib import Path

import pytest
from folders_of_models import contents, digests, saved, write
from forked import forked
from tiny_models import tiny_model

import woqfx
from woqfx.disk.checkpoint import Checkpoint
from woqfx.disk.journal import Journal
from woqfx.disk.output import JOURNAL, WORK, claim, finished, items_of
from woqfx.errors import CheckpointError, OutputError, SourceError, UnfinishedError, WeightError


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return saved("llama", tmp_path_factory.mktemp("models"), num_hidden_layers=1)


def stopped(source: Path, out: Path, monkeypatch, *, after: int = 9, **request) -> Path:
    """The output of a run that failed, as if the disk were full, after so many tensors."""
    from woqfx.disk import durable, writer

    monkeypatch.setattr(writer, "_COMMIT_SECONDS", 0.0)
    real, left = durable.append, [3 * after]

    def append(fd, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "append", append)
        with pytest.raises(OutputError, match="free some space"):
            write(source, out, **request)
    return out


def test_nothing_but_the_checkpoint_is_left(source, tmp_path):
    out = write(source, tmp_path / "new" / "folders" / "out")
    assert {path.name for path in out.iterdir()} == {*Checkpoint(out).manifest.files, "woqfx.json"}


def test_a_finished_checkpoint_is_replaced_only_on_request(source, tmp_path):
    out = write(source, tmp_path / "out", shard_bytes=20_000)
    before = digests(out)
    with pytest.raises(OutputError, match="holds a finished checkpoint: pass overwrite=True"):
        write(source, out, dtype="int8")
    assert digests(out) == before
    write(source, out, dtype="int8", overwrite=True)
    assert digests(out) == digests(write(source, tmp_path / "fresh", dtype="int8"))  # no stale shard is left


@pytest.mark.parametrize("asked", [{"target_bits": 5}, {"algorithm": "gptq", "calibration": "self"}], ids=str)
def test_a_folder_that_is_taken_is_refused_before_any_work(source, tmp_path, monkeypatch, asked):
    def work(*_, **__):
        raise AssertionError("it began")

    out = write(source, tmp_path / "out")
    monkeypatch.setattr("woqfx.mixed.mixing.prepare_calibration", work)
    monkeypatch.setattr("woqfx.api.prepare_calibration", work)
    with pytest.raises(OutputError, match="holds a finished checkpoint"):
        woqfx.quantize(source, out=out, **asked)
    with pytest.raises(OutputError, match="is, or is inside, the model"):
        woqfx.quantize(source, out=source / "out", **asked)


def test_overwriting_keeps_what_is_not_of_the_checkpoint(source, tmp_path):
    out = write(source, tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    write(source, out, dtype="int8", overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"


def test_the_old_checkpoint_stays_readable_until_the_new_one_is_whole(source, tmp_path, monkeypatch):
    out = write(source, tmp_path / "out")
    old = contents(out)
    stopped(source, out, monkeypatch, dtype="int8", overwrite=True)
    assert (out / JOURNAL).exists()
    found = contents(out)
    assert all((found[name] == old[name]).all() for name in old)
    write(source, out, dtype="int8", overwrite=True)
    assert digests(out) == digests(write(source, tmp_path / "fresh", dtype="int8"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_files_is_left_alone(source, tmp_path, overwrite):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"out holds other files, thesis\.tex for one"):
        write(source, tmp_path / "out", overwrite=overwrite)
    assert digests(tmp_path / "out").keys() == {"thesis.tex"}


def test_an_empty_folder_is_taken(source, tmp_path):
    (tmp_path / "out").mkdir()
    assert contents(write(source, tmp_path / "out"))


def test_a_file_is_no_output(source, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="is a file: give a folder"):
        write(source, tmp_path / "out")


@pytest.mark.parametrize("where", [".", "out", "a/b"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_model_that_is_read_is_not_written_into(tmp_path, where, overwrite):
    source = saved("llama", tmp_path, num_hidden_layers=1)
    before = digests(source)
    with pytest.raises(OutputError, match="is inside, the model that is read"):
        write(source, source / where, overwrite=overwrite)
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(OutputError, match="is inside, the model that is read"):
        write(source, tmp_path / "link" / where, overwrite=overwrite)
    assert digests(source) == before


def test_a_stopped_run_says_so_and_goes_on(source, tmp_path, monkeypatch):
    out = stopped(source, tmp_path / "out", monkeypatch)
    with pytest.raises(UnfinishedError, match=r"out holds an unfinished run \(\d+ tensors are done\): run the same"):
        woqfx.load(out)
    done = len(Journal.peek(out / JOURNAL).records)
    assert done > 3
    events = []
    monkeypatch.setattr(woqfx.registry(), "emit", events.append)
    write(source, out)
    assert events[0].resumed == done
    assert digests(out) == digests(write(source, tmp_path / "fresh"))


def test_a_run_asked_for_differently_is_refused_with_the_differences(source, tmp_path, monkeypatch):
    out = stopped(source, tmp_path / "out", monkeypatch)
    before = digests(out)
    with pytest.raises(OutputError) as caught:
        write(source, out, dtype="nf4", rules=["*.down_proj=keep"])
    message = str(caught.value)
    assert 'request.scheme.dtype: "int4_fullrange" there, "nf4" now' in message
    assert 'request.rules: [] there, ["*.down_proj=keep"] now' in message
    assert "group_size" not in message
    assert digests(out) == before


def test_a_run_asked_for_differently_gives_way_to_overwrite(source, tmp_path, monkeypatch):
    out = stopped(source, tmp_path / "out", monkeypatch)
    write(source, out, dtype="nf4", overwrite=True)
    assert digests(out) == digests(write(source, tmp_path / "fresh", dtype="nf4"))


def test_a_changed_source_is_another_run(tmp_path, monkeypatch):
    source = saved("llama", tmp_path, num_hidden_layers=1)
    out = stopped(source, tmp_path / "out", monkeypatch)
    os.utime(source / "model.safetensors", ns=(1, 1))
    with pytest.raises(OutputError, match=r"source\.fingerprint"):
        write(source, out)


def test_a_run_stopped_while_publishing_gives_way_as_a_whole_checkpoint(source, tmp_path, monkeypatch):
    from woqfx.disk import durable

    out = write(source, tmp_path / "out", dtype="int8", shard_bytes=10_000)
    real, left = os.replace, [6]

    def replace(source, target):
        left[0] -= Path(target).parent == out
        if left[0] < 0:
            raise OSError(5, "Input/output error")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "replace", replace)
        with pytest.raises(OutputError, match="the device failed"):
            write(source, out, shard_bytes=5_000, overwrite=True)
    assert finished(Journal.peek(out / JOURNAL).records)
    with pytest.raises(UnfinishedError):
        Checkpoint(out)
    write(source, out, dtype="nf4", overwrite=True)  # files of neither of the two may be left
    assert digests(out) == digests(write(source, tmp_path / "fresh", dtype="nf4"))


@pytest.mark.parametrize("damage", ["shard changed", "shard gone", "journal changed"])
def test_a_damaged_unfinished_run_is_refused_or_on_request_thrown_away(source, tmp_path, monkeypatch, damage):
    out = stopped(source, tmp_path / "out", monkeypatch)
    if damage == "shard gone":
        (out / WORK / "model.safetensors").unlink()
    else:
        path = out / JOURNAL if damage == "journal changed" else out / WORK / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[40 if damage == "journal changed" else 500] ^= 1
        path.write_bytes(data)
    with pytest.raises(woqfx.WoqfxError, match="start afresh with overwrite=True"):
        write(source, out)
    write(source, out, overwrite=True)
    assert digests(out) == digests(write(source, tmp_path / "fresh"))


def test_another_process_is_kept_out(source, tmp_path):
    out = tmp_path / "out"
    with claim(out, {"run": 1}, overwrite=False, resumable=True):
        said = forked(lambda: woqfx.quantize(source, out=out, overwrite=True))
        (out / WORK / "shard").touch()
    assert said.startswith("OutputError: another woqfx is writing to")
    assert (out / WORK / "shard").exists()


def test_a_link_in_place_of_the_work_is_not_followed(source, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / WORK).symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match="is a symbolic link, and is not followed"):
        write(source, tmp_path / "out", overwrite=True)
    assert (tmp_path / "precious" / "file").exists()


def test_a_hostile_manifest_removes_nothing_it_may_not(source, tmp_path):
    (tmp_path / "precious").touch()
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").touch()
    listed = ", ".join(f'"{name}": {{"bytes": 0, "sha256": "{"0" * 64}"}}' for name in ("../precious", "mine.txt"))
    (out / "woqfx.json").write_text(
        f'{{"woqfx": 1, "request": {{}}, "schemes": [], "weights": {{}}, "aliases": {{}}, "files": {{{listed}}}}}'
    )
    write(source, out, overwrite=True)
    assert (tmp_path / "precious").exists()
    assert (out / "mine.txt").exists()


def test_the_umask_decides_who_may_read(source, tmp_path):
    before = os.umask(0o027)
    try:
        out = write(source, tmp_path / "out")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o640}
    assert stat.S_IMODE(out.stat().st_mode) == 0o750


def test_a_file_size_limit_is_explained(source, tmp_path):
    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
        woqfx.quantize(source, dtype="int4_fullrange", out=tmp_path / "out")

    said = forked(limited)
    assert said.startswith("OutputError: ")
    assert "ulimit -f" in said
    write(source, tmp_path / "out")
    assert digests(tmp_path / "out") == digests(write(source, tmp_path / "fresh"))


# The source fails on the way.


def test_a_source_that_is_cut_short_on_the_way_is_named_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr("woqfx.engine.IN_PROGRESS", 1)  # one tensor at a time, or all would be read before
    from folders_of_models import request

    from woqfx.engine import write_checkpoint
    from woqfx.planning import make_plan
    from woqfx.source import FolderSource

    source = saved("llama", tmp_path, num_hidden_layers=1)
    whole = (source / "model.safetensors").read_bytes()
    times = (source / "model.safetensors").stat()
    opened = FolderSource(source)
    steps = write_checkpoint(opened, make_plan(opened, request()), tmp_path / "out")
    for _ in range(3):
        next(steps)
    os.truncate(source / "model.safetensors", 9_000)
    with pytest.raises(SourceError, match=r"model\.safetensors cannot be used: it ended"):
        list(steps)
    with pytest.raises(UnfinishedError):
        Checkpoint(tmp_path / "out")
    (source / "model.safetensors").write_bytes(whole)
    os.utime(source / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    write(source, tmp_path / "out")
    assert digests(tmp_path / "out") == digests(write(source, tmp_path / "fresh"))


@pytest.mark.parametrize("change", ["touched", "gone"])
def test_a_source_that_changes_on_the_way_is_not_published(tmp_path, change):
    from folders_of_models import request

    from woqfx.engine import write_checkpoint
    from woqfx.planning import make_plan
    from woqfx.source import FolderSource

    source = saved("llama", tmp_path, num_hidden_layers=1)
    opened = FolderSource(source)
    steps = write_checkpoint(opened, make_plan(opened, request()), tmp_path / "out")
    next(steps)
    if change == "touched":
        os.utime(source / "model.safetensors", ns=(1, 1))
    else:
        (source / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"was changed while it was read|has vanished"):
        list(steps)
    with pytest.raises(UnfinishedError):
        Checkpoint(tmp_path / "out")


# Live modules.


@pytest.mark.parametrize("out", [False, True], ids=["in memory", "to a folder"])
def test_a_bad_weight_leaves_the_module_and_the_folder_as_they_were(tmp_path, out):
    import torch

    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj.weight.data[3, 5] = float("nan")
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.named_parameters()}
    with pytest.raises(WeightError, match=r"layers\.1\.mlp\.down_proj.*\[3, 5\] is nan"):
        woqfx.quantize(model, **({"out": tmp_path / "out"} if out else {}))
    after = {name: (id(tensor), tensor) for name, tensor in model.named_parameters()}
    assert {name: place for name, (place, _) in before.items()} == {name: place for name, (place, _) in after.items()}
    assert all(torch.equal(after[name][1].nan_to_num(), tensor.nan_to_num()) for name, (_, tensor) in before.items())
    if out:
        with pytest.raises(UnfinishedError):
            woqfx.load(tmp_path / "out")


def test_a_live_run_that_failed_starts_again(tmp_path):
    model = tiny_model("llama")
    model.model.norm.weight.data[0] = 2.0
    broken = tiny_model("llama")
    broken.model.layers[1].mlp.down_proj.weight.data[0] = float("inf")
    with pytest.raises(WeightError):
        woqfx.quantize(broken, out=tmp_path / "out")
    woqfx.quantize(model, out=tmp_path / "out")
    assert float(contents(tmp_path / "out")["model.norm.weight"][0]) == 2.0


def test_a_save_that_failed_starts_again(tmp_path, monkeypatch):
    from woqfx.disk import durable

    model = woqfx.quantize(tiny_model("llama"))
    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OutputError, match="free some space"):
            woqfx.save(model, tmp_path / "out")
    woqfx.save(model, tmp_path / "out")
    with pytest.raises(OutputError, match="holds a finished checkpoint"):
        woqfx.save(model, tmp_path / "out")
    woqfx.save(woqfx.load(tmp_path / "out"), tmp_path / "out", overwrite=True)  # over what it was loaded from
    woqfx.save(model, tmp_path / "fresh")
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


@pytest.mark.parametrize("name", ["../precious", "/{}/precious", "woqfx-unfinished/../../precious", "..", ""])
@pytest.mark.parametrize("how", ["stale", "files"])
def test_a_journal_from_elsewhere_leads_to_no_other_place(source, tmp_path, how, name):
    """It would have files removed, or replaced, that lie outside of the folder."""
    out, precious = tmp_path / "out", tmp_path / "precious"
    (out / WORK).mkdir(parents=True)
    precious.write_text("mine")
    (out / WORK / "woqfx.json").write_text("{}")
    name = name.format(tmp_path)
    forged = {"files": {}, "stale": [], "marker": "woqfx.json"} | ({"stale": [name]} if how == "stale" else {})
    if how == "files":
        forged["files"] = {name: len("mine")}
    with Journal.open(out / JOURNAL, {"x": 1}) as journal:
        journal.append([forged])
    with pytest.raises(OutputError, match="was asked for differently"):
        write(source, out)
    write(source, out, overwrite=True)
    assert precious.read_text() == "mine"
    assert digests(out) == digests(write(source, tmp_path / "fresh"))


@pytest.mark.parametrize(
    "record",
    [
        {"files": 5, "stale": [], "marker": "woqfx.json"},
        {"files": {}, "stale": [5], "marker": "woqfx.json"},
        {"files": {"a": "b"}, "stale": [], "marker": "woqfx.json"},
        {"files": {}, "stale": [], "marker": "../woqfx.json"},
        {"files": {}},
    ],
    ids=str,
)
def test_a_last_record_that_no_run_has_written(record):
    with pytest.raises(CheckpointError, match="does not list plain names of files"):
        finished([record])


@pytest.mark.parametrize("change", [{"item": 5}, {"file": "../x"}, {"bytes": "many"}, {"sha256": None}], ids=str)
def test_a_record_of_a_tensor_that_no_run_has_written(change):
    record = {"item": "a.weight", "file": "model.safetensors", "bytes": 8, "sha256": "", "facts": {}}
    assert items_of([record]) == [record]
    with pytest.raises(CheckpointError, match="does not say of a tensor where it is"):
        items_of([record | change])
