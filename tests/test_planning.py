from __future__ import annotations

import pytest
import torch
from folders_of_models import saved, write
from tiny_models import processor_seconds, tiny_model
from torch import nn

import woqfx
from woqfx.disk.checkpoint import Checkpoint


def schemes(plan: woqfx.Plan) -> dict[str, str | None]:
    return {layer.layer.name: layer.scheme and layer.scheme.dtype for layer in plan.layers}


def test_linear_layers_are_quantized_and_embeddings_and_heads_kept():
    found = schemes(woqfx.plan(tiny_model("llama"), dtype="nf4"))
    assert {name for name, dtype in found.items() if dtype is None} == {"model.embed_tokens", "lm_head"}
    assert {dtype for dtype in found.values() if dtype} == {"nf4"}


def test_the_last_rule_that_matches_wins_and_is_named():
    rules = ["*.mlp.*=int8", "*.layers.0.*=keep", "*.layers.0.mlp.up_proj=nf4"]
    plan = woqfx.plan(tiny_model("llama"), rules=rules)
    found = {layer.layer.name: layer for layer in plan.layers}
    assert found["model.layers.1.mlp.up_proj"].scheme.dtype == "int8"
    assert found["model.layers.0.mlp.gate_proj"].scheme is None
    assert found["model.layers.0.mlp.up_proj"].scheme.dtype == "nf4"
    assert "layers.0.mlp.up_proj" in found["model.layers.0.mlp.up_proj"].why
    assert found["model.layers.1.self_attn.q_proj"].why == "default"


def test_a_rule_reaches_a_tied_weight_by_any_of_its_names():
    for name in ("lm_head", "model.embed_tokens"):
        assert schemes(woqfx.plan(tiny_model("qwen2"), rules=[f"{name}=int8"]))["model.embed_tokens"] == "int8"


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        ({"dtype": "nf5"}, "nf5.*nf4"),
        ({"algorithm": "rtm"}, "rtm.*rtn"),
        ({"backend": "torch_gpu"}, "torch_gpu.*torch_cpu"),
        ({"compute_dtype": "fp23"}, "fp23"),
        ({"dtype": "nf4", "symmetric": False}, "nf4 has no asymmetric form"),
        ({"compute_dtype": "bf16", "outlier_threshold": 6.0}, "bf16 keeps no outliers apart.*compute dtype int8"),
        ({"rules": ["modle.*=keep"]}, "matches no layer; layers are named like model"),
        ({"rules": ["*.up_proj=group_size:0"]}, r"rule '\*\.up_proj=group_size:0': group_size 0 makes no groups"),
        ({"rules": ["*.up_proj=nf5"]}, r"rule '\*\.up_proj=dtype:nf5': there is no dtype 'nf5'"),
        ({"rules": ["*.up_proj=compute_dtype:int9"]}, r"rule '.*int9': there is no compute dtype 'int9'"),
        ({"rules": ["*.up_proj=nf4,symmetric:false"]}, "up_proj and 1 more: rule '.*': nf4 has no asymmetric form"),
        ({"rules": ["*.up_proj=outlier_threshold:6"]}, "up_proj and 1 more: rule '.*': compute dtype fp32 keeps no"),
        ({"options": {"evil": 1}}, "has no option 'evil'"),
        ({"options": {"mse_rang": True}}, r"its options: mse_range\. Did you mean 'mse_range'\?"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_problem_says_what_would_work(request_, match):
    plan = woqfx.plan(tiny_model("llama"), **request_)
    assert len(plan.problems) == 1
    with pytest.raises(woqfx.errors.PlanError, match=match):
        plan.check()


@pytest.mark.parametrize(
    ("algorithm", "asked", "told"),
    [
        ("rtn", {}, ()),
        ("gptq", {"calibration": ["a"], "seq_len": 8}, ()),
        ("rtn", {"samples": 4}, ("algorithm rtn looks at no data: samples 4 is not used",)),
        (
            "rtn",
            {"calibration_seed": 1, "propagate": "float"},
            ("algorithm rtn looks at no data: seed 1, propagate float are not used",),
        ),
        ("rtn", {"samples": 128}, ()),
        ("rtn", {"calibration": "my.jsonl"}, ("algorithm rtn looks at no data: my.jsonl is not used",)),
        ("rtn", {"calibration": ["a"]}, ("algorithm rtn looks at no data: a list of the caller's is not used",)),
    ],
    ids=["nothing asked", "used", "how much", "two choices", "the default", "a file", "texts"],
)
def test_data_that_no_algorithm_looks_at_are_named(algorithm, asked, told):
    assert woqfx.plan(tiny_model("llama"), algorithm=algorithm, **asked).warnings == told


@pytest.mark.parametrize(("algorithm", "samples"), [("RTN", None), ("AWQ", 100)])
def test_the_default_of_a_configuration_is_nobodys_choice(algorithm, samples):
    plan = woqfx.plan(tiny_model("llama"), config=woqfx.WeightOnlyQuantConfig(algorithm=algorithm))
    asked = plan.request.calibration
    assert (plan.warnings, asked and asked.samples) == ((), samples)


def test_a_run_tells_the_warnings_of_its_plan():
    with pytest.warns(UserWarning, match="rtn looks at no data") as told:
        woqfx.quantize(tiny_model("llama"), calibration=["a"])
    assert told[0].filename == __file__


def test_a_model_with_nothing_to_quantize_is_a_problem():
    assert "nothing would be quantized" in woqfx.plan(nn.Sequential(nn.LayerNorm(4))).problems[0]


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
@pytest.mark.parametrize("double_quant", [False, True])
def test_sizes_are_those_of_the_checkpoint(tmp_path, dtype, double_quant):
    source = saved("llama", tmp_path)
    plan = woqfx.plan(source, dtype=dtype, double_quant=double_quant, group_size=100)
    checkpoint = Checkpoint(write(source, tmp_path / "out", dtype=dtype, double_quant=double_quant, group_size=100))
    weights = {layer.layer.weight: layer.nbytes for layer in plan.layers if layer.scheme}
    assert weights == {name: checkpoint.read_weight(name).nbytes for name in checkpoint.weights}
    kept = sum(checkpoint.read_kept(name).nbytes for name in checkpoint.kept)
    assert plan.nbytes == sum(weights.values()) + kept
    total = sum(parameter.numel() for name, parameter in tiny_model("llama").named_parameters() if "proj" in name)
    assert plan.bits_per_weight == pytest.approx(8 * sum(weights.values()) / total)


def test_a_seventy_billion_model_is_planned_from_headers_in_seconds():
    from transformers import LlamaConfig

    from woqfx.planning import make_plan
    from woqfx.skeleton import build_skeleton
    from woqfx.source import ModuleSource

    config = LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8
    )
    config.dtype = torch.bfloat16

    class Headers(ModuleSource):
        """As a folder's headers: shapes and types, and nothing that could be read."""

        def __init__(self) -> None:
            self.skeleton = build_skeleton(config)
            self.label, self._aliases = "headers", {}
            self._state = dict(self.skeleton.named_parameters())

        def read(self, name):
            raise AssertionError("a plan reads no tensor")

    from folders_of_models import request

    source = Headers()
    plan = make_plan(source, request())
    # About as long as building the module tree, which is some 0.1 s.
    tree = min(processor_seconds(lambda: build_skeleton(config)) for _ in range(3))
    assert min(processor_seconds(lambda: make_plan(source, request())) for _ in range(3)) < 15 * tree
    assert plan.problems == ()
    assert sum(layer.weights for layer in plan.layers) > 68e9
    assert 4.4 < plan.bits_per_weight < 4.6
