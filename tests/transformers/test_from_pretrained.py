"""`from_pretrained` with woqfx as a quantizer of transformers, from a folder and from a woqfx checkpoint."""

from __future__ import annotations

import copy
import subprocess
import sys
from fnmatch import fnmatch

import pytest
import torch
from folders_of_models import digests, logits
from safetensors import SafetensorError
from tiny_models import save_tokenizer, tiny_inputs, tiny_model
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

import woqfx
from woqfx.errors import ConfigError, OutputError, PlanError, SourceError, WoqfxError
from woqfx.layers import packed_weights
from woqfx.transformers import RtnConfig, WeightOnlyQuantConfig, WoqfxConfig

FAMILIES = ["llama", "qwen2", "gpt2", "mixtral", "qwen3_moe", "gemma3", "opt", "falcon"]


@pytest.fixture
def folder(tmp_path):
    tiny_model("llama", vocab_size=259, max_position_embeddings=512).save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    return tmp_path / "model"


def load(path, **kwargs):
    return AutoModelForCausalLM.from_pretrained(path, **kwargs)


class TestOnTheWay:
    """A float model in a folder, quantized while it is loaded."""

    @pytest.mark.parametrize("family", FAMILIES)
    def test_it_is_the_model_that_quantize_makes(self, family, tmp_path):
        tiny_model(family, dtype=torch.bfloat16).save_pretrained(tmp_path)
        config = WeightOnlyQuantConfig(weight_dtype="nf4", group_size=16)
        model, expected = load(tmp_path, quantization_config=config), woqfx.quantize(tmp_path, config=config)
        assert torch.equal(logits(model), logits(expected))
        assert packed_weights(model).keys() == packed_weights(expected).keys() != set()
        assert model.dtype == expected.dtype == torch.bfloat16
        assert model.is_quantized and model.quantization_method == "woqfx"
        assert not model.training

    def test_an_encoder_decoder(self, tmp_path):
        tiny_model("t5").save_pretrained(tmp_path)
        config = RtnConfig(bits=8)
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, quantization_config=config)
        assert torch.equal(logits(model), logits(woqfx.quantize(tmp_path, config=config)))

    def test_an_algorithm_that_looks_at_data(self, folder):
        config = WeightOnlyQuantConfig(weight_dtype="int4_clip", algorithm="AWQ", calib_iters=4)
        model = load(folder, quantization_config=config)
        assert torch.equal(logits(model), logits(woqfx.quantize(folder, config=config)))
        assert not torch.equal(logits(model), logits(woqfx.quantize(folder, dtype="int4_clip", scale_dtype="fp32")))

    def test_a_dictionary_of_the_arguments_of_quantize(self, folder):
        model = load(folder, quantization_config={"quant_method": "woqfx", "dtype": "int8", "rules": ["*.o_proj=keep"]})
        kinds = {name: weight.scheme.dtype for name, weight in packed_weights(model).items()}
        assert set(kinds.values()) == {"int8"}
        assert len(kinds) == 12

    def test_another_type_than_the_files(self, folder):
        model = load(folder, quantization_config=WoqfxConfig(dtype="int8"), dtype=torch.bfloat16)
        assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
        assert {weight.dtype for weight in packed_weights(model).values()} == {torch.bfloat16}
        rotary = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
        assert rotary and all(buffer.dtype == torch.float32 for buffer in rotary)
        reference = woqfx.quantize(folder, dtype="int8")
        torch.testing.assert_close(logits(model).float(), logits(reference), atol=0.05, rtol=0.05)

    def test_modules_that_need_float32_keep_it(self, tmp_path):
        tiny_model("t5").save_pretrained(tmp_path)
        config = WoqfxConfig(dtype="int8")
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float16)
        assert {model.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype} == {torch.float32}
        assert model.encoder.block[0].layer[0].SelfAttention.q.weight.dtype == torch.float16

    def test_the_base_model_alone(self, folder):
        model = AutoModel.from_pretrained(folder, quantization_config=WoqfxConfig(dtype="nf4"))
        whole = woqfx.quantize(folder, dtype="nf4")
        tokens = tiny_inputs(whole)["input_ids"]
        assert torch.equal(model(tokens).last_hidden_state, whole.model(tokens).last_hidden_state)

    def test_a_changed_config_is_used(self, folder):
        config = WoqfxConfig(dtype="int8")
        model = load(folder, quantization_config=config, attn_implementation="eager", rms_norm_eps=0.25)
        assert model.config._attn_implementation == "eager"
        assert model.model.norm.variance_epsilon == 0.25

    @pytest.mark.parametrize(
        "device_map", [None, "cpu", {"": "cpu"}, "auto", {"model": "cpu", "lm_head": "cpu"}], ids=str
    )
    def test_device_maps(self, folder, device_map):
        model = load(folder, quantization_config=WoqfxConfig(dtype="int8"), device_map=device_map)
        assert model.device.type == "cpu"
        assert torch.equal(logits(model), logits(woqfx.quantize(folder, dtype="int8")))

    @pytest.mark.parametrize("device_map", ["cuda:0", {"": 0}, {"model": "cpu", "lm_head": "disk"}], ids=str)
    def test_other_devices_are_refused(self, folder, device_map):
        with pytest.raises(ConfigError, match=r"device_map names (cuda:0|0|disk): woqfx runs models on the CPU"):
            load(folder, quantization_config=WoqfxConfig(dtype="int8"), device_map=device_map)

    def test_the_random_state_is_left_alone(self, folder):
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        load(folder, quantization_config=WoqfxConfig(dtype="int8"))
        assert torch.equal(torch.rand(1), expected)

    def test_every_problem_of_the_plan_is_told(self, folder):
        config = WoqfxConfig(dtype="int8", rules=["*.nobody=keep", "*.nothing=nf4"])
        with pytest.raises(PlanError) as error:
            load(folder, quantization_config=config)
        assert len(error.value.problems) == 2

    def test_a_head_that_the_files_lack_is_an_error(self, folder):
        with pytest.raises(SourceError, match=r"score\.weight"):
            AutoModelForSequenceClassification.from_pretrained(folder, quantization_config=WoqfxConfig(dtype="int8"))

    def test_tensors_of_another_name_are_an_error(self, folder):
        from safetensors.torch import load_file, save_file

        file = folder / "model.safetensors"
        tensors = {name.replace("layers.1", "layers.9"): tensor for name, tensor in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(SourceError, match=r"model\.layers\.1\."):
            load(folder, quantization_config=WoqfxConfig(dtype="int8"))

    def test_a_backend_that_runs_whole_models_is_refused(self, folder):
        with pytest.raises(PlanError, match="llm_runtime"):
            load(folder, quantization_config=WoqfxConfig(dtype="int8", backend="llm_runtime"))

    def test_nothing_of_the_loading_stays(self, folder):
        model = load(folder, quantization_config=WoqfxConfig(dtype="int8"))
        plain = load(folder)
        assert model.all_tied_weights_keys == plain.all_tied_weights_keys
        assert "_keys_to_ignore_on_load_unexpected" not in vars(model)
        twin = copy.deepcopy(model)
        assert torch.equal(logits(twin), logits(model))
        assert twin.save_pretrained.args == (twin,)


class TestCheckpoints:
    """A folder that woqfx wrote."""

    @pytest.mark.parametrize("family", FAMILIES)
    def test_it_is_the_model_that_load_gives(self, family, tmp_path):
        woqfx.quantize(tiny_model(family), dtype="int4_clip", out=tmp_path / "out")
        model = load(tmp_path / "out")
        assert torch.equal(logits(model), logits(woqfx.load(tmp_path / "out")))
        assert model.hf_quantizer.pre_quantized

    def test_a_tied_embedding_that_is_quantized(self, tmp_path):
        woqfx.quantize(tiny_model("qwen2"), rules=["model.embed_tokens=int8"], out=tmp_path / "out")
        model = load(tmp_path / "out")
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.equal(logits(model), logits(woqfx.load(tmp_path / "out")))

    def test_another_type(self, tmp_path):
        woqfx.quantize(tiny_model("llama", dtype=torch.bfloat16), out=tmp_path / "out")
        model = load(tmp_path / "out", dtype=torch.float32)
        assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
        assert logits(model).dtype == torch.float32

    def test_a_missing_tensor_is_an_error(self, tmp_path):
        woqfx.quantize(tiny_model("llama"), out=tmp_path / "out")
        file = tmp_path / "out" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
        with pytest.raises((WoqfxError, SafetensorError)):
            load(tmp_path / "out")

    def test_a_checkpoint_of_another_model_is_an_error(self, tmp_path):
        woqfx.quantize(tiny_model("llama"), out=tmp_path / "out")
        with pytest.raises(WoqfxError, match=r"lacks|no model"):
            load(tmp_path / "out", num_hidden_layers=3)

    def test_what_transformers_does_not_fetch_from_the_hub_is_fetched(self, tmp_path, monkeypatch):
        import huggingface_hub

        folder = tmp_path / "models--org--name" / "snapshots" / "0123456"
        woqfx.quantize(tiny_model("llama"), out=folder)
        manifest = (folder / "woqfx.json").rename(tmp_path / "woqfx.json")

        def download(name, *, revision, cache_dir, allow_patterns):
            assert (name, revision, cache_dir) == ("org/name", "0123456", tmp_path)
            assert any(fnmatch(manifest.name, pattern) for pattern in allow_patterns)
            manifest.rename(folder / "woqfx.json")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        assert packed_weights(load(folder))

    def test_a_hub_that_does_not_answer(self, tmp_path, monkeypatch):
        import huggingface_hub

        folder = tmp_path / "models--org--name" / "snapshots" / "0123456"
        woqfx.quantize(tiny_model("llama"), out=folder)
        (folder / "woqfx.json").unlink()

        def download(*_, **__):
            raise OSError("no route to host")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        with pytest.raises(SourceError, match=r"did not give woqfx\.json of org/name: no route to host"):
            load(folder)

    def test_a_second_quantization_is_an_error(self, tmp_path):
        woqfx.quantize(tiny_model("llama"), out=tmp_path / "out")
        with pytest.raises(ValueError, match="quantized with CheckpointConfig but you are passing a RtnConfig"):
            load(tmp_path / "out", quantization_config=RtnConfig())

    def test_without_woqfx_transformers_stops_and_says_what_to_import(self, tmp_path):
        woqfx.quantize(tiny_model("llama"), out=tmp_path / "out")
        code = """
import sys
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1])
except OSError as error:
    print(error)
import woqfx.transformers
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(isinstance(model.model.layers[0].mlp.up_proj.weight, woqfx.PackedWeight))
"""
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=True
        )
        refusal, *_, packed = done.stdout.splitlines()
        assert "import woqfx.transformers to load this" in refusal
        assert packed == "True"


class TestSaving:
    """`save_pretrained`, however the model became quantized."""

    def models(self, folder):
        config = WoqfxConfig(dtype="nf4")
        yield load(folder, quantization_config=config)
        yield woqfx.quantize(folder, config=config)
        yield woqfx.quantize(AutoModelForCausalLM.from_pretrained(folder), config=config)

    def test_all_ways_write_the_same(self, folder, tmp_path):
        found = []
        for number, model in enumerate(self.models(folder)):
            model.save_pretrained(tmp_path / str(number))
            found.append(digests(tmp_path / str(number)))
            again = load(tmp_path / str(number))
            assert torch.equal(logits(again), logits(model))
            again.save_pretrained(tmp_path / f"{number} again")
            found.append(digests(tmp_path / f"{number} again"))
        assert all(one == found[0] for one in found)

    @pytest.mark.parametrize(("size", "least"), [("40KB", 3), (40_000, 3), ("5GB", 1)], ids=str)
    def test_shards(self, folder, tmp_path, size, least):
        model = load(folder, quantization_config=WoqfxConfig(dtype="nf4"))
        model.save_pretrained(tmp_path / "out", max_shard_size=size)
        assert len(list((tmp_path / "out").glob("*.safetensors"))) >= least
        assert torch.equal(logits(load(tmp_path / "out")), logits(model))

    @pytest.mark.parametrize("first", ["tokenizer", "model"])
    def test_a_tokenizer_beside_it(self, folder, tmp_path, first):
        from transformers import AutoTokenizer

        model, tokenizer = (
            load(folder, quantization_config=WoqfxConfig(dtype="nf4")),
            AutoTokenizer.from_pretrained(folder),
        )
        for one in (tokenizer, model) if first == "tokenizer" else (model, tokenizer):
            one.save_pretrained(tmp_path / "out")
        tokenizer.save_pretrained(tmp_path / "out")
        assert torch.equal(logits(load(tmp_path / "out")), logits(model))
        assert AutoTokenizer.from_pretrained(tmp_path / "out")("abc").input_ids == tokenizer("abc").input_ids

    def test_it_replaces_a_checkpoint(self, folder, tmp_path):
        for dtype in ("nf4", "int8"):
            model = load(folder, quantization_config=WoqfxConfig(dtype=dtype))
            model.save_pretrained(tmp_path / "out")
        assert torch.equal(logits(load(tmp_path / "out")), logits(model))

    def test_other_files_are_in_the_way(self, folder, tmp_path):
        model = load(folder, quantization_config=WoqfxConfig(dtype="nf4"))
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("mine")
        with pytest.raises(OutputError, match=r"thesis\.txt"):
            model.save_pretrained(tmp_path / "out")

    @pytest.mark.parametrize(
        ("argument", "value"),
        [("state_dict", {"a": 1}), ("variant", "x"), ("push_to_hub", True), ("max_shard_size", "many")],
    )
    def test_what_cannot_be_done_is_refused(self, folder, tmp_path, argument, value):
        model = load(folder, quantization_config=WoqfxConfig(dtype="nf4"))
        with pytest.raises(WoqfxError, match=argument):
            model.save_pretrained(tmp_path / "out", **{argument: value})

    def test_other_processes_write_nothing(self, folder, tmp_path):
        model = load(folder, quantization_config=WoqfxConfig(dtype="nf4"))
        model.save_pretrained(tmp_path / "out", is_main_process=False)
        assert not (tmp_path / "out").exists()


class TestDequantizing:
    @pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen2"])
    def test_it_gives_what_the_codes_stand_for(self, family, tmp_path):
        tiny_model(family).save_pretrained(tmp_path / "model")
        rules = ["*.embed_tokens=int8"] if family == "qwen2" else []
        model = load(tmp_path / "model", quantization_config=WoqfxConfig(dtype="nf4", rules=rules))
        before = logits(model)
        assert model.dequantize() is model
        assert packed_weights(model) == {}
        torch.testing.assert_close(logits(model), before, atol=1e-4, rtol=1e-4)
        assert not hasattr(model.config, "quantization_config")
        if family == "qwen2":
            assert model.lm_head.weight is model.model.embed_tokens.weight

    def test_it_then_saves_as_any_other(self, folder, tmp_path):
        model = load(folder, quantization_config=WoqfxConfig(dtype="nf4"))
        model.dequantize(dtype=torch.bfloat16)
        model.save_pretrained(tmp_path / "dense")
        dense = load(tmp_path / "dense")
        assert dense.dtype == torch.bfloat16
        assert not hasattr(dense, "hf_quantizer")
        assert torch.equal(logits(dense), logits(model))
        with pytest.raises(WoqfxError, match="was not quantized"):
            woqfx.save(model, tmp_path / "out")

    def test_the_function_does_it_for_any_module(self):
        layer = woqfx.quantize(torch.nn.Sequential(torch.nn.Linear(64, 8)), dtype="int8")
        weight = layer[0].weight.dequantize()
        assert torch.equal(woqfx.dequantize(layer)[0].weight, weight)
