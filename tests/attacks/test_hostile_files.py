"""Weight files that lie, and folders that lead elsewhere."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from forgeries import MANIFEST, Forgery, Net, read_all, refused


def replace(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


def poke(name, index, value):
    def change(tensors):
        tensors[name][index] = value

    return change


TENSORS = {
    "part missing": (lambda t: t.pop("plain.weight.scales"), "plain.weight.*scheme needs"),
    "part of other type": (replace("plain.weight.scales", torch.zeros(40, 1)), "plain.weight.scales' is torch.float32"),
    "part of other shape": (
        replace("plain.weight.codes", torch.zeros(40, 23, dtype=torch.uint8)),
        "plain.weight.codes",
    ),
    "part too many": (
        replace("plain.weight.zeros", torch.zeros(40, 1, dtype=torch.uint8)),
        "plain.weight.*scheme needs",
    ),
    "part unknown": (replace("plain.weight.evil", torch.zeros(1)), "plain.weight.*evil"),
    "tensor of no place": (replace("evil", torch.zeros(1)), "the model has no 'evil'"),
    "tensor of a class": (replace("plain.__class__", torch.zeros(1)), "the model has no 'plain.__class__'"),
    "tensor of an empty name": (replace("", torch.zeros(1)), "the model has no ''"),
    "tensor missing": (lambda t: t.pop("norm.weight"), "lacks 1 tensors of Net, norm.weight"),
    "tensor of other shape": (replace("norm.weight", torch.ones(41)), r"norm.weight is torch.float32 \[41\]"),
    "tensor of integers": (replace("norm.weight", torch.ones(40, dtype=torch.int32)), "norm.weight is torch.int32"),
    "dense beside quantized": (replace("plain.weight", torch.zeros(40, 24)), "plain.weight.*one tensor|plain.weight"),
    "scale NaN": (poke("plain.weight.scales", (3, 0), float("nan")), "plain.weight: a scale is not finite"),
    "scale infinite": (poke("plain.weight.scales", (3, 0), float("inf")), "plain.weight: a scale is not finite"),
    "range NaN": (poke("doubled.weight.scale_ranges", 0, float("nan")), "doubled.weight: a scale is not finite"),
    "offset infinite": (
        replace("doubled.weight.scale_offset", torch.tensor(float("-inf"))),
        "doubled.weight: a scale is not finite",
    ),
    "zero point outside": (poke("zeros.weight.zeros", (0, 0), 16), "zeros.weight: a zero point is outside"),
    "code outside the table": (poke("coarse.weight.codes", (0, 0), 255), "coarse.weight: a code is outside"),
    "order not a permutation": (
        replace("plain.weight.order", torch.zeros(24, dtype=torch.int32)),
        "plain.weight.order is not a permutation",
    ),
    "order out of bounds": (
        replace("plain.weight.order", torch.arange(1, 25, dtype=torch.int32)),
        "plain.weight.order is not a permutation",
    ),
    "order negative": (
        replace("plain.weight.order", torch.arange(-24, 0, dtype=torch.int32)),
        "plain.weight.order is not a permutation",
    ),
    "order of other type": (replace("plain.weight.order", torch.arange(24)), "plain.weight.order' is torch.int64"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_file_with_other_tensors(forgery: Forgery, name: str) -> None:
    change, match = TENSORS[name]
    forgery.rewrite(change)
    refused(forgery.path, match, Net())


def moved(offset):
    def change(header):
        entry = header["plain.weight.codes"]
        entry["data_offsets"] = [place + offset for place in entry["data_offsets"]]

    return change


HEADERS = {
    "no object": (lambda header: [], "does not begin with"),
    "dtype unknown": (lambda h: h["norm.weight"].update(dtype="F3"), "norm.weight' has dtype 'F3'"),
    "tensors that overlap": (moved(-8), "plain.weight.codes"),
    "tensors with a hole": (moved(8), "plain.weight.codes"),
    "offsets negative": (moved(-(10**9)), "plain.weight.codes' has data_offsets"),
    "offsets of terabytes": (lambda h: h["norm.weight"].update(data_offsets=[0, 2**50], shape=[2**48]), "norm.weight"),
    "shape negative": (lambda h: h["norm.weight"].update(shape=[-40]), "norm.weight' has shape"),
    "shape beyond numbers": (lambda h: h["norm.weight"].update(shape=[2**62, 2**62, 2**62]), "norm.weight' has shape"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies(forgery: Forgery, name: str) -> None:
    change, match = HEADERS[name]
    forgery.reheader(change)
    refused(forgery.path, match, Net())


def test_a_header_that_claims_gigabytes(forgery: Forgery) -> None:
    data = bytearray((forgery.path / "model.safetensors").read_bytes())
    data[:8] = (8 << 30).to_bytes(8, "little")
    forgery.write("model.safetensors", bytes(data))
    refused(forgery.path, "header claims", Net())


@pytest.mark.parametrize("left", [0, 7, 8, 100, -1], ids=lambda left: f"to {left}")
def test_a_file_cut_short(forgery: Forgery, left: int) -> None:
    data = (forgery.path / "model.safetensors").read_bytes()
    forgery.write("model.safetensors", data[:left], sign=False)
    refused(forgery.path, "model.safetensors has .* bytes, where woqfx.json says", Net())
    forgery.sign("model.safetensors")
    refused(forgery.path, "model.safetensors cannot be used", Net())


def test_a_file_cut_short_after_it_was_opened(forgery: Forgery) -> None:
    from woqfx.disk.checkpoint import Checkpoint
    from woqfx.errors import CheckpointError

    checkpoint = Checkpoint(forgery.path)
    os.truncate(forgery.path / "model.safetensors", 2000)
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be used: it ended at byte"):
        for name in checkpoint.weights:
            checkpoint.read_weight(name)


def test_every_byte_counts(forgery: Forgery) -> None:
    data = bytearray((forgery.path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    forgery.write("model.safetensors", bytes(data), sign=False)
    refused(forgery.path, "model.safetensors is not as woqfx.json describes it", Net())


def test_a_tensor_in_two_files(forgery: Forgery) -> None:
    shutil.copy(forgery.path / "model.safetensors", forgery.path / "other.safetensors")
    forgery.sign("other.safetensors")
    refused(forgery.path, "tensor .* is in .*model.safetensors and in .*other.safetensors", Net())


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside"], ids=["absolute", "upwards"])
@pytest.mark.parametrize("name", [MANIFEST, "model.safetensors"])
def test_a_link_that_leads_out(forgery: Forgery, name: str, target: str) -> None:
    shutil.copy(forgery.path / name, forgery.path.parent / "outside")
    (forgery.path / name).unlink()
    (forgery.path / name).symlink_to(target)
    refused(forgery.path, f"{name} is a link to .*, outside", Net())


@pytest.mark.parametrize("name", [MANIFEST, "model.safetensors"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "dangling"])
def test_a_file_that_is_none(forgery: Forgery, name: str, kind: str) -> None:
    path = forgery.path / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "loop" else "nowhere")
    refused(forgery.path, name, Net())


def test_an_index_that_lies_is_not_believed(forged_llama: Forgery, llama) -> None:
    forged_llama.write("model.safetensors.index.json", '{"weight_map": {"lm_head.weight": "../../evil.safetensors"}}')
    expected, found = read_all(llama), read_all(forged_llama.path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_shard_that_is_missing(forged_llama: Forgery) -> None:
    (forged_llama.path / "model-00002-of-00003.safetensors").unlink()
    refused(forged_llama.path, "model-00002-of-00003.safetensors is missing")


def test_a_shard_of_another_model(forged_llama: Forgery) -> None:
    shutil.copy(
        forged_llama.path / "model-00001-of-00003.safetensors", forged_llama.path / "model-00002-of-00003.safetensors"
    )
    forged_llama.sign("model-00002-of-00003.safetensors")
    refused(forged_llama.path, "tensor .* is in ")
