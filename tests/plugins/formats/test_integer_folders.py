"""Folders of AutoAWQ, GPTQ, auto-round and ITREX: loaded packed, each weight what the layout says, bit for bit."""

from __future__ import annotations

import json

import layouts
import numpy as np
import pytest
import torch
from foreign_folders import (
    AWQ_CONFIG,
    assert_means,
    awq_encode,
    gptq_config,
    gptq_encode,
    quantized_folder,
    random_codes,
)
from safetensors.torch import load_file, save_file
from tiny_models import tiny_inputs

import woqfx
from woqfx.errors import CheckpointError
from woqfx.loading import open_checkpoint
from woqfx.original import load_original


def weights_of(path):
    return open_checkpoint(path).weights


class TestGPTQ:
    @pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
    @pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
    @pytest.mark.parametrize("bits", [2, 3, 4, 8])
    def test_bits_symmetry_and_versions(self, bits, symmetric, version, tmp_path):
        folder, dense = quantized_folder(
            tmp_path / "gptq",
            gptq_config(bits=bits, sym=symmetric, checkpoint_format=version),
            gptq_encode(bits, symmetric=symmetric, minus_one=version == "gptq"),
        )
        assert_means(folder, dense, packed=14)
        (scheme,) = {weight.scheme for weight in weights_of(folder).values()}
        dtype = {2: "int2", 3: "int3", 4: "int4_clip", 8: "int8"}[bits]
        assert scheme == woqfx.Scheme(dtype, 32, symmetric, "fp16")

    @pytest.mark.parametrize("backend", ["torch_cpu", "llm_runtime"])
    @pytest.mark.parametrize("act_order", [False, True], ids=["plain", "act-order"])
    def test_it_says_what_the_float_model_says(self, act_order, backend, tmp_path):
        folder, dense = quantized_folder(
            tmp_path / "gptq", gptq_config(desc_act=act_order), gptq_encode(act_order=act_order), dtype=torch.float32
        )
        if backend not in woqfx.registry().names("backend"):
            pytest.skip(f"{backend} is not installed")
        model, original = woqfx.load(folder, backend=backend), load_original(dense)
        inputs = tiny_inputs(original)
        with torch.no_grad():
            # The runtime stores the output head in 8 bits.
            off = 0.05 if backend == "llm_runtime" else 1e-3
            torch.testing.assert_close(model(**inputs).logits, original(**inputs).logits, rtol=1e-3, atol=off)

    def test_act_order(self, tmp_path):
        folder, dense = quantized_folder(tmp_path / "gptq", gptq_config(desc_act=True), gptq_encode(act_order=True))
        assert_means(folder, dense)
        assert all(weight.ordered for weight in weights_of(folder).values())

    def test_g_idx_in_order_is_no_act_order(self, tmp_path):
        folder, dense = quantized_folder(tmp_path / "gptq", gptq_config(desc_act=True), gptq_encode())
        assert_means(folder, dense)
        assert not any(weight.ordered for weight in weights_of(folder).values())

    def test_overrides_of_single_layers(self, tmp_path):
        """`dynamic` of GPTQModel: another width, another group size, or none of it."""

        def encode(name, n, k):
            if "down_proj" in name:
                return gptq_encode(8, 16, symmetric=False)(name, n, k)
            return None if "layers.1.self_attn" in name else gptq_encode(4)(name, n, k)

        dynamic = {r"+:.*down_proj": {"bits": 8, "group_size": 16, "sym": False}, r"-:.*layers\.1\.self_attn.*": {}}
        folder, dense = quantized_folder(tmp_path / "gptq", gptq_config(dynamic=dynamic), encode)
        assert_means(folder, dense, packed=10)
        schemes = {name.split(".")[-2]: weight.scheme for name, weight in weights_of(folder).items()}
        assert (schemes["down_proj"].dtype, schemes["down_proj"].group_size) == ("int8", 16)
        assert (schemes["up_proj"].dtype, schemes["up_proj"].group_size) == ("int4_clip", 32)

    def test_a_quantized_head(self, tmp_path):
        folder, dense = quantized_folder(
            tmp_path / "gptq",
            gptq_config(lm_head=True),
            gptq_encode(),
            head=True,
            tie_word_embeddings=False,
            vocab_size=128,
        )
        assert "lm_head" in str(assert_means(folder, dense, packed=15))

    def test_zero_points_that_are_not_in_the_middle_are_kept_whatever_the_config_says(self, tmp_path):
        folder, dense = quantized_folder(tmp_path / "gptq", gptq_config(sym=True), gptq_encode(symmetric=False))
        assert_means(folder, dense)
        assert not any(weight.scheme.symmetric for weight in weights_of(folder).values())

    def test_biases_of_zeros_that_the_model_has_no_place_for(self, tmp_path):
        def encode(name, n, k):
            parts, weight = gptq_encode()(name, n, k)
            return {**parts, "bias": np.zeros(n, np.float16)}, weight

        folder, dense = quantized_folder(tmp_path / "gptq", gptq_config(), encode)
        assert_means(folder, dense)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.0.self_attn.q_proj.bias"][3] = 1
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"q_proj\.bias is not zero, and the model has no place for it"):
            woqfx.load(folder)

    def test_older_names_of_config_and_weights(self, tmp_path):
        """AutoGPTQ: a config of its own, and a file named after the settings."""
        folder, dense = quantized_folder(tmp_path / "gptq", None, gptq_encode())
        (folder / "model.safetensors").rename(folder / "gptq_model-4bit-32g.safetensors")
        (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32, "sym": True}))
        assert_means(folder, dense)

    @pytest.mark.parametrize("family", ["gpt2", "opt", "qwen2", "phi3", "gemma2"])
    def test_families(self, family, tmp_path):
        folder, dense = quantized_folder(tmp_path / "gptq", gptq_config(), gptq_encode(), family=family)
        assert_means(folder, dense)

    @pytest.mark.parametrize("act_order", [False, True], ids=["plain", "act-order"])
    @pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
    def test_experts_that_are_stored_one_by_one(self, family, act_order, tmp_path):
        folder, dense = quantized_folder(
            tmp_path / "gptq", gptq_config(desc_act=act_order), gptq_encode(act_order=act_order), family=family
        )
        model = assert_means(folder, dense)
        assert any("experts" in name for name in woqfx.layers.packed_weights(model))

    def test_other_packings_are_refused_by_name(self, tmp_path):
        folder, _ = quantized_folder(tmp_path / "gptq", gptq_config(checkpoint_format="marlin"), gptq_encode())
        with pytest.raises(CheckpointError, match="checkpoint_format 'marlin', where gptq and gptq_v2 are read"):
            woqfx.load(folder)


class TestAWQ:
    @pytest.mark.parametrize("group_size", [16, 32])
    def test_gemm(self, group_size, tmp_path):
        folder, dense = quantized_folder(
            tmp_path / "awq", {**AWQ_CONFIG, "group_size": group_size}, awq_encode(group_size)
        )
        assert_means(folder, dense, packed=14)

    def test_gemv(self, tmp_path):
        def encode(name, n, k):
            made = random_codes(n, k, seed=n)
            parts = layouts.awq_gemv(made.codes, made.zeros, made.scales, 32)
            return parts, layouts.weight_of(made.codes, made.zeros, made.scales, made.groups)

        assert_means(*quantized_folder(tmp_path / "awq", {**AWQ_CONFIG, "version": "gemv"}, encode))

    @pytest.mark.parametrize("zeros", ["qzeros", "scaled_zeros"], ids=["gemv_fast", "llm-awq"])
    def test_gemv_fast(self, zeros, tmp_path):
        def encode(name, n, k):
            made = random_codes(n, k, seed=n)
            parts = layouts.awq_gemv_fast(made.codes, made.zeros, made.scales, 32)
            scales = made.scales.astype(np.float32)[:, made.groups]
            offsets = parts["qzeros"][: made.zeros.shape[1]].T.astype(np.float32)[:, made.groups]
            renamed = {zeros if name == "qzeros" else name: array for name, array in parts.items()}
            return renamed, made.codes.astype(np.float32) * scales + offsets

        config = {**AWQ_CONFIG, "version": "gemv_fast"}
        assert_means(*quantized_folder(tmp_path / "awq", config, encode, intermediate_size=128))

    def test_a_config_of_autoawqs_own(self, tmp_path):
        folder, dense = quantized_folder(tmp_path / "awq", None, awq_encode())
        own = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
        (folder / "quant_config.json").write_text(json.dumps(own))
        assert_means(folder, dense)

    def test_layers_that_were_not_converted(self, tmp_path):
        def encode(name, n, k):
            return None if "v_proj" in name else awq_encode()(name, n, k)

        folder, dense = quantized_folder(tmp_path / "awq", {**AWQ_CONFIG, "modules_to_not_convert": ["v_proj"]}, encode)
        assert_means(folder, dense, packed=12)


class TestAutoRound:
    @pytest.mark.parametrize(
        ("packing", "minus_one"),
        [("auto_round:auto_gptq", True), ("auto_round", False), ("auto_round:gptqmodel", False)],
    )
    def test_the_layouts_of_gptq(self, packing, minus_one, tmp_path):
        config = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False, "packing_format": packing}
        folder, dense = quantized_folder(tmp_path / "round", config, gptq_encode(symmetric=False, minus_one=minus_one))
        assert_means(folder, dense)

    def test_the_layout_of_awq(self, tmp_path):
        config = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_awq"}
        assert_means(*quantized_folder(tmp_path / "round", config, awq_encode()))

    def test_other_packings_are_refused_by_name(self, tmp_path):
        config = {"quant_method": "auto-round", "bits": 8, "packing_format": "auto_round:fp8"}
        folder, _ = quantized_folder(tmp_path / "round", config, gptq_encode())
        with pytest.raises(CheckpointError, match=r"packing_format 'auto_round:fp8', where auto_round, .* are read"):
            woqfx.load(folder)


class TestITREX:
    @pytest.mark.parametrize("method", ["rtn", "awq", "teq", "gptq", "autoround"])
    def test_every_method_is_stored_as_gptq(self, method, tmp_path):
        config = {
            "quant_method": method,
            "bits": 4,
            "group_size": 32,
            "weight_dtype": "int4_clip",
            "compute_dtype": "int8",
            "scale_dtype": "fp32",
            "sym": True,
            "use_ipex": False,
        }
        folder, dense = quantized_folder(tmp_path / "itrex", config, gptq_encode())
        assert_means(folder, dense)
        assert {weight.scheme.compute_dtype for weight in weights_of(folder).values()} == {"int8"}

    def test_what_its_kernels_packed_cannot_be_read(self, tmp_path):
        config = {"quant_method": "rtn", "weight_dtype": "nf4", "bits": 4}
        folder, _ = quantized_folder(tmp_path / "itrex", config, lambda *_: None)
        with pytest.raises(CheckpointError, match="ITREX stored nf4 as its kernels had it"):
            woqfx.load(folder)


class TestDetection:
    def test_a_folder_that_is_not_quantized(self, tmp_path):
        _, dense = quantized_folder(tmp_path / "none", None, lambda *_: None)
        with pytest.raises(CheckpointError, match=r"no woqfx\.json.* of no other format that is read here \(.*gptq"):
            woqfx.load(dense)

    def test_a_method_that_nobody_knows(self, tmp_path):
        folder, _ = quantized_folder(tmp_path / "odd", {"quant_method": "quip"}, gptq_encode())
        with pytest.raises(CheckpointError, match="its config says quant_method 'quip'"):
            woqfx.load(folder)

    def test_without_a_config_shapes_decide(self, tmp_path):
        folder, dense = quantized_folder(tmp_path / "awq", None, awq_encode())
        assert_means(folder, dense)
        folder, dense = quantized_folder(tmp_path / "gptq", None, gptq_encode())
        assert_means(folder, dense)

    def test_two_formats_that_claim_one_folder(self, tmp_path):
        folder, _ = quantized_folder(tmp_path / "gptq", gptq_config(), gptq_encode())

        class Greedy(woqfx.Format):
            name = "greedy"

            def detect(self, files):
                return True

            def open(self, files):
                raise NotImplementedError

        class Plugin:
            @woqfx.hookimpl
            def woqfx_formats(self):
                return [Greedy()]

        woqfx.register(Plugin(), "greedy")
        try:
            with pytest.raises(CheckpointError, match="taken for its own by formats gptq and greedy"):
                woqfx.load(folder)
        finally:
            woqfx.unregister("greedy")
