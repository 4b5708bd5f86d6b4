"""Manifests that lie. Each is refused by name."""

from __future__ import annotations

import json

import pytest
from forgeries import MANIFEST, Forgery, Net, read_all, refused


def weight(**changes):
    def change(manifest):
        manifest["weights"]["plain.weight"].update(changes)

    return change


def scheme(**changes):
    """Of the weight `plain`."""

    def change(manifest):
        manifest["schemes"][manifest["weights"]["plain.weight"]["scheme"]].update(changes)

    return change


def put(key, value):
    return lambda manifest: manifest.update({key: value})


def listed(name, facts):
    return lambda manifest: manifest["files"].update({name: facts})


FACTS = {"bytes": 1, "sha256": "0" * 64}

CASES = {
    "version unknown": (put("woqfx", 2), "format version 2"),
    "version true": (put("woqfx", True), "format version true"),
    "version 1.0": (put("woqfx", 1.0), "format version 1.0"),
    "version missing": (lambda m: m.pop("woqfx"), "format version null"),
    "weights a list": (put("weights", []), r"'weights' is \[\]"),
    "weights missing": (lambda m: m.pop("weights"), "'weights' is null"),
    "weight a number": (lambda m: m["weights"].update({"plain.weight": 7}), "plain.weight' is 7"),
    "weight without facts": (lambda m: m["weights"].update({"plain.weight": {}}), "plain.weight' has shape null"),
    "schemes an object": (put("schemes", {}), "'schemes' is an object of 0"),
    "scheme a text": (lambda m: m["schemes"].__setitem__(0, "nf4"), "scheme 0 is 'nf4'"),
    "scheme with a stranger": (scheme(evil=1), "not a scheme"),
    "scheme without dtype": (lambda m: m["schemes"][0].pop("dtype"), "not a scheme"),
    "scheme index too large": (weight(scheme=99), "plain.weight' has scheme 99"),
    "scheme index negative": (weight(scheme=-1), "plain.weight' has scheme -1"),
    "scheme index true": (weight(scheme=True), "plain.weight' has scheme true"),
    "scheme index a fraction": (weight(scheme=0.0), "plain.weight' has scheme 0.0"),
    "dtype unknown": (scheme(dtype="int3_evil"), "plain.weight.*int3_evil"),
    "dtype a list": (scheme(dtype=["nf4"]), "dtype must be a name"),
    "dtype a path": (scheme(dtype="../../etc/passwd"), "plain.weight.*passwd"),
    "dtype of other width": (scheme(dtype="nf4"), "plain.weight.codes' is torch.uint8"),
    "compute dtype unknown": (scheme(compute_dtype="evil"), "plain.weight.*evil"),
    "group size zero": (scheme(group_size=0), "group_size 0"),
    "group size negative": (scheme(group_size=-2), "group_size -2"),
    "group size true": (scheme(group_size=True), "group_size must be a whole number"),
    "group size other": (scheme(group_size=7), "plain.weight.scales' is"),
    "scale dtype unknown": (scheme(scale_dtype="fp8"), "scale_dtype 'fp8'"),
    "scale dtype other": (scheme(scale_dtype="fp32"), "plain.weight.scales' is torch.float16"),
    "double_quant a text": (scheme(double_quant="yes"), "double_quant must be true or false"),
    "double_quant claimed": (scheme(double_quant=True), "plain.weight.*scheme needs.*scale_codes"),
    "zero points claimed": (scheme(symmetric=False), "plain.weight.*scheme needs.*zeros"),
    "codebook with zero points": (
        lambda m: m["schemes"][m["weights"]["doubled.weight"]["scheme"]].update(symmetric=False),
        "doubled.weight' has zero points, and nf4 has no asymmetric form",
    ),
    "shape negative": (weight(shape=[-40, 24]), r"plain.weight' has shape"),
    "shape zero": (weight(shape=[0, 24]), r"plain.weight' has shape"),
    "shape true": (weight(shape=[True, 24]), r"plain.weight' has shape"),
    "shape of fractions": (weight(shape=[40.0, 24]), r"plain.weight' has shape"),
    "shape of texts": (weight(shape=["40", "24"]), r"plain.weight' has shape"),
    "shape one number": (weight(shape=[960]), r"plain.weight' has shape"),
    "shape a text": (weight(shape="40x24"), r"plain.weight' has shape"),
    "shape huge": (weight(shape=[2**63, 2**63]), "plain.weight.codes' is"),
    "shape of many dimensions": (weight(shape=[1] * 100_000), "plain.weight"),
    "shape turned": (weight(shape=[24, 40]), "plain.weight.codes' is"),
    "float dtype unknown": (weight(dtype="float8"), "plain.weight' has dtype 'float8'"),
    "float dtype an object": (weight(dtype={}), "plain.weight' has dtype an object"),
    "error a text": (weight(error="small"), "plain.weight' has error 'small'"),
    "weight of no layer": (lambda m: m["weights"].update({"evil.weight": m["weights"].pop("plain.weight")}), "evil"),
    "weight dropped": (lambda m: m["weights"].pop("plain.weight"), "has no 'plain.weight.codes'|has no 'plain.weight"),
    "alias to nothing": (put("aliases", {"x": "y"}), "ties 'x' to 'y'"),
    "alias to itself": (put("aliases", {"norm.weight": "norm.weight"}), "ties 'norm.weight'"),
    "alias over a tensor": (put("aliases", {"norm.weight": "norm.bias"}), "ties 'norm.weight'"),
    "alias a number": (put("aliases", {"x": 1}), "ties 'x' to 1"),
    "aliases a text": (put("aliases", "x"), "'aliases' is 'x'"),
    "request a list": (put("request", []), r"'request' is \[\]"),
    "files a list": (put("files", []), r"'files' is \[\]"),
    "file upwards": (listed("../evil.safetensors", FACTS), "evil.safetensors"),
    "file absolute": (listed("/etc/evil.safetensors", FACTS), "evil.safetensors"),
    "file below": (listed("sub/evil.safetensors", FACTS), "evil.safetensors"),
    "file with a null": (listed("evil\0.safetensors", FACTS), "evil"),
    "file with a lone surrogate": (listed("evil\ud800.safetensors", FACTS), "evil"),
    "file with a name too long": (listed("e" * 5000 + ".safetensors", FACTS), "eee"),
    "file of code": (listed("modeling_evil.py", FACTS), "modeling_evil.py', a file that no checkpoint has"),
    "file of pickle": (listed("pytorch_model.bin", FACTS), "pytorch_model.bin', a file that no checkpoint has"),
    "file missing": (listed("other.safetensors", FACTS), "other.safetensors is missing"),
    "file the manifest": (listed(MANIFEST, FACTS), "a file that no checkpoint has"),
    "file of other size": (
        lambda m: m["files"]["model.safetensors"].update(bytes=10),
        "model.safetensors has .* bytes, where woqfx.json says 10",
    ),
    "file of negative size": (lambda m: m["files"]["model.safetensors"].update(bytes=-1), "has -1 bytes"),
    "file of other hash": (
        lambda m: m["files"]["model.safetensors"].update(sha256="0" * 64),
        "model.safetensors is not as woqfx.json describes",
    ),
    "file with no hash": (lambda m: m["files"]["model.safetensors"].pop("sha256"), "SHA-256 null"),
    "file a number": (listed("model.safetensors", 7), "model.safetensors' is 7"),
    "no weight file": (lambda m: m["files"].pop("model.safetensors"), "scheme needs"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_manifest_that_lies(forgery: Forgery, name: str) -> None:
    change, match = CASES[name]
    forgery.edit(change)
    refused(forgery.path, match, Net())


RAW = {
    "empty": (b"", "not valid JSON"),
    "not JSON": (b"{", "not valid JSON"),
    "a list": (b"[]", "not an object"),
    "not UTF-8": (b'{"woqfx": "\xff"}', "not valid JSON"),
    "a key twice": (b'{"woqfx": 1, "woqfx": 1}', "more than once"),
    "a key twice far down": (
        b'{"woqfx": 1, "weights": {' + b",".join(b'"%d": 0' % n for n in range(200_000)) + b', "199999": 1}}',
        "more than once",
    ),
    "nested without end": (b'{"a":' * 200_000, "nested too deeply"),
    "lists without end": (b'{"a":' + b"[" * 200_000, "nested too deeply"),
    "a number without end": (b'{"woqfx": ' + b"9" * 100_000 + b"}", "not valid JSON|format version"),
    "larger than any manifest": (b'{"woqfx": 1, "pad": "' + b"x" * (33 << 20) + b'"}', "more than .* bytes"),
}


@pytest.mark.parametrize("name", RAW)
def test_a_manifest_that_is_none(forgery: Forgery, name: str) -> None:
    data, match = RAW[name]
    (forgery.path / MANIFEST).write_bytes(data)
    refused(forgery.path, match, Net())


def test_numbers_that_are_none(forgery: Forgery) -> None:
    text = (forgery.path / MANIFEST).read_text()
    error = json.loads(text)["weights"]["plain.weight"]["error"]
    for hostile in ("NaN", "Infinity", "1e999"):
        (forgery.path / MANIFEST).write_text(text.replace(str(error), hostile))
        refused(forgery.path, "plain.weight' has error", Net())


@pytest.mark.parametrize("size", [24, 25, 2**70, -1])
def test_a_group_size_beyond_the_row_is_the_row(forgery: Forgery, original, size: int) -> None:
    # All mean the same for 24 inputs: the codes are read alike.
    forgery.edit(scheme(group_size=size))
    expected = read_all(original, Net())
    found = read_all(forgery.path, Net())
    assert all((found[name] == expected[name]).all() for name in expected)
