"""Folders that are damaged, hostile or no model in safetensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from folders import INDEX, WEIGHTS, edit, save
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

from woqfx.errors import SourceError
from woqfx.source import FolderSource

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return save(tiny_model("llama"), tmp_path / "m", max_shard_size="60KB")


class TestIndex:
    """The index is a stranger's text."""

    @pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "a\0b"])
    def test_only_plain_names_are_followed(self, sharded: Path, name: str) -> None:
        edit(sharded / INDEX, weight_map={"lm_head.weight": name})
        with pytest.raises(SourceError, match="only plain names"):
            FolderSource(sharded)

    @pytest.mark.parametrize("weight_map", [[], {"a": 1}, "x"], ids=["list", "number", "text"])
    def test_a_weight_map_of_another_kind_is_an_error(self, sharded: Path, weight_map: Any) -> None:
        edit(sharded / INDEX, weight_map=weight_map)
        with pytest.raises(SourceError, match="has no weight_map"):
            FolderSource(sharded)

    def test_a_tensor_that_is_not_where_the_index_says_is_an_error(self, sharded: Path) -> None:
        index = json.loads((sharded / INDEX).read_text())["weight_map"]
        first, *_, last = sorted(set(index.values()))
        moved = next(name for name, file in index.items() if file == first)
        edit(sharded / INDEX, weight_map=index | {moved: last})
        with pytest.raises(SourceError, match=f"lacks {moved}"):
            FolderSource(sharded)

    def test_a_tensor_in_two_shards_is_an_error(self, sharded: Path) -> None:
        first, second, *_ = sorted(sharded.glob("model-*"))
        name, tensor = next(iter(load_file(first).items()))
        save_file(load_file(second) | {name: tensor}, second)
        with pytest.raises(SourceError, match=f"{name} is in .*00001.* and in .*00002"):
            FolderSource(sharded)


class TestLinks:
    """Links are followed inside the folder and inside a Hub cache, and nowhere else."""

    def test_a_link_out_of_the_folder_is_refused(self, sharded: Path, tmp_path: Path) -> None:
        shard = sorted(sharded.glob("model-*"))[0]
        shard.rename(tmp_path / "elsewhere")
        shard.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(SourceError, match="outside of the model's folder"):
            FolderSource(sharded)

    def test_a_sidecar_that_links_out_is_refused(self, sharded: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("secret")
        (sharded / "LICENSE").symlink_to(tmp_path / "secret")
        with pytest.raises(SourceError, match="outside of the model's folder"):
            FolderSource(sharded).sidecars()

    def test_a_link_inside_and_a_link_to_the_folder_are_followed(self, sharded: Path, tmp_path: Path) -> None:
        shard = sorted(sharded.glob("model-*"))[0]
        shard.rename(sharded / "stored")
        shard.symlink_to("stored")
        (tmp_path / "alias").symlink_to(sharded)
        assert FolderSource(tmp_path / "alias").tensors

    def test_a_hub_snapshot_links_to_its_blobs(self, tmp_path: Path) -> None:
        snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
        blobs = tmp_path / "models--org--name" / "blobs"
        blobs.mkdir(parents=True)
        save(tiny_model("llama"), snapshot)
        for number, file in enumerate(sorted(snapshot.iterdir())):
            file.rename(blobs / str(number))
            file.symlink_to(f"../../blobs/{number}")
        assert FolderSource(snapshot).tensors
        other = tmp_path / "models--org--other"
        other.mkdir()
        (snapshot / "config.json").rename(other / "config.json")
        (snapshot / "config.json").symlink_to("../../../models--org--other/config.json")
        with pytest.raises(SourceError, match=r"outside|does not exist"):
            FolderSource(snapshot)


def _nothing(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def _adapter(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")


def _gguf(folder: Path) -> None:
    _nothing(folder)
    (folder / "a.gguf").touch()


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


def _config_text(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(text) and None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(_nothing, "has no config.json", id="empty"),
        pytest.param(_gguf, "give the GGUF file itself.*a.gguf", id="only-gguf"),
        pytest.param(_pickle, r"pytorch_model\.bin.*save_pretrained", id="only-pickle"),
        pytest.param(_adapter, "adapter.*merge", id="adapter"),
        pytest.param(_config(quantization_config={"quant_method": "gptq"}), "'gptq'.*unquantized original", id="gptq"),
        pytest.param(
            _config(quantization_config={"quant_method": "woqfx"}),
            r"give the unquantized original here; .* woqfx\.load",
            id="woqfx",
        ),
        pytest.param(_config(model_type=None), "names no model_type", id="no-model-type"),
        pytest.param(_config(model_type="brand_new"), "has no model_type 'brand_new'", id="unknown-model-type"),
        pytest.param(_config(model_type=["llama"]), "names no model_type", id="odd-model-type"),
        pytest.param(_config(hidden_size="wide"), "not a valid config of a llama", id="odd-value"),
        pytest.param(_config_text("{"), "not valid JSON", id="broken-json"),
        pytest.param(_config_text("[1]"), "holds a JSON list", id="json-list"),
        pytest.param(
            _config_text('{"model_type": "llama", "model_type": "gpt2"}'), "more than once", id="repeated-key"
        ),
        pytest.param(_config_text('{"a":' * 100_000), r"nested too deeply|not valid JSON", id="deep-json"),
        pytest.param(_config_text(" " * (17 << 20)), "more than", id="huge-config"),
        pytest.param(
            lambda folder: (folder / WEIGHTS).write_bytes(b"\x08" + b"\0" * 7 + b"{}"), WEIGHTS, id="cut-file"
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    save(tiny_model("llama"), tmp_path)
    spoil(tmp_path)
    with pytest.raises(SourceError, match=message) as caught:
        FolderSource(tmp_path)
    assert str(tmp_path) in str(caught.value)
