"""Folders of compressed-tensors, packed by compressed-tensors itself: the weights are those that it makes of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_folders import Encode, assert_means, quantized_folder

from woqfx.backend import PackedWeight
from woqfx.errors import CheckpointWarning
from woqfx.loading import open_checkpoint

pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

CODES = {2: "int2", 3: "int3", 4: "int4_clip", 5: "int5", 6: "int6", 7: "int7", 8: "int8"}


def config(args: dict[str, Any], layout: str, **more: Any) -> dict[str, Any]:
    """A quantization config of one group."""
    group = {"targets": ["Linear"], "weights": args, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
        **more,
    }


def compressed(args: dict[str, Any], layout: str):
    """An encoder of random weights by the real compressor: tensors, and what it decompresses them to."""
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    compressor = BaseCompressor.get_value_from_registry(layout)

    def encode(name: str, n: int, k: int):
        generator = torch.Generator().manual_seed(len(name) + n)
        weight = torch.randn(n, k, generator=generator)
        state = {"weight": weight, **parameters(args, n, k, generator)}
        parts = compressor.compress(state, scheme)
        meant = dict(parts)
        if "weight_scale" in meant and meant["weight_scale"].dtype == torch.float16:
            meant["weight_scale"] = meant["weight_scale"].float()  # its products in fp16 would be rounded
        weight = compressor.decompress(meant, scheme)["weight"]
        return parts, weight.float()

    return encode


def parameters(args: dict[str, Any], n: int, k: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Scales and zero points of random groups."""
    rows, columns = args.get("block_structure", (1, 1))
    shape = {
        "tensor": (1,),
        "channel": (n, 1),
        "group": (n, k // (args.get("group_size") or 1)),
        "block": (-(-n // rows), -(-k // columns)),
    }[args["strategy"]]
    top = 1 << args["num_bits"] - 1
    scale = (torch.rand(shape, generator=generator) + 0.5) * 2.5 / top
    zeros = torch.randint(-top, top, shape, generator=generator).to(torch.int8)
    found = {"weight_scale": scale.to(torch.float16)}
    return found if args["symmetric"] else found | {"weight_zero_point": zeros}


def made(tmp_path: Path, quantization: dict[str, Any], encode: Encode) -> tuple[Path, Path]:
    """A folder that is packed, and one with the weights that it means."""
    return quantized_folder(tmp_path / "theirs", quantization, encode, dtype=torch.float32)


def assert_loads(folder: Path, dense: Path, dtype: str) -> torch.nn.Module:
    """Every packed weight is what was meant, and the model speaks."""
    model = assert_means(folder, dense, packed=14)
    assert {module.scheme.dtype for module in model.modules() if isinstance(module, PackedWeight)} == {dtype}
    ids = torch.arange(8).unsqueeze(0)
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 11)
    return model


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", CODES)
def test_pack_quantized(tmp_path, bits, symmetric):
    args = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": 32}
    folder, dense = made(tmp_path, config(args, "pack-quantized"), compressed(args, "pack-quantized"))
    assert_loads(folder, dense, CODES[bits])


STRATEGIES = ({"strategy": "channel"}, {"strategy": "tensor"}, {"strategy": "block", "block_structure": [16, 32]})
#: compressed-tensors packs zero points of groups and channels only.
LAYOUTS = {
    f"{layout}-{strategy['strategy']}-{'symmetric' if symmetric else 'asymmetric'}": (layout, strategy, symmetric)
    for layout in ("pack-quantized", "int-quantized", "naive-quantized")
    for strategy in STRATEGIES
    for symmetric in (True, False)
    if symmetric or layout != "pack-quantized" or strategy["strategy"] == "channel"
}


@pytest.mark.parametrize(("layout", "strategy", "symmetric"), LAYOUTS.values(), ids=LAYOUTS)
def test_strategies(tmp_path, layout, strategy, symmetric):
    args = {"num_bits": 8, "type": "int", "symmetric": symmetric, **strategy}
    folder, dense = made(tmp_path, config(args, layout), compressed(args, layout))
    assert_loads(folder, dense, "int8")


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_words_of_whole_values(tmp_path, bits):
    """Before 0.15.1, compressed-tensors left the rest of a word empty."""
    args = {"num_bits": bits, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
    encode = compressed(args, "pack-quantized")

    def older(name, n, k):
        parts, weight = encode(name, n, k)
        per_word = 32 // bits
        scale, zero = parts["weight_scale"], torch.from_numpy(_zeros(args, name, n, k))
        codes = torch.round(weight / scale.float().repeat_interleave(32, 1)).int()
        codes = codes + zero.repeat_interleave(32, 1).int()
        return {
            **parts,
            "weight_packed": _padded(codes + (1 << bits - 1), bits, per_word),
            "weight_zero_point": _padded(zero.T.int() + (1 << bits - 1), bits, per_word).T.contiguous(),
        }, weight

    folder, dense = made(tmp_path, config(args, "pack-quantized"), older)
    assert_loads(folder, dense, CODES[bits])


def _zeros(args, name, n, k):
    generator = torch.Generator().manual_seed(len(name) + n)
    torch.randn(n, k, generator=generator)
    return parameters(args, n, k, generator)["weight_zero_point"].numpy()


def _padded(values: torch.Tensor, bits: int, per_word: int) -> torch.Tensor:
    rows, count = values.shape
    words = torch.zeros(rows, math.ceil(count / per_word), dtype=torch.int64)
    for place in range(per_word):
        some = values[:, place::per_word].long()
        words[:, : some.shape[1]] |= some << bits * place
    return words.to(torch.int32)


def test_input_order_of_older_files(tmp_path):
    args = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
    encode = compressed(args, "pack-quantized")

    def shuffled(name, n, k):
        parts, weight = encode(name, n, k)
        order = torch.randperm(k, generator=torch.Generator().manual_seed(k))
        groups = torch.empty(k, dtype=torch.int32)
        groups[order] = (torch.arange(k) // 32).int()
        codes = torch.empty(n, k, dtype=torch.int32)
        packed = parts["weight_packed"].view(torch.uint8)
        codes[:, order] = torch.stack((packed & 15, packed >> 4), -1).flatten(1).int()
        meant = torch.empty_like(weight)
        meant[:, order] = weight
        return {**parts, "weight_packed": _padded(codes, 4, 8), "weight_g_idx": groups}, meant

    folder, dense = made(tmp_path, config(args, "pack-quantized"), shuffled)
    assert_loads(folder, dense, "int4_clip")


def test_groups_of_modules(tmp_path):
    four = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    eight = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    quantization = config(four, "mixed-precision")
    group = quantization["config_groups"]["group_0"]
    quantization["config_groups"]["group_1"] = {**group, "targets": ["re:.*down_proj$"], "weights": eight}

    def encode(name, n, k):
        return compressed(eight if name.endswith("down_proj") else four, "pack-quantized")(name, n, k)

    folder, dense = made(tmp_path, quantization, encode)
    model = assert_means(folder, dense, packed=14)
    for name, module in model.named_modules():
        if isinstance(module, PackedWeight):
            assert module.scheme.dtype == ("int8" if "down_proj" in name else "int4_clip")


def test_rounded_inputs_of_w8a8(tmp_path):
    args = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    quantization = config(args, "int-quantized")
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    quantization["config_groups"]["group_0"]["input_activations"] = inputs
    folder, dense = made(tmp_path, quantization, compressed(args, "int-quantized"))
    model = assert_loads(folder, dense, "int8")
    assert all(m.scheme.compute_dtype == "int8" for m in model.modules() if isinstance(m, PackedWeight))


ACTIVATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "static": ({"dynamic": False, "strategy": "tensor"}, r"inputs of layers to 8-bit integers \(tensor, static\)"),
    "asymmetric": ({"symmetric": False}, r"inputs of layers to 8-bit integers \(token, dynamic\)"),
    "fp8": ({"type": "float"}, r"inputs of layers to 8-bit floats \(token, dynamic\)"),
    "4-bit": ({"num_bits": 4}, "inputs of layers to 4-bit integers"),
}
ROUNDED = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_other_roundings_of_inputs_are_told(tmp_path, case):
    changes, said = ACTIVATIONS[case]
    args = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    quantization = config(args, "int-quantized")
    quantization["config_groups"]["group_0"]["input_activations"] = ROUNDED | changes
    folder, dense = made(tmp_path, quantization, compressed(args, "int-quantized"))
    with pytest.warns(CheckpointWarning, match=said):
        model = assert_loads(folder, dense, "int8")
    assert all(m.scheme.compute_dtype == "fp32" for m in model.modules() if isinstance(m, PackedWeight))


def test_inputs_of_weights_in_groups_outputs_and_the_cache_are_told(tmp_path):
    args = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    quantization = config(args, "pack-quantized")
    quantization["config_groups"]["group_0"]["input_activations"] = ROUNDED
    quantization["config_groups"]["group_0"]["output_activations"] = {"num_bits": 8, "type": "float"}
    quantization["kv_cache_scheme"] = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    folder, _ = made(tmp_path, quantization, compressed(args, "pack-quantized"))
    with pytest.warns(CheckpointWarning, match="outputs of layers to 8-bit floats") as told:
        open_checkpoint(folder)
    (message,) = [str(one.message) for one in told if one.category is CheckpointWarning]
    assert "inputs of layers to 8-bit integers (token, dynamic)" in message
    assert "keys and values to 8-bit floats (tensor, static) (kv_cache_scheme)" in message


def test_nvfp4(tmp_path):
    folder, dense = quantized_folder(
        tmp_path / "theirs",
        config(_float_args("tensor_group", 16), "nvfp4-pack-quantized"),
        _nvfp4,
        dtype=torch.float32,
    )
    assert_loads(folder, dense, "fp4_e2m1")


def test_mxfp4(tmp_path):
    folder, dense = made(tmp_path, config(_float_args("group", 32), "mxfp4-pack-quantized"), _mxfp4)
    assert_loads(folder, dense, "fp4_e2m1")


def _float_args(strategy: str, group_size: int) -> dict[str, Any]:
    return {"num_bits": 4, "type": "float", "symmetric": True, "strategy": strategy, "group_size": group_size}


def _nvfp4(name: str, n: int, k: int):
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**_float_args("tensor_group", 16)))
    compressor = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n + k)) * 0.02
    divisor = 448 * 6 / weight.abs().max().reshape(1)
    scale = (weight.view(n, -1, 16).abs().amax(-1) / 6 * divisor).to(torch.float8_e4m3fn).float()
    parts = compressor.compress({"weight": weight, "weight_scale": scale, "weight_global_scale": divisor}, scheme)
    assert parts["weight_scale"].dtype == torch.float8_e4m3fn
    # Its own decompression rounds to bfloat16; this is the formula in float32.
    return parts, _e2m1(parts["weight_packed"]) * (parts["weight_scale"].float() / divisor).repeat_interleave(16, 1)


def _mxfp4(name: str, n: int, k: int):
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**_float_args("group", 32)))
    compressor = BaseCompressor.get_value_from_registry("mxfp4-pack-quantized")
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n + k)) * 0.02
    scale = 2.0 ** torch.floor(torch.log2(weight.view(n, -1, 32).abs().amax(-1)) - 2)
    parts = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    assert parts["weight_scale"].dtype == torch.uint8
    return parts, _e2m1(parts["weight_packed"]) * scale.repeat_interleave(32, 1)


def _e2m1(packed: torch.Tensor) -> torch.Tensor:
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    return values[torch.stack((packed & 15, packed >> 4), -1).flatten(1).long()]
