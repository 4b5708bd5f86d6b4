"""Every storage scheme through the whole flow: what is loaded is what direct quantization gives."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from folders_of_models import contents, logits, saved, write
from tiny_models import tiny_model

import woqfx

DTYPES = ["int8", "int4_clip", "int4_fullrange", "nf4", "fp4_e2m1"]
INTEGERS = DTYPES[:3]
SCHEMES = [
    (dtype, symmetric, group, scale, double)
    for dtype, symmetric, group, scale, double in product(
        DTYPES, (True, False), (-1, 32, 100), ("fp32", "fp16", "bf16"), (False, True)
    )
    if symmetric or dtype in INTEGERS
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    # In features 64 and 96: a group of 100 is a whole row, one of 32 divides both, and of 100 none.
    # 224 makes it ragged: two full groups of 100 and one of 24.
    changes = {"num_hidden_layers": 1, "intermediate_size": 224}
    return saved("llama", tmp_path_factory.mktemp("model"), **changes), tiny_model("llama", **changes).state_dict()


@pytest.mark.parametrize(
    ("dtype", "symmetric", "group_size", "scale_dtype", "double_quant"),
    SCHEMES,
    ids=lambda value: {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value),
)
def test_the_loaded_weight_is_the_one_that_quantizing_gives(
    model, tmp_path, dtype, symmetric, group_size, scale_dtype, double_quant
):
    folder, state = model
    values = {"symmetric": symmetric, "group_size": group_size, "scale_dtype": scale_dtype}
    out = write(folder, tmp_path / "out", dtype=dtype, double_quant=double_quant, **values)
    scheme = woqfx.Scheme(dtype, double_quant=double_quant, **values)
    found = contents(out)
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        expected = state[name]
        if "proj" in name:
            grid = woqfx.registry().dtype(dtype)
            expected = woqfx.quantize_nearest(expected, grid, scheme, name=name).dequantize()
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("compute_dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_compute_dtype_runs_every_dtype_alike_live_and_loaded(model, tmp_path, dtype, compute_dtype):
    folder, _ = model
    out = write(folder, tmp_path / "out", dtype=dtype, compute_dtype=compute_dtype)
    live = woqfx.quantize(
        tiny_model("llama", num_hidden_layers=1, intermediate_size=224), dtype=dtype, compute_dtype=compute_dtype
    )
    found = logits(woqfx.load(out))
    assert torch.isfinite(found).all()
    assert torch.equal(found, logits(live))


def test_rules_give_each_layer_its_own_scheme(model, tmp_path):
    folder, _ = model
    rules = ["*.mlp.*=int8", ("*.down_proj", "keep"), "re:.*layers\\.0\\.self_attn\\.[qk]_proj=dtype:nf4,group_size:16"]
    out = write(folder, tmp_path / "out", rules=rules)
    from woqfx.disk.checkpoint import Checkpoint

    checkpoint = Checkpoint(out)
    kinds = {
        name.removeprefix("model.layers.0."): (w.scheme.dtype, w.scheme.group_size)
        for name, w in checkpoint.weights.items()
    }
    assert kinds == {
        "mlp.gate_proj.weight": ("int8", 32),
        "mlp.up_proj.weight": ("int8", 32),
        "self_attn.q_proj.weight": ("nf4", 16),
        "self_attn.k_proj.weight": ("nf4", 16),
        "self_attn.v_proj.weight": ("int4_fullrange", 32),
        "self_attn.o_proj.weight": ("int4_fullrange", 32),
    }
    assert "model.layers.0.mlp.down_proj.weight" in checkpoint.kept
    assert torch.isfinite(logits(woqfx.load(out))).all()
