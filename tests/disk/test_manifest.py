from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from woqfx.disk.manifest import FileFacts, Manifest, natural, short
from woqfx.format import StoredWeight
from woqfx.scheme import Scheme

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
SCHEMES = st.builds(
    Scheme,
    dtype=st.sampled_from(["nf4", "int8"]),
    group_size=st.sampled_from([-1, 1, 32, 100]),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from(["fp32", "fp16", "bf16"]),
    double_quant=st.booleans(),
    compute_dtype=st.sampled_from(["fp32", "bf16", "int8"]),
    outlier_threshold=st.sampled_from([0.0, 6.0]),
)
WEIGHTS = st.builds(
    StoredWeight,
    scheme=SCHEMES,
    shape=st.lists(st.integers(1, 2**40), min_size=2, max_size=4).map(tuple),
    float_dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
FILES = st.builds(FileFacts, st.integers(0, 2**50), st.binary(min_size=32, max_size=32).map(bytes.hex))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    weights = draw(st.dictionaries(NAMES, WEIGHTS, max_size=5))
    errors = {name: draw(st.none() | st.floats(0, 2)) for name in weights}
    files = draw(st.dictionaries(st.sampled_from(["config.json", "model.safetensors", "tokenizer.json"]), FILES))
    return Manifest({"algorithm": "rtn", "rules": ["*=keep"]}, weights, errors, {"later": "first"}, files)


@given(manifests())
def test_what_is_written_is_what_is_read(manifest: Manifest) -> None:
    assert Manifest.parse(manifest.to_bytes(), Path("woqfx.json")) == manifest


@given(manifests())
def test_the_order_of_its_making_does_not_show(manifest: Manifest) -> None:
    turned = Manifest(
        manifest.request,
        dict(reversed(manifest.weights.items())),
        dict(reversed(manifest.errors.items())),
        manifest.aliases,
        dict(reversed(manifest.files.items())),
    )
    assert turned.to_bytes() == manifest.to_bytes()


@pytest.mark.parametrize(
    "ordered",
    [
        ["layers.2.w", "layers.10.w"],
        ["lm_head.w", "model.embed.w", "model.layers.0.w", "model.layers.0.x"],
        ["a", "a.b", "a.0"],
        ["x.²", "x.³"],  # digits to Python, numbers to nobody
    ],
)
def test_names_sort_as_a_reader_expects(ordered: list[str]) -> None:
    assert sorted(set(ordered), key=natural) == ordered


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=9)))
def test_a_value_in_a_message_is_short_and_printable(value: object) -> None:
    assert len(short(value)) <= 203
    assert short(value).isprintable()
