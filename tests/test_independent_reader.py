"""A reader written from docs/checkpoint.md alone, with numpy and json, decodes what woqfx wrote to the same bits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from folders_of_models import saved, write

import woqfx
from woqfx.disk.checkpoint import Checkpoint
from woqfx.layers import packed_weights
from woqfx.plugins import registry
from woqfx.qtensor import QTensor
from woqfx.testing.cases import with_offsets

PAGE = Path(__file__).parent.parent / "docs" / "checkpoint.md"
F32 = np.float32

# -- the reader: nothing below this line, up to the next, uses woqfx or torch -------------------------------

TYPES = {"U8": "<u1", "I32": "<i4", "F16": "<f2", "BF16": "<u2", "F32": "<f4"}


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        start, stop = (begin + offset for offset in entry["data_offsets"])
        values = np.frombuffer(data[start:stop], TYPES[entry["dtype"]]).reshape(entry["shape"])
        found[name] = (values.astype("<u4") << 16).view(F32) if entry["dtype"] == "BF16" else values
    return found


def dynamic_values() -> np.ndarray:
    values = [F32(0), F32(1)]
    for decade in range(7):
        n = 2**decade
        step = float((F32(1) - F32(0.1)) / F32(n))
        low = [F32(float(F32(0.1)) + step * i) for i in range((n + 1) // 2)]
        edges = np.array(low + [F32(1 - step * (n - i)) for i in range((n + 1) // 2, n + 1)], F32)
        middles = (edges[:-1] + edges[1:]) / F32(2) * F32(10.0 ** (decade - 6))
        values += [*middles, *-middles]
    return np.sort(np.array(values, F32))


def unpack(packed: np.ndarray, bits: int, k: int) -> np.ndarray:
    stream = np.unpackbits(packed, axis=-1, bitorder="little")[..., : k * bits]
    return stream.reshape(*packed.shape[:-1], k, bits) @ (1 << np.arange(bits))


def decode(parts: dict[str, np.ndarray], scheme: dict, shape: list[int], bits: int, levels: list[float] | None):
    k = shape[-1]
    codes = unpack(parts["codes"], bits, k)
    if scheme["double_quant"]:
        ranges = np.repeat(parts["scale_ranges"], 256)[: parts["scale_codes"].size]
        scales = dynamic_values()[parts["scale_codes"].ravel()] * ranges + parts["scale_offset"]
        scales = scales.reshape(parts["scale_codes"].shape)
    else:
        scales = parts["scales"].astype(F32)
    group = np.arange(k) // (k if scheme["group_size"] == -1 else scheme["group_size"])
    if "offsets" in parts:
        weight = codes.astype(F32) * scales[..., group] + parts["offsets"].astype(F32)[..., group]
    elif levels is None:
        zero = 2 ** (bits - 1) if scheme["symmetric"] else parts["zeros"].astype(int)[..., group]
        weight = (codes - zero).astype(F32) * scales[..., group]
    else:
        weight = np.array(levels, F32)[codes] * scales[..., group]
    if "order" in parts:
        order = parts["order"]
        np.put_along_axis(
            weight, np.broadcast_to(order[..., None, :], weight.shape).astype(np.int64), weight.copy(), -1
        )
    return weight


def read(folder: Path, dtypes: dict[str, tuple[int, list[float] | None]]) -> dict[str, np.ndarray]:
    manifest = json.loads((folder / "woqfx.json").read_text())
    tensors: dict[str, np.ndarray] = {}
    for name in manifest["files"]:
        if name.endswith(".safetensors"):
            tensors |= tensors_of(folder / name)
    for weight, facts in manifest["weights"].items():
        scheme = manifest["schemes"][facts["scheme"]]
        parts = {name.rpartition(".")[2]: tensors.pop(name) for name in list(tensors) if name.startswith(f"{weight}.")}
        tensors[weight] = decode(parts, scheme, facts["shape"], *dtypes[scheme["dtype"]])
    return tensors


# -- what it is held against ---------------------------------------------------------------------------------


def documented() -> dict[str, tuple[int, list[float] | None]]:
    """The page's table of dtypes."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (\d) \| (.*)\|$", PAGE.read_text(), re.MULTILINE)
    return {
        name: (int(bits), [float(level) for level in levels.split(",")] if levels.strip() else None)
        for names, bits, levels in rows
        for name in re.findall(r"\w+", names)
    }


def check(folder: Path, dtypes: dict[str, tuple[int, list[float] | None]]) -> None:
    found, stored = read(folder, dtypes), Checkpoint(folder)
    expected = {name: stored.read_weight(name).dequantize() for name in stored.weights}
    expected |= {name: stored.read_kept(name) for name in stored.kept}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        array = tensor.float().numpy()
        assert found[name].dtype == array.dtype == F32, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def test_the_page_lists_the_built_in_dtypes():
    built_in = set(registry().names("dtype"))
    assert documented().keys() == built_in


@pytest.mark.parametrize("scheme", [{}, {"scale_dtype": "bf16", "group_size": 7}, {"double_quant": True}], ids=str)
@pytest.mark.parametrize("dtype", documented())
def test_every_dtype(dtype, scheme, tmp_path):
    out = tmp_path / "out"
    woqfx.quantize(saved("llama", tmp_path), dtype=dtype, out=out, **scheme)
    check(out, documented())


@pytest.mark.parametrize("scheme", [{}, {"group_size": -1}, {"group_size": 20, "double_quant": True}], ids=str)
@pytest.mark.parametrize("dtype", [name for name, (_, levels) in documented().items() if levels is None])
def test_zero_points(dtype, scheme, tmp_path):
    out = tmp_path / "out"
    woqfx.quantize(saved("llama", tmp_path), dtype=dtype, symmetric=False, out=out, **scheme)
    check(out, documented())


@pytest.mark.parametrize("scheme", [{}, {"scale_dtype": "bf16"}, {"group_size": 20, "double_quant": True}], ids=str)
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_offsets(family, scheme, tmp_path):
    model = woqfx.quantize(saved(family, tmp_path), symmetric=False, **scheme)
    for name, weight in packed_weights(model).items():
        owner, _, key = name.rpartition(".")
        q = with_offsets(weight.qtensor())
        setattr(model.get_submodule(owner), key, woqfx.registry().backend("torch_cpu").pack(q, weight.dtype))
    woqfx.save(model, tmp_path / "out")
    check(tmp_path / "out", documented())


@pytest.mark.parametrize(
    ("family", "rules"),
    [("mixtral", ["*.down_proj=int8"]), ("gpt2", ["*wte=nf4"]), ("qwen2", ["*.q_proj=keep"])],
    ids=["experts", "transposed", "tied"],
)
def test_other_models(family, rules, tmp_path):
    out = tmp_path / "out"
    woqfx.quantize(saved(family, tmp_path), rules=rules, out=out)
    check(out, documented())


@pytest.mark.parametrize("bits", [3, 5, 6])
def test_codes_across_bytes(bits, tmp_path):
    class Grid(woqfx.IntegerGrid):
        name = "odd"

    Grid.bits = bits

    class Plugin:
        @woqfx.hookimpl
        def woqfx_dtypes(self):
            return [Grid()]

    woqfx.register(Plugin(), "odd")
    try:
        woqfx.quantize(saved("llama", tmp_path), dtype="odd", group_size=10, out=tmp_path / "out")
        check(tmp_path / "out", {"odd": (bits, None)})
    finally:
        woqfx.unregister("odd")


@pytest.mark.parametrize("stack", [(), (3,)], ids=["one weight", "experts"])
def test_permuted_inputs(stack):
    dtype, scheme = woqfx.registry().dtype("int4_clip"), woqfx.Scheme("int4_clip", group_size=8)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(*stack, 5, 20, generator=generator)
    plain = woqfx.quantize_nearest(weight, dtype, scheme, name="w")
    order = torch.rand(*stack, 20, generator=generator).argsort(-1).int()
    q = QTensor(plain.dtype, scheme, plain.shape, plain.codes, plain.scales, plain.zeros, order)
    parts = {suffix: part.numpy() for suffix, part in q.tensors().items()}
    found = decode(parts, scheme.to_json(), [*stack, 5, 20], 4, None)
    assert found.tobytes() == q.dequantize().numpy().tobytes()


def test_several_files(tmp_path):
    out = write(saved("llama", tmp_path), tmp_path / "out", shard_bytes=20_000)
    assert len(list(out.glob("*.safetensors"))) > 2
    check(out, documented())
