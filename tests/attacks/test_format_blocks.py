"""Folders of bitsandbytes and compressed-tensors with one lie each: refused, the file or tensor named."""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import FORMATS, LAYER, _exported, change_config, change_tensors, one_skeleton_per_config, read_all

from woqfx.errors import WoqfxError

SECONDS = 5.0
BYTES = 256 << 20
STATE = "weight.quant_state.bitsandbytes__nf4"

Tensors = dict[str, torch.Tensor]
Lie = Callable[[Path], None]

GOOD = {
    "bitsandbytes": FORMATS["bitsandbytes"],
    "nested": _exported("bitsandbytes", dtype="nf4", group_size=32, double_quant=True),
    "int4": FORMATS["compressed-tensors"],
    "int3": FORMATS["compressed-tensors-int3"],
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Iterator[dict[str, Path]]:
    made = {name: make(tmp_path_factory.mktemp(name)) for name, make in GOOD.items()}
    with one_skeleton_per_config():
        for path in made.values():
            read_all(path)
        yield made


def refused(good: Path, tmp_path: Path, lie: Lie, match: str) -> None:
    path = tmp_path / "lie"
    shutil.copytree(good, path)
    lie(path)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WoqfxError, match=match) as caught:
        read_all(path)
    assert time.process_time() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 4000


def tensor(part: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Lie:
    """A part of a layer becomes another, or none."""

    def act(tensors: Tensors) -> None:
        made = change(tensors.pop(f"{LAYER}.{part}"))
        if made is not None:
            tensors[f"{LAYER}.{part}"] = made.contiguous()

    return lambda folder: change_tensors(folder, act)


def value(part: str, number: float) -> Lie:
    """One number of a part."""

    def change(found: torch.Tensor) -> torch.Tensor:
        found.view(-1)[0] = number
        return found

    return tensor(part, change)


def state(**changes: Any) -> Lie:
    """The JSON object of a layer."""

    def change(found: torch.Tensor) -> torch.Tensor:
        text = json.dumps({**json.loads(bytes(found.tolist())), **changes}).encode()
        return torch.frombuffer(bytearray(text), dtype=torch.uint8)

    return tensor(STATE, change)


def weights(**changes: Any) -> Lie:
    """What the only config group says of its weights."""

    def change(config: dict[str, Any]) -> None:
        config["quantization_config"]["config_groups"]["group_0"]["weights"].update(changes)

    return lambda folder: change_config(folder, change)


def quantization(**changes: Any) -> Lie:
    return lambda folder: change_config(folder, lambda config: config["quantization_config"].update(changes))


def two_groups(target: str) -> Lie:
    """A second config group with a target of its own."""

    def change(config: dict[str, Any]) -> None:
        groups = config["quantization_config"]["config_groups"]
        groups["group_1"] = {**groups["group_0"], "targets": [target]}

    return lambda folder: change_config(folder, change)


BITSANDBYTES: dict[str, tuple[Lie, str]] = {
    "no-codes": (tensor("weight", lambda _: None), "itself is missing"),
    "codes-cut-short": (tensor("weight", lambda t: t[:-1]), "need 2048 bytes"),
    "codes-twice": (tensor("weight", lambda t: torch.cat([t, t])), "need 2048 bytes"),
    "no-scales": (tensor("weight.absmax", lambda _: None), "has no absmax"),
    "scales-cut-short": (tensor("weight.absmax", lambda t: t[:-1]), "absmax"),
    "scales-in-bytes": (tensor("weight.absmax", lambda t: t.to(torch.uint8)), "absmax"),
    "scale-nan": (value("weight.absmax", float("nan")), "a scale is not finite"),
    "scale-infinite": (value("weight.absmax", float("inf")), "a scale is not finite"),
    "no-table": (tensor("weight.quant_map", lambda _: None), "has no quant_map"),
    "table-of-8": (tensor("weight.quant_map", lambda t: t[:8]), "quant_map"),
    "table-reversed": (tensor("weight.quant_map", lambda t: t.flip(0)), "quant_map is not"),
    "table-of-nan": (value("weight.quant_map", float("nan")), "quant_map is not"),
    "state-no-text": (tensor(STATE, lambda t: t * 0 + 255), "does not describe a weight"),
    "state-no-bytes": (tensor(STATE, lambda t: t.float()), "not a short text"),
    "state-of-a-megabyte": (tensor(STATE, lambda _: torch.full((1 << 20,), 32, dtype=torch.uint8)), "short text"),
    "state-of-fp4": (state(quant_type="fp4"), "against its name"),
    "shape-swapped": (state(shape=[32, 128]), "shape|needs|do not"),
    "shape-of-2^63": (state(shape=[2**63, 64]), "not that of a matrix"),
    "shape-flat": (state(shape=[4096]), "not that of a matrix"),
    "blocks-of-0": (state(blocksize=0), "block sizes"),
    "blocks-of-64": (state(blocksize=64), "absmax"),
    "blocks-of-2^39": (state(blocksize=2**39), "absmax"),
    "nested-without-map": (state(nested_blocksize=256, nested_offset=0.0), "absmax|nested"),
}

NESTED: dict[str, tuple[Lie, str]] = {
    "no-ranges": (tensor("weight.nested_absmax", lambda _: None), "has no nested_absmax"),
    "ranges-cut-short": (tensor("weight.nested_absmax", lambda t: t[:0]), "nested_absmax"),
    "range-infinite": (value("weight.nested_absmax", float("inf")), "not finite"),
    "map-cut-short": (tensor("weight.nested_quant_map", lambda t: t[:16]), "nested_quant_map"),
    "map-of-nan": (tensor("weight.nested_quant_map", lambda t: t * float("nan")), "not finite"),
    "offset-too-large": (state(nested_offset=1e39), "not a float32 number"),
    "offset-nan": (state(nested_offset=float("nan")), "not a float32 number"),
    "nested-blocks-of-1": (state(nested_blocksize=1), "nested_absmax"),
    "nested-blocks-negative": (state(nested_blocksize=-256), "block sizes"),
}

INT4: dict[str, tuple[Lie, str]] = {
    "words-missing": (tensor("weight_packed", lambda t: t[:, :-1]), "does not hold a weight of 64 x 64"),
    "words-too-many": (tensor("weight_packed", lambda t: torch.cat([t, t], 1)), "does not hold a weight"),
    "words-of-other-rows": (tensor("weight_packed", lambda t: t[:-1]), "does not hold a weight"),
    "words-flat": (tensor("weight_packed", torch.flatten), "does not hold a weight"),
    "words-of-int64": (tensor("weight_packed", torch.Tensor.long), "weight_packed"),
    "no-shape": (tensor("weight_shape", lambda _: None), "has no weight_shape"),
    "shape-of-2^62": (value("weight_shape", 2**62), "does not hold a weight"),
    "shape-negative": (value("weight_shape", -64), "does not hold a weight"),
    "shape-of-one": (tensor("weight_shape", lambda t: t[:1]), "weight_shape"),
    "no-scale": (tensor("weight_scale", lambda _: None), "has no weight_scale"),
    "scale-of-other-groups": (tensor("weight_scale", lambda t: t[:, :1]), "weight_scale"),
    "scale-of-integers": (tensor("weight_scale", lambda t: t.to(torch.int8)), "weight_scale"),
    "scale-nan": (value("weight_scale", float("nan")), "a scale is not finite"),
    "no-zero-points": (tensor("weight_zero_point", lambda _: None), "has no weight_zero_point"),
    "zero-points-of-other-rows": (tensor("weight_zero_point", lambda t: t[:-1]), "weight_zero_point"),
    "zero-points-of-other-groups": (tensor("weight_zero_point", lambda t: t[:, :1]), "weight_zero_point"),
    "zero-points-in-floats": (tensor("weight_zero_point", torch.Tensor.float), "weight_zero_point"),
    "bits-3": (weights(num_bits=3), "does not hold a weight"),
    "bits-0": (weights(num_bits=0), "no type of weights"),
    "bits-10^40": (weights(num_bits=10**40), "no type of weights"),
    "bits-true": (weights(num_bits=True), "no type of weights"),
    "bits-1": (weights(num_bits=1), "not 2 to 8"),
    "floats": (weights(type="float"), "weight_packed"),
    "group-size-0": (weights(group_size=0), "group_size 0"),
    "group-size-2^63": (weights(group_size=2**63), "group_size"),
    "group-size-16": (weights(group_size=16), "weight_scale"),
    "strategy-unknown": (weights(strategy="token"), "strategy 'token'"),
    "block-without-structure": (weights(strategy="block"), "block_structure"),
    "block-of-0": (weights(strategy="block", block_structure=[0, 32]), "block_structure"),
    "no-groups": (quantization(config_groups={}), "no config_groups"),
    "groups-a-list": (quantization(config_groups=[1]), "no config_groups"),
    "groups-of-null": (quantization(config_groups={"group_0": None}), "not an object"),
    "sparse": (quantization(sparsity_config={"format": "sparse-24-bitmask"}), "is sparse"),
    "pattern-broken": (two_groups("re:("), "cannot be matched"),
    "pattern-too-long": (two_groups("re:" + "a" * 5000), "too long"),
}

INT3: dict[str, tuple[Lie, str]] = {
    "words-between-both-packings": (tensor("weight_packed", lambda t: torch.cat([t, t], 1)), "does not hold"),
}


def order(change: Callable[[torch.Tensor], torch.Tensor]) -> Lie:
    """A group for each input, as older files have it."""

    def act(tensors: Tensors) -> None:
        tensors[f"{LAYER}.weight_g_idx"] = change(torch.arange(64, dtype=torch.int32) // 32)

    return lambda folder: change_tensors(folder, act)


ORDER: dict[str, tuple[Lie, str]] = {
    "order-of-one-group": (order(torch.zeros_like), "weight_g_idx does not give 2 groups"),
    "order-negative": (order(lambda t: t - 1), "weight_g_idx does not give 2 groups"),
    "order-beyond": (order(lambda t: t + 2**30), "weight_g_idx does not give 2 groups"),
    "order-cut-short": (order(lambda t: t[:-1]), "weight_g_idx"),
    "order-in-floats": (order(torch.Tensor.float), "weight_g_idx"),
}

CASES = {
    f"{family}-{name}": (family, *lie)
    for family, lies in {"bitsandbytes": BITSANDBYTES, "nested": NESTED, "int4": INT4 | ORDER, "int3": INT3}.items()
    for name, lie in lies.items()
}


@pytest.mark.parametrize("name", CASES)
def test_a_lie_is_refused(good, tmp_path, name):
    family, lie, match = CASES[name]
    refused(good[family], tmp_path, lie, match)


def test_a_pattern_made_to_take_forever(good, tmp_path):
    path = tmp_path / "lie"
    shutil.copytree(good["int4"], path)
    two_groups("re:^((.+)(.+)+)+$x")(path)
    start = time.process_time()
    try:
        read_all(path)
    except WoqfxError as error:
        assert "cannot be matched" in str(error)
    assert time.process_time() - start < SECONDS
