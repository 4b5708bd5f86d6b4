from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from woqfx.disk import writer
from woqfx.disk.manifest import FileFacts, Manifest
from woqfx.disk.output import WORK
from woqfx.disk.shards import Parts, safetensors_shards
from woqfx.disk.writer import Writer, open_writer
from woqfx.errors import OutputError

TENSORS = {
    "a": {"a.codes": torch.arange(30, dtype=torch.uint8).view(5, 6), "a.scales": torch.ones(5, 1)},
    "empty": {"empty": torch.empty(0, 4)},
    "b": {"b": torch.arange(6.0).view(2, 3).T},  # not contiguous
    "scalar": {"scalar": torch.tensor(3.5)},
    "flags": {"flags": torch.tensor([True, False])},
    "last, empty": {"last, empty": torch.empty(0)},
}
ITEMS: dict[str, Parts] = {
    item: {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in parts.items()}
    for item, parts in TENSORS.items()
}


def start(out: Path, shard_bytes: int = 10**9, **changes: Any) -> Writer:
    return open_writer(out, safetensors_shards(ITEMS, shard_bytes), {"run": 1}, overwrite=False, **changes)


def finish(opened: Writer) -> dict[str, FileFacts]:
    facts: dict[str, FileFacts] = {}

    def manifest(files):
        facts.update(files)
        return Manifest({}, {}, {}, {}, files)

    opened.finish(lambda: {"tokenizer.json": b"{}"}, manifest)
    opened.close()
    return facts


def written(out: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("shard_bytes", [1, 40, 60, 10**9])
@pytest.mark.parametrize("stop", range(len(ITEMS) + 1))
def test_stopped_after_any_item_and_gone_on_with(tmp_path, monkeypatch, shard_bytes, stop):
    monkeypatch.setattr(writer, "_COMMIT_SECONDS", 0.0)
    opened = start(tmp_path / "out", shard_bytes)
    for number, item in enumerate(list(ITEMS)[:stop]):
        assert opened.write(item, TENSORS[item], {"number": number})
    opened.close()
    opened = start(tmp_path / "out", shard_bytes)
    assert opened.facts == {item: {"number": number} for number, item in enumerate(list(ITEMS)[:stop])}
    for item in list(ITEMS)[stop:]:
        opened.write(item, TENSORS[item], None)
    facts = finish(opened)
    found = written(tmp_path / "out")
    expected = {name: tensor for parts in TENSORS.values() for name, tensor in parts.items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name, fact in facts.items():
        assert FileFacts.of((tmp_path / "out" / name).read_bytes()) == fact


def test_files_are_filled_in_order_and_an_item_is_not_split(tmp_path):
    opened = start(tmp_path / "out", 60)
    for item, parts in TENSORS.items():
        opened.write(item, parts, None)
    finish(opened)
    where = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_bytes())["weight_map"]
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert where == {
        **dict.fromkeys(("a.codes", "a.scales", "empty"), first),
        **dict.fromkeys(("b", "scalar", "flags", "last, empty"), second),
    }


def test_a_single_file_has_no_index(tmp_path):
    opened = start(tmp_path / "out")
    for item, parts in TENSORS.items():
        opened.write(item, parts, None)
    assert finish(opened).keys() == {"model.safetensors", "tokenizer.json"}


@pytest.mark.parametrize(
    "parts",
    [
        {"a.codes": torch.zeros(5, 6), "a.scales": torch.ones(5, 1)},
        {"a.codes": torch.zeros(6, 5, dtype=torch.uint8), "a.scales": torch.ones(5, 1)},
        {"a.scales": torch.ones(5, 1), "a.codes": torch.zeros(5, 6, dtype=torch.uint8)},
    ],
    ids=["other type", "other shape", "other order"],
)
def test_what_was_not_planned_is_refused(tmp_path, parts):
    opened = start(tmp_path / "out")
    with pytest.raises(OutputError, match=r"a\.\w+: torch\.\w+ .* came where the plan has"):
        opened.write("a", parts, None)
    opened.close()


def test_commits_come_with_time_and_bytes_and_at_the_end_of_a_file(tmp_path, monkeypatch):
    opened = start(tmp_path / "out", 60)
    assert [opened.write(item, TENSORS[item], None) for item in ("a", "empty")] == [False, True]
    monkeypatch.setattr(writer, "_COMMIT_BYTES", 4)
    assert opened.write("b", TENSORS["b"], None)
    monkeypatch.setattr(writer, "_COMMIT_BYTES", 10**9)
    assert not opened.write("scalar", TENSORS["scalar"], None)
    monkeypatch.setattr(writer, "_COMMIT_SECONDS", 0.0)
    assert opened.write("flags", TENSORS["flags"], None)
    size = sum(path.stat().st_size for path in (tmp_path / "out" / WORK).glob("*.safetensors"))
    assert opened.nbytes == size
    opened.close()


def test_a_model_of_nothing_is_a_checkpoint_all_the_same(tmp_path):
    opened = open_writer(tmp_path / "out", [], {}, overwrite=False)
    assert finish(opened).keys() == {"tokenizer.json"}
