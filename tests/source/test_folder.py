"""Folders, judged by what transformers loads from them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
import torch
from folders import INDEX, WEIGHTS, edit, rewrite, save
from safetensors.torch import load_file
from tiny_models import FAMILIES, processor_seconds, tiny_config, tiny_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from woqfx.disk.tensorfile import layout
from woqfx.errors import SourceError
from woqfx.skeleton import build_skeleton, named_state
from woqfx.source import FolderSource, ModuleSource, TensorInfo

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel


def loaded(folder: Path, encoder_decoder: bool = False) -> PreTrainedModel:
    """What transformers makes of the folder."""
    auto = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_pretrained(folder)
    return model


def assert_equal_sources(folder: FolderSource, live: ModuleSource) -> None:
    """Everything that the engine sees is the same."""
    assert dict(folder.aliases) == dict(live.aliases)
    assert list(folder.tensors.items()) == list(live.tensors.items())
    for name, info in folder.tensors.items():
        tensor = folder.read(name)
        assert TensorInfo(tuple(tensor.shape), tensor.dtype) == info
        assert torch.equal(tensor, live.read(name)), name
    assert json.dumps(folder.config(), sort_keys=True) == json.dumps(live.config(), sort_keys=True)
    assert dict(folder.sidecars()) == dict(live.sidecars())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shards", ["5GB", "60KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_the_model_that_transformers_loads(
    family: str, shards: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny_model(family, dtype=dtype)
    save(model, tmp_path, max_shard_size=shards)
    assert (tmp_path / INDEX).exists() == (shards == "60KB")
    source = FolderSource(tmp_path)
    assert source.unexpected == ()
    assert source.resumable
    assert_equal_sources(source, ModuleSource(loaded(tmp_path, model.config.is_encoder_decoder)))
    config = source.config()
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert config["architectures"] == [type(model).__name__]
    assert not {"_name_or_path", "transformers_version", "auto_map"} & set(config)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bart"])
def test_without_a_generation_config_the_model_config_counts(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    save(model, tmp_path)
    (tmp_path / "generation_config.json").unlink()
    edit(tmp_path / "config.json", top_k=7, num_beams=3)
    live = ModuleSource(loaded(tmp_path, model.config.is_encoder_decoder))
    assert FolderSource(tmp_path).sidecars() == live.sidecars()


class TestNames:
    """Names in files that are not those of the module tree."""

    @pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
    def test_the_base_models_prefix_may_be_missing(self, family: str, tmp_path: Path) -> None:
        model = tiny_model(family)
        save(model, tmp_path)
        prefix = f"{model.base_model_prefix}."
        rewrite(tmp_path, lambda tensors: {name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
        assert_equal_sources(FolderSource(tmp_path), ModuleSource(loaded(tmp_path)))

    def test_a_base_model_reads_a_file_with_the_prefix(self, tmp_path: Path) -> None:
        model = tiny_model("gpt2")
        save(model, tmp_path)
        edit(tmp_path / "config.json", architectures=["GPT2Model"])
        source = FolderSource(tmp_path)
        assert type(source.skeleton).__name__ == "GPT2Model"
        assert torch.equal(source.read("wte.weight"), model.transformer.wte.weight)

    @pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
    def test_experts_are_stored_one_by_one_and_read_as_one(self, family: str, tmp_path: Path) -> None:
        model = tiny_model(family)
        save(model, tmp_path)
        assert any(".experts.3." in name for name in load_file(tmp_path / WEIGHTS))
        source = FolderSource(tmp_path)
        name = next(name for name in source.tensors if name.endswith("experts.gate_up_proj"))
        assert source.tensors[name].shape == tuple(model.get_parameter(name).shape)
        assert torch.equal(source.read(name), model.get_parameter(name))

    def test_more_than_ten_experts_stay_in_order(self, tmp_path: Path) -> None:
        model = tiny_model("mixtral", num_local_experts=12)
        source = FolderSource(save(model, tmp_path))
        for name, parameter in model.named_parameters():
            assert torch.equal(source.read(name), parameter), name

    def test_a_lacking_expert_is_an_error(self, tmp_path: Path) -> None:
        save(tiny_model("mixtral"), tmp_path)
        rewrite(
            tmp_path,
            lambda tensors: {
                n: t
                for n, t in tensors.items()
                if ".layers.0.mlp.experts.2." not in n and ".layers.0.block_sparse_moe.experts.2." not in n
            },
        )
        with pytest.raises(SourceError, match=r"layers\.0\.mlp\.experts\.gate_up_proj is \[3, "):
            FolderSource(tmp_path)

    def test_unknown_tensors_are_reported_unless_transformers_ignores_them(self, tmp_path: Path) -> None:
        save(tiny_model("llama"), tmp_path)
        extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8), "value_head.weight": torch.ones(1, 64)}
        rewrite(tmp_path, lambda tensors: tensors | extra)
        assert FolderSource(tmp_path).unexpected == ("value_head.weight",)

    def test_two_claims_on_one_place_are_an_error(self, tmp_path: Path) -> None:
        save(tiny_model("gpt2"), tmp_path)
        rewrite(tmp_path, lambda tensors: tensors | {"wte.weight": tensors["transformer.wte.weight"].clone()})
        with pytest.raises(SourceError, match=r"two tensors .* claim transformer\.wte\.weight"):
            FolderSource(tmp_path)

    def test_a_converter_with_several_targets_is_applied(self, tmp_path: Path) -> None:
        from transformers.core_model_loading import Chunk, WeightConverter

        from woqfx.source.conversion import Conversion

        model = tiny_model("llama", num_key_value_heads=4)
        fused = {}
        for name, parameter in model.state_dict().items():
            if "q_proj" in name:
                parts = [model.state_dict()[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
                fused[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
            elif "k_proj" not in name and "v_proj" not in name:
                fused[name] = parameter
        targets = [f"self_attn.{part}.weight" for part in ("q_proj", "k_proj", "v_proj")]
        rule = WeightConverter("self_attn.qkv_proj.weight", targets, operations=[Chunk(dim=0)])
        infos = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in fused.items()}
        conversion = Conversion(build_skeleton(model.config), [rule], infos)
        assert set(conversion.tensors) == set(model.state_dict())
        for name, parameter in model.state_dict().items():
            assert torch.equal(conversion.build(name, fused.__getitem__), parameter), name


class TestTies:
    """Tied tensors, stored once, twice, or under the other name."""

    def test_stored_twice_alike(self, tmp_path: Path) -> None:
        save(tiny_model("qwen2"), tmp_path)
        rewrite(tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
        assert_equal_sources(FolderSource(tmp_path), ModuleSource(loaded(tmp_path)))

    def test_stored_under_the_later_name_only(self, tmp_path: Path) -> None:
        model = save(tiny_model("qwen2"), tmp_path) and tiny_model("qwen2")
        rewrite(tmp_path, lambda tensors: {n.replace("model.embed_tokens", "lm_head"): t for n, t in tensors.items()})
        source = FolderSource(tmp_path)
        assert "lm_head.weight" not in source.tensors
        assert torch.equal(source.read("model.embed_tokens.weight"), model.lm_head.weight)

    def test_stored_twice_unlike_is_an_error_with_a_remedy(self, tmp_path: Path) -> None:
        save(tiny_model("qwen2"), tmp_path)
        rewrite(tmp_path, lambda tensors: tensors | {"lm_head.weight": torch.ones(128, 64)})
        with pytest.raises(SourceError, match="tie_word_embeddings"):
            FolderSource(tmp_path).read("model.embed_tokens.weight")

    def test_not_tied_by_the_config(self, tmp_path: Path) -> None:
        model = tiny_model("qwen2", tie_word_embeddings=False)
        source = FolderSource(save(model, tmp_path))
        assert source.aliases == {}
        assert torch.equal(source.read("lm_head.weight"), model.lm_head.weight)


class TestIncomplete:
    """What is missing or does not fit is found at construction."""

    def test_all_missing_tensors_are_named(self, tmp_path: Path) -> None:
        save(tiny_model("llama"), tmp_path)
        rewrite(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if "norm" not in n or "layers" in n})
        rewrite(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if "layers.1.mlp.up" not in n})
        with pytest.raises(SourceError, match=r"lacks 2 .*layers\.1\.mlp\.up_proj\.weight, model\.norm\.weight"):
            FolderSource(tmp_path)

    def test_a_buffer_that_transformers_fills_in_may_be_missing(self, tmp_path: Path) -> None:
        save(tiny_model("bart"), tmp_path)
        rewrite(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n != "final_logits_bias"})
        assert_equal_sources(FolderSource(tmp_path), ModuleSource(loaded(tmp_path, encoder_decoder=True)))

    def test_another_shape_is_an_error(self, tmp_path: Path) -> None:
        save(tiny_model("llama"), tmp_path)
        edit(tmp_path / "config.json", intermediate_size=104)
        with pytest.raises(SourceError, match=r"mlp\.gate_proj\.weight is \[96, 64\], not \[104, 64\]"):
            FolderSource(tmp_path)

    def test_a_billion_layers_are_refused_before_they_are_built(self, tmp_path: Path) -> None:
        save(tiny_model("llama"), tmp_path)
        edit(tmp_path / "config.json", num_hidden_layers=10**9)
        with pytest.raises(SourceError, match="asks for 1000000000 layers"):
            FolderSource(tmp_path)

    def test_a_missing_shard_is_named(self, tmp_path: Path) -> None:
        save(tiny_model("llama"), tmp_path, max_shard_size="60KB")
        sorted(tmp_path.glob("model-*"))[1].unlink()
        with pytest.raises(SourceError, match=r"lacks 1 of the \d+ files .* model-00002"):
            FolderSource(tmp_path)

    def test_a_file_that_shrinks_is_an_error_when_it_is_read(self, tmp_path: Path) -> None:
        save(tiny_model("llama"), tmp_path)
        source = FolderSource(tmp_path)
        os.truncate(tmp_path / WEIGHTS, (tmp_path / WEIGHTS).stat().st_size - 9)
        with pytest.raises(SourceError, match=WEIGHTS):
            for name in source.tensors:
                source.read(name)


def test_code_in_the_folder_is_not_run(tmp_path: Path) -> None:
    save(tiny_model("llama"), tmp_path)
    edit(tmp_path / "config.json", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    source = FolderSource(tmp_path)
    assert type(source.skeleton).__name__ == "LlamaForCausalLM"
    assert "auto_map" not in source.config()
    assert not [name for name in source.sidecars() if name.endswith(".py")]


def test_tokenizer_files_are_carried_over_as_they_are(tmp_path: Path) -> None:
    save(tiny_model("llama"), tmp_path)
    files = {"tokenizer.json": b"{ }", "chat_template.jinja": b"{{ x }}\r\n", "LICENSE": b"\xff"}
    for name, data in (files | {"training_args.bin": b"no", "README.md": b"no"}).items():
        (tmp_path / name).write_bytes(data)
    expected = {*files, "generation_config.json"}
    assert set(FolderSource(tmp_path).sidecars()) == expected
    live = ModuleSource(loaded(tmp_path))
    assert dict(live.sidecars()) == dict(FolderSource(tmp_path).sidecars())
    assert files.items() <= live.sidecars().items()


@pytest.mark.parametrize("change", ["touch", "tensor", "config"])
def test_the_fingerprint_follows_every_change(change: str, tmp_path: Path) -> None:
    save(tiny_model("llama"), tmp_path)
    before = FolderSource(tmp_path).fingerprint()
    assert FolderSource(tmp_path).fingerprint() == before
    if change == "touch":
        os.utime(tmp_path / WEIGHTS, ns=(1, 1))
    elif change == "tensor":
        times = (tmp_path / WEIGHTS).stat()
        rewrite(tmp_path, lambda tensors: tensors | {"more": torch.ones(1)})
        os.utime(tmp_path / WEIGHTS, ns=(times.st_atime_ns, times.st_mtime_ns))
    else:
        edit(tmp_path / "config.json", rms_norm_eps=1e-3)
    assert FolderSource(tmp_path).fingerprint() != before


def hollow(folder: Path, config: PreTrainedConfig, shards: int) -> None:
    """A model's headers in sparse files: full size, no data."""
    config.save_pretrained(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in named_state(build_skeleton(config))}
    names, weight_map = list(shapes), {}
    for shard in range(shards):
        part = names[shard::shards]
        planned = layout({name: (torch.bfloat16, shapes[name]) for name in part})
        path = folder / f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        path.write_bytes(planned.header)
        os.truncate(path, planned.size)
        weight_map |= dict.fromkeys(part, path.name)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_a_70b_model_opens_as_fast_as_its_tree_is_built(tmp_path: Path) -> None:
    config = tiny_config(
        "llama",
        num_hidden_layers=80,
        hidden_size=8192,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        dtype="bfloat16",
    )
    hollow(tmp_path, config, shards=30)
    tree = min(processor_seconds(lambda: build_skeleton(config)) for _ in range(3))
    assert min(processor_seconds(lambda: FolderSource(tmp_path).fingerprint()) for _ in range(3)) < 15 * tree
    source = FolderSource(tmp_path)
    assert sum(torch.Size(info.shape).numel() for info in source.tensors.values()) == 70_553_706_496
