"""A pack cache gives what packing gives, from files; and whatever is wrong with a file, the right weight."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from folders_of_models import saved, write
from torch import Tensor

import woqfx
from woqfx.disk.checkpoint import Checkpoint
from woqfx.errors import SchemeError, WoqfxError
from woqfx.layers import packed_weights
from woqfx_native import packed
from woqfx_native.cache import PackCache

IDS = torch.arange(1, 9)[None]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cached")
    return write(saved("mixtral", folder), folder / "out", symmetric=False, rules=["*.down_proj=nf4,symmetric:true"])


def logits(folder: Path, cache: Path | None = None) -> Tensor:
    options = {} if cache is None else {"pack_cache": str(cache)}
    with torch.no_grad():
        return woqfx.load(folder, backend_options=options)(IDS).logits


def files(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


def test_a_model_from_the_cache_is_the_same_model(checkpoint, tmp_path, monkeypatch):
    expected, cache = logits(checkpoint), tmp_path / "deep" / "cache"
    assert torch.equal(logits(checkpoint, cache), expected)
    before = [(file.name, file.stat().st_mtime_ns) for file in files(cache)]
    assert len(before) == len(Checkpoint(checkpoint).weights)
    monkeypatch.setattr(Checkpoint, "read_weight", None)  # nothing is read again
    assert torch.equal(logits(checkpoint, cache), expected)
    assert [(file.name, file.stat().st_mtime_ns) for file in files(cache)] == before


def test_a_saved_model_has_the_checkpoints_bytes(checkpoint, tmp_path):
    for step in ("fills it", "uses it"):
        model = woqfx.load(checkpoint, backend_options={"pack_cache": str(tmp_path / "cache")})
        woqfx.save(model, tmp_path / step)
        assert (tmp_path / step / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def test_what_is_done_to_a_model_stays_out_of_the_files(checkpoint, tmp_path):
    logits(checkpoint, tmp_path)
    before = [file.read_bytes() for file in files(tmp_path)]
    model = woqfx.load(checkpoint, backend_options={"pack_cache": str(tmp_path)})
    for weight in packed_weights(model).values():
        weight.get_buffer("packed").zero_()
    assert [file.read_bytes() for file in files(tmp_path)] == before


def _flip(at: int):
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    return damage


DAMAGE = {
    "a bit of the text": _flip(30),
    "a bit of the padding": _flip(4095),
    "a bit of the first byte": _flip(4096),
    "a bit of the last byte": _flip(-1),
    "cut off": lambda path: os.truncate(path, path.stat().st_size - 64),
    "cut off in the text": lambda path: os.truncate(path, 100),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + bytes(64)),
    "another weight's": lambda path: path.write_bytes(files(path.parent)[-1].read_bytes()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link to a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_file_is_written_again(damage, checkpoint, tmp_path):
    stored = Checkpoint(checkpoint)
    for name in stored.weights:
        PackCache(tmp_path, stored).packed(name)
    good = {file.name: file.read_bytes() for file in files(tmp_path)}
    DAMAGE[damage](files(tmp_path)[0])
    for name in stored.weights:
        assert torch.equal(PackCache(tmp_path, stored).packed(name), packed.pack(stored.read_weight(name)))
    assert {file.name: file.read_bytes() for file in files(tmp_path)} == good


def test_bytes_that_are_no_weight_are_refused_by_the_kernels(checkpoint, tmp_path, monkeypatch):
    """A forged file, text and checksum right: the header's sizes are checked like any stranger's."""
    stored, wrong = Checkpoint(checkpoint), torch.zeros(4096, dtype=torch.uint8)
    name = next(name for name, weight in stored.weights.items() if len(weight.shape) == 2)
    with monkeypatch.context() as forging:
        forging.setattr("woqfx_native.cache.pack", lambda q: wrong)
        PackCache(tmp_path, stored).packed(name)
    assert torch.equal(PackCache(tmp_path, stored).packed(name), packed.pack(stored.read_weight(name)))


def test_a_changed_checkpoint_is_another_one(checkpoint, tmp_path):
    folder = write(saved("llama", tmp_path), tmp_path / "out")
    first = logits(folder, tmp_path / "cache")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # in place: size and manifest stay as they were
    weights.write_bytes(data)
    os.utime(weights, ns=(1, 1))
    changed = Checkpoint(folder)
    assert changed.fingerprint() != ""
    assert torch.equal(logits(folder, tmp_path / "cache"), logits(folder))
    assert len(files(tmp_path / "cache")) == 2 * len(changed.weights)
    assert first.shape == logits(folder).shape


def test_double_quantized_weights_are_packed_as_ever(tmp_path):
    folder = write(saved("llama", tmp_path), tmp_path / "out", dtype="nf4", double_quant=True)
    assert torch.equal(logits(folder, tmp_path / "cache"), logits(folder))
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_an_error(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WoqfxError, match=r"cannot write the pack cache .*without a pack cache"):
        logits(checkpoint, tmp_path / "file")


def test_options_are_checked(checkpoint):
    with pytest.raises(SchemeError, match="backend torch_cpu has no option 'cache'; its options: pack_cache"):
        woqfx.load(checkpoint, backend_options={"cache": "x"})
