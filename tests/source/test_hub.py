"""Names on the Hub, without a network."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
from tiny_models import tiny_model

from woqfx.errors import SourceError
from woqfx.source import FolderSource, ModuleSource, open_source
from woqfx.source.hub import resolve

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, Any, list[str]]]:
    """Downloads that were asked for; each gives `tmp_path/"got"`."""
    asked = []

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, allow_patterns))
        return str(tmp_path / "got")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_a_path_that_exists_is_itself(tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name").resolve() == tmp_path / "org" / "name"
    assert calls == []


def test_a_gguf_file_that_is_not_there_is_not_looked_for_on_the_hub(calls: list[Any]) -> None:
    with pytest.raises(SourceError, match=r"there is no file 'models/small\.gguf'"):
        resolve("models/small.gguf")
    assert calls == []


@pytest.mark.parametrize(
    ("name", "repository", "revision"),
    [
        ("org/name", "org/name", None),
        ("My-Org/Model-1.1B_v2", "My-Org/Model-1.1B_v2", None),
        ("org/name:main", "org/name", "main"),
        ("org/name:refs/pr/3", "org/name", "refs/pr/3"),
    ],
)
def test_a_hub_name_is_fetched(
    name: str, repository: str, revision: str | None, calls: list[Any], tmp_path: Path
) -> None:
    assert resolve(name) == tmp_path / "got"
    assert calls[0][:2] == (repository, revision)


def test_only_tensors_configs_and_tokenizers_are_fetched(calls: list[Any]) -> None:
    resolve("org/name")
    wanted = ["config.json", "model.safetensors", "model-00001-of-00009.safetensors", "model.safetensors.index.json"]
    wanted += ["tokenizer.json", "tokenizer.model", "chat_template.jinja", "generation_config.json"]
    unwanted = ["pytorch_model.bin", "modeling_x.py", "consolidated.safetensors", "a.gguf", "training_args.bin"]
    patterns = calls[0][2]
    assert [name for name in wanted + unwanted if any(fnmatch(name, pattern) for pattern in patterns)] == wanted


@pytest.mark.parametrize("name", ["no-such-folder", "a/b/c", "./org/name", "/abs/olute", "org/", "../up/there"])
def test_what_is_neither_path_nor_name_is_an_error(name: str, calls: list[Any]) -> None:
    with pytest.raises(SourceError, match="no Hub name"):
        resolve(name)
    assert calls == []


@pytest.mark.parametrize("failure", [OSError("no route to host\nmore"), ValueError("404"), RuntimeError()])
def test_a_failed_download_says_what_was_tried(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(SourceError, match=r"no folder 'org/name' here, and the Hugging Face Hub did not give org/name"):
        resolve("org/name")


def test_without_a_network_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--org--name"
    tiny_model("llama").save_pretrained(repository / "snapshots" / "0123456")
    (repository / "snapshots" / "0123456" / "tokenizer.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    download = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: download(*a, **k, cache_dir=tmp_path))
    source = open_source("org/name")
    assert isinstance(source, FolderSource)
    assert "tokenizer.json" in source.sidecars()


def test_a_live_model_from_the_hub_finds_its_tokenizer_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")

    def cached(repository: str, filename: str, *, revision: str | None) -> str | None:
        return str(tmp_path / filename) if (repository, revision) == ("org/name", "0123456") else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    model = tiny_model("llama")
    model.name_or_path = "org/name"
    model.config._commit_hash = "0123456"
    assert "tokenizer.json" in ModuleSource(model).sidecars()
    model.name_or_path = "org/other"
    assert "tokenizer.json" not in ModuleSource(model).sidecars()
