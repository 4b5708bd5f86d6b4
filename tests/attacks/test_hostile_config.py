"""Configs that would have transformers run code, fetch it, or build without end."""

from __future__ import annotations

import json
import socket
import sys

import pytest
import torch
from forgeries import Forgery, read_all, refused

import woqfx
from woqfx.disk.checkpoint import Checkpoint

TRAP = """
import pathlib
pathlib.Path(__file__).with_name("sprung").touch()
"""


def configure(forgery: Forgery, **changes) -> None:
    config = json.loads((forgery.path / "config.json").read_bytes())
    forgery.write("config.json", json.dumps(config | changes))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError(f"the network was asked for {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


HARMLESS = {
    "auto_map": {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
    "auto_map of another repository": {"auto_map": {"AutoModelForCausalLM": "someone/evil--evil.Model"}},
    "trust_remote_code": {"trust_remote_code": True, "auto_map": {"AutoModelForCausalLM": "evil.Model"}},
    "attention from the hub": {"_attn_implementation": "someone/evil-kernel"},
    "attention set inside": {"_attn_implementation_internal": "someone/evil-kernel"},
    "attention set outside": {"attn_implementation": "someone/evil-kernel"},
    "attention by its auto flag": {"_attn_implementation_autoset": False, "_attn_implementation": "evil/evil:run"},
    "experts from the hub": {"_experts_implementation": "someone/evil-kernel"},
    "quantization of another kind": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "quantization with a class": {"quantization_config": {"quant_method": "evil", "auto_map": {"x": "evil.X"}}},
    "custom pipelines": {"custom_pipelines": {"text-generation": {"impl": "evil.Pipeline", "pt": ["AutoModel"]}}},
    "a name of another model": {"_name_or_path": "someone/evil"},
    "kernels wanted": {"use_kernels": True, "kernel_config": {"RMSNorm": "someone/evil:RMSNorm"}},
}


@pytest.mark.parametrize("name", HARMLESS)
def test_no_code_is_run_or_fetched(forged_llama: Forgery, llama, name, no_network):
    expected = read_all(llama)
    configure(forged_llama, **HARMLESS[name])
    set_traps(forged_llama)
    found = read_all(forged_llama.path)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not (forged_llama.path / "sprung").exists()
    assert not [module for module in sys.modules if "evil" in module]


def set_traps(forgery: Forgery) -> None:
    import pickle

    class Bomb:
        def __reduce__(self):
            return exec, (f"open({str(forgery.path / 'sprung')!r}, 'w')",)

    for name in ("evil.py", "setup.py", "conftest.py", "modeling_llama.py", "configuration_llama.py", "__init__.py"):
        forgery.write(name, TRAP, sign=False)
    for name in ("pytorch_model.bin", "model.pt", "model.ckpt", "training_args.bin", "optimizer.pkl"):
        forgery.write(name, pickle.dumps(Bomb()), sign=False)
    forgery.write("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}", sign=False)
    forgery.write("adapter_config.json", '{"base_model_name_or_path": "someone/evil"}', sign=False)


def test_files_beside_are_neither_run_nor_carried_on(forged_llama: Forgery, tmp_path):
    set_traps(forged_llama)
    model = woqfx.load(forged_llama.path)
    woqfx.save(model, tmp_path / "again")
    assert not (forged_llama.path / "sprung").exists()
    listed = {*Checkpoint(tmp_path / "again").manifest.files, "woqfx.json"}
    assert {path.name for path in (tmp_path / "again").iterdir()} == listed
    assert not [name for name in listed if name.endswith((".py", ".bin", ".pt", ".jinja"))]


REFUSED = {
    "no model type": ({"model_type": None}, "describes no model that transformers knows"),
    "model type unknown": ({"model_type": "evil"}, "describes no model that transformers knows"),
    "model type a list": ({"model_type": ["llama"]}, "describes no model that transformers knows"),
    "layers without end": ({"num_hidden_layers": 10**12}, "'num_hidden_layers' = 1000000000000"),
    "layers beyond the files": ({"num_hidden_layers": 1_000_000}, "more than .* modules"),
    "labels without end": ({"num_labels": 10**10}, "'num_labels' = 10000000000"),
    "numbers without end": ({"vocab_size": 10**100}, "'vocab_size' = 1000"),
    "vocabulary of terabytes": ({"vocab_size": 2**40}, "lm_head.weight is|embed_tokens.weight is"),
    "heads of terabytes": ({"head_dim": 2**36}, "the model has one of shape"),
    "hidden size negative": ({"hidden_size": -64}, "hidden_size -64, which is no model"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers 0, which is no model"),
    "layers negative": ({"num_hidden_layers": -3}, "num_hidden_layers -3, which is no model"),
    "no vocabulary": ({"vocab_size": 0}, "vocab_size 0, which is no model"),
    "no heads": ({"num_attention_heads": 0}, "config.json"),
    "hidden size a text": ({"hidden_size": "64"}, "config.json"),
    "dtype of a module": ({"dtype": "os"}, "config.json"),
    "other layers": ({"num_hidden_layers": 2}, "lacks 9 tensors"),
    "other widths": ({"intermediate_size": 97}, "the model has one of shape"),
    "ties that are none": ({"tie_word_embeddings": True}, "one tensor in the model"),
    "layer types without end": (
        {"model_type": "gpt_neo", "attention_types": [[["global"], 10**12]]},
        "attention_types",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_config_that_does_not_fit(forged_llama: Forgery, name, no_network):
    changes, match = REFUSED[name]
    configure(forged_llama, **changes)
    refused(forged_llama.path, match)


RAW = {
    "nested without end": ('{"a":' * 100_000, "nested too deeply"),
    "a key twice": ('{"model_type": "llama", "model_type": "gpt2"}', "more than once"),
    "a list": ("[]", "not an object"),
    "empty": ("", "not valid JSON"),
    "too large": (" " * (17 << 20), "more than .* bytes"),
}


@pytest.mark.parametrize("name", RAW)
def test_a_config_that_is_none(forged_llama: Forgery, name):
    text, match = RAW[name]
    forged_llama.write("config.json", text)
    refused(forged_llama.path, match)


def test_a_config_that_is_not_listed_is_not_read(forged_llama: Forgery):
    forged_llama.edit(lambda manifest: manifest["files"].pop("config.json"))
    refused(forged_llama.path, "has no config.json")
