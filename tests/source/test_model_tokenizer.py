"""A model's tokenizer: what is said where there is none, or none that can be read."""

from __future__ import annotations

import json

import pytest
from tiny_models import save_tokenizer, tiny_model

from woqfx.calibration.subject import Subject
from woqfx.errors import CalibrationError, SourceError
from woqfx.source import ModuleSource
from woqfx.source.tokenizer import load_tokenizer


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": "{}"}, r"has no tokenizer; put the original's tokenizer\.json"),
        ({"tokenizer.json": "{"}, r"has no tokenizer that transformers can read: .+; put the original's"),
    ],
    ids=["none", "damaged"],
)
def test_what_is_missing_is_told(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("use", ["running", "calibrating"])
def test_a_tokenizer_of_the_folders_own_code_is_neither_run_nor_offered(tmp_path, monkeypatch, use):
    folder, sprung = tmp_path / "model", tmp_path / "sprung"
    folder.mkdir()
    save_tokenizer(folder)
    (folder / "evil.py").write_text(
        f"open({str(sprung)!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast as T\n"
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda _: "y")  # whoever is asked agrees
    with pytest.raises((SourceError, CalibrationError), match="has no tokenizer that transformers can read"):
        if use == "running":
            load_tokenizer(folder)
        else:
            _ = Subject(ModuleSource(tiny_model("llama")), given=folder).tokenizer
    assert not sprung.exists()
