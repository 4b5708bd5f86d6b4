"""AWQ, GPTQ, auto-round and ITREX folders that lie: one fault each, and an error that names the file and the tensor."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import torch
from foreign import CONFIG, FORMATS, LAYER, WEIGHTS, change_config, change_header, change_tensors, read_all

from woqfx.errors import CheckpointError, WoqfxError

NAN = float("nan")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Folders by format, made when they are first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = FORMATS[name](tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture
def forge(good, tmp_path):
    return lambda name: shutil.copytree(good(name), tmp_path / name)


def refused(folder, message):
    start = time.process_time()
    with pytest.raises(WoqfxError, match=message) as told:
        read_all(folder)
    assert time.process_time() - start < 5
    assert str(folder) in str(told.value)
    assert len(str(told.value)) < 4000


def put(part, change):
    name = f"{LAYER}.{part}"
    return lambda tensors: tensors.update({name: change(tensors[name])})


def poke(part, index, value):
    def change(tensor):
        tensor = tensor.clone()
        tensor[index] = value
        return tensor

    return put(part, change)


def drop(part):
    return lambda tensors: tensors.pop(f"{LAYER}.{part}")


TENSORS = {
    "gptq: scales NaN": ("gptq", poke("scales", (0, 3), NAN), "q_proj.weight: a scale is not finite"),
    "gptq: scales infinite": ("gptq", poke("scales", (0, 3), float("inf")), "a scale is not finite"),
    "gptq: no scales": ("gptq", drop("scales"), "q_proj"),
    "gptq: no zeros": ("gptq", drop("qzeros"), "q_proj"),
    "gptq: no codes": ("gptq", drop("qweight"), "lacks 1 of the tensors|no place"),
    "gptq: codes of another type": ("gptq", put("qweight", lambda t: t.to(torch.int64)), "qweight is int64"),
    "gptq: codes of floats": ("gptq", put("qweight", lambda t: t.to(torch.float32)), "qweight is float32"),
    "gptq: codes flat": ("gptq", put("qweight", torch.flatten), "qweight is int32 .* not GPTQ's layout"),
    "gptq: codes of more rows": ("gptq", put("qweight", lambda t: torch.cat([t, t])), "q_proj"),
    "gptq: codes of one column less": ("gptq", put("qweight", lambda t: t[:, 1:].clone()), "not GPTQ's layout"),
    "gptq: codes empty": ("gptq", put("qweight", lambda t: t[:0].clone()), "q_proj"),
    "gptq: zeros of half the words": (
        "gptq", put("qzeros", lambda t: t[:, :4].clone()), "is int32 .* q_proj|q_proj",
    ),
    "gptq: zeros of no packing": ("gptq", put("qzeros", lambda t: t[:, :3].clone()), "no packing of .* bits"),
    "gptq: scales of more groups": ("gptq", put("scales", lambda t: torch.cat([t, t])), "scales is float16"),
    "gptq: scales of int": ("gptq", put("scales", lambda t: t.to(torch.int32)), "scales is int32"),
    "gptq: scales of double": ("gptq", put("scales", lambda t: t.to(torch.float64)), "scales is float64"),
    "gptq: g_idx short": ("gptq", put("g_idx", lambda t: t[:-1].clone()), "g_idx is int32"),
    "gptq: g_idx negative": ("gptq", poke("g_idx", 0, -1), "g_idx does not share"),
    "gptq: g_idx beyond": ("gptq", poke("g_idx", 0, 2**31 - 1), "g_idx does not share"),
    "gptq: g_idx lopsided": ("gptq", put("g_idx", torch.zeros_like), "g_idx does not share"),
    "gptq: g_idx of floats": ("gptq", put("g_idx", lambda t: t.to(torch.float32)), "g_idx is float32"),
    "gptq: dense beside quantized": (
        "gptq", lambda t: t.update({f"{LAYER}.weight": torch.zeros(64, 64)}), "stands beside",
    ),
    "gptq: a layer that the model has not": (
        "gptq",
        lambda t: t.update({f"evil.{p}": t[f"{LAYER}.{p}"].clone() for p in ("qweight", "qzeros", "scales", "g_idx")}),
        "no place for the quantized evil",
    ),
    "gptq: a bias that the model has not": (
        "gptq", lambda t: t.update({f"{LAYER}.bias": torch.ones(64)}), "bias is not zero",
    ),
    "gptq: norm missing": ("gptq", lambda t: t.pop("model.norm.weight"), "lacks 1 of the tensors"),
    "gptq: norm of another shape": (
        "gptq", lambda t: t.update({"model.norm.weight": torch.ones(63)}), "another shape",
    ),
    "awq: scales NaN": ("awq", poke("scales", (0, 3), NAN), "a scale is not finite"),
    "awq: no zeros": ("awq", drop("qzeros"), "q_proj has no qzeros"),
    "awq: zeros of GPTQ": ("awq", put("qzeros", lambda t: t.T.contiguous()), "qzeros is int32"),
    "awq: codes short": ("awq", put("qweight", lambda t: t[:-1].clone()), "q_proj"),
    "awq: int16 codes": ("awq", put("qweight", lambda t: t.to(torch.int16)), "q_proj|scales"),
    "awq: uint8 codes": ("awq", put("qweight", lambda t: t.view(torch.uint8)), "none of AWQ's layouts"),
    "awq: scales flat": ("awq", put("scales", torch.flatten), "none of AWQ's layouts"),
    "auto-round: codes short": ("auto-round", put("qweight", lambda t: t[:-1].clone()), "q_proj"),
    "itrex: codes of floats": ("itrex", put("qweight", lambda t: t.to(torch.float16)), "not GPTQ's layout"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS.values(), ids=TENSORS)
def test_a_tensor(forge, case):
    name, change, message = case
    folder = forge(name)
    change_tensors(folder, change)
    refused(folder, message)


def settings(**changes):
    return lambda config: config["quantization_config"].update(changes)


CONFIGS = {
    "group size 0": ("awq", settings(group_size=0), None),
    "group size of text": ("awq", settings(group_size="32"), "group_size '32', not of type int"),
    "group size true": ("gptq", settings(group_size=True), "group_size 'True', not of type int"),
    "bits of another width": ("awq", settings(bits=8), "bits '8', and AWQ layouts hold 4"),
    "sym of text": ("gptq", settings(sym="yes"), "sym 'yes', not of type bool"),
    "packing unknown": ("auto-round", settings(packing_format="x" * 10**5), "packing_format 'xxx"),
    "compute dtype unknown": ("itrex", settings(compute_dtype="fp7"), "compute_dtype 'fp7', which is none of"),
    "quantization a list": ("awq", lambda c: c.update(quantization_config=[1]), "quantization_config is list"),
    "quantization a text": ("awq", lambda c: c.update(quantization_config="awq"), "quantization_config is str"),
    "of a class of trust": ("awq", lambda c: c.update(model_type="evil"), "no model that transformers knows"),
    "layers without end": ("awq", lambda c: c.update(num_hidden_layers=10**9), "num_hidden_layers"),
    "hidden size of 2^62": ("awq", lambda c: c.update(hidden_size=2**62), "hidden_size"),
}


@pytest.mark.parametrize("case", CONFIGS.values(), ids=CONFIGS)
def test_a_config(forge, case):
    name, change, message = case
    folder = forge(name)
    change_config(folder, change)
    if message is None:  # the tensors say what it is
        assert read_all(folder)
    else:
        refused(folder, message)


def entry(part, **changes):
    return lambda header: header[f"{LAYER}.{part}"].update(changes)


HEADERS = {
    "shape of 2^63": (entry("qweight", shape=[2**63, 64]), "too large"),
    "shape that overflows": (entry("qweight", shape=[2**32, 2**32]), "too large"),
    "shape negative": (entry("qweight", shape=[-8, 64]), "not a list of non-negative integers"),
    "offsets that overlap": (entry("qweight", data_offsets=[0, 2048]), "overlaps|takes|begins"),
    "offsets beyond the file": (entry("qweight", data_offsets=[2**40, 2**40 + 2048]), "leaves a hole|begins"),
    "type unknown": (entry("qweight", dtype="I4"), "dtype 'I4'"),
    "shape zero": (entry("qweight", shape=[0, 64]), "takes 0 bytes"),
}


@pytest.mark.parametrize("case", HEADERS.values(), ids=HEADERS)
def test_a_header(forge, case):
    change, message = case
    folder = forge("gptq")
    change_header(folder / WEIGHTS, change)
    refused(folder, message)


def test_a_header_of_a_gigabyte(forge):
    folder = forge("gptq")
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes((2**30).to_bytes(8, "little") + data[8:])
    refused(folder, "claims 1073741824 bytes")


def test_a_file_that_was_cut_off(forge):
    folder = forge("gptq")
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    refused(folder, "end at byte")


def test_a_key_that_stands_twice(forge):
    folder = forge("awq")
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text[:-1] + ', "model_type": "gpt2"}')
    refused(folder, "more than once")


def test_an_index_that_leads_out_of_the_folder(forge):
    folder = forge("awq")
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"x": "../../../etc/passwd"}}))
    refused(folder, "only plain names are followed")


def test_an_index_that_names_a_file_that_is_not_there(forge):
    folder = forge("awq")
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"x": "model-1.safetensors"}}))
    refused(folder, "model-1.safetensors is missing")


def test_a_link_out_of_the_folder(forge, tmp_path):
    folder = forge("awq")
    shutil.move(folder / WEIGHTS, tmp_path / "elsewhere")
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    refused(folder, "outside of the model's folder")


def test_nothing_in_a_folder_is_run(forge, monkeypatch):
    """`auto_map`, a pickle, code, a template and a tokenizer's config that would run: all lie there unread."""
    folder = forge("gptq")
    trap = "import pathlib; pathlib.Path(__file__).with_name('sprung').touch()"
    (folder / "modeling_evil.py").write_text(trap)
    (folder / "pytorch_model.bin").write_bytes(b"cbuiltins\nexit\n(tR.")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["modeling_evil.T", None]}, "tokenizer_class": "T"})
    )
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    change_config(
        folder,
        lambda config: config.update(
            auto_map={"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.C"},
            trust_remote_code=True,
            custom_pipelines={"x": {"impl": "modeling_evil.P"}},
        ),
    )
    assert read_all(folder)
    assert not (folder / "sprung").exists()


def test_a_float_folder_that_calls_itself_quantized(forge):
    folder = forge("awq")
    change_tensors(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "proj" in name])
    with pytest.raises(CheckpointError, match=r"of no other format|lacks"):
        read_all(folder)
