from __future__ import annotations

import inspect

import pytest
import torch
from folders_of_models import logits, saved
from tiny_models import tiny_model
from torch import nn

import woqfx
from woqfx.errors import PlanError, SchemeError, SourceError
from woqfx.layers import packed_weights


def test_a_live_module_comes_back_itself():
    model = tiny_model("llama")
    assert woqfx.quantize(model) is model
    assert len(packed_weights(model)) == 14


def test_a_folder_without_out_is_quantized_in_memory(tmp_path):
    source = saved("llama", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    model = woqfx.quantize(source, dtype="nf4")
    assert sorted(tmp_path.rglob("*")) == before
    assert torch.equal(logits(model), logits(woqfx.quantize(tiny_model("llama"), dtype="nf4")))


def test_a_folder_with_out_gives_the_loaded_checkpoint(tmp_path):
    model = woqfx.quantize(saved("llama", tmp_path), out=tmp_path / "out")
    assert torch.equal(logits(model), logits(woqfx.load(tmp_path / "out")))


def test_every_problem_at_once_and_nothing_done(tmp_path):
    model = tiny_model("llama")
    with pytest.raises(PlanError) as caught:
        woqfx.quantize(model, dtype="nf4", symmetric=False, rules=["nowhere=keep"], out=tmp_path / "out")
    assert len(caught.value.problems) == 2
    assert not (tmp_path / "out").exists()
    assert not packed_weights(model)


def test_quantizing_twice_is_refused():
    model = woqfx.quantize(tiny_model("llama"))
    with pytest.raises(woqfx.WoqfxError):
        woqfx.quantize(model)


def test_plan_takes_what_quantize_takes_and_says_so():
    plan = inspect.signature(woqfx.plan).parameters
    quantize = inspect.signature(woqfx.quantize).parameters
    assert list(quantize) == [*plan, "out", "overwrite", "backend_options", "progress"]
    assert all(quantize[name] == parameter for name, parameter in plan.items())
    assert not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in quantize.values())


def test_the_defaults_are_those_of_what_is_made_of_them():
    arguments = inspect.signature(woqfx.plan).parameters
    assert arguments["dtype"].default == "int4_fullrange"
    for name in ("group_size", "symmetric", "scale_dtype", "compute_dtype"):
        assert arguments[name].default == getattr(woqfx.Scheme("int4_clip"), name)
    data = woqfx.CalibrationRequest()
    shared = ("calibration", "samples", "seq_len", "calibration_seed")
    assert tuple(arguments[name].default for name in shared) == (data.data, data.samples, data.seq_len, data.seed)


@pytest.mark.parametrize("function", [woqfx.plan, woqfx.quantize], ids=["plan", "quantize"])
def test_an_argument_that_there_is_not_names_the_nearest(function):
    with pytest.raises(
        TypeError, match=rf"woqfx\.{function.__name__} has no argument 'grupsize'; did you mean 'group_size'"
    ):
        function(nn.Linear(4, 4), grupsize=8)


def test_a_pack_that_fails_leaves_the_module_as_it_was():
    packs = []

    class Failing(woqfx.Backend):
        name = "failing"

        def supports(self, scheme, dtype, shape, cpu):
            return woqfx.Support(ok=True, kernel="none")

        def pack(self, q, float_dtype):
            packs.append(q)
            if len(packs) == 3:
                raise RuntimeError("the third")
            return woqfx.registry().backend("torch_cpu").pack(q, float_dtype)

    class Plugin:
        @woqfx.hookimpl
        def woqfx_backends(self):
            return [Failing()]

    model = tiny_model("llama")
    woqfx.register(Plugin(), "failing plugin")
    try:
        with pytest.raises(RuntimeError, match="the third"):
            woqfx.quantize(model, backend="failing")
    finally:
        woqfx.unregister("failing plugin")
    assert not packed_weights(model)
    assert torch.equal(logits(model), logits(tiny_model("llama")))


def test_progress_as_json_lines(capsys):
    import json

    woqfx.quantize(nn.Sequential(nn.Linear(8, 8)), progress="json")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines] == ["RunStarted", "TensorDone", "TensorDone", "RunFinished"]


@pytest.mark.parametrize("part", [False, True], ids=["all", "part"])
def test_a_quantized_model_is_not_quantized_again(part):
    model = woqfx.quantize(tiny_model("llama"), rules=["*.down_proj=keep"] if part else ())
    with pytest.raises(SourceError, match="LlamaForCausalLM is quantized already, by woqfx; give the original"):
        woqfx.quantize(model, dtype="int8")


@pytest.mark.parametrize(
    "rules",
    ["*.down_proj=int8", ["*.down_proj=int8"], {"*.down_proj": "int8"}, [("*.down_proj", {"dtype": "int8"})]],
    ids=["string", "list", "mapping", "pair"],
)
def test_ways_to_give_a_rule(rules):
    plan = woqfx.plan(tiny_model("llama"), rules=rules)
    assert [p.scheme.dtype for p in plan.layers if p.layer.name.endswith("down_proj")] == ["int8", "int8"]


@pytest.mark.parametrize("rule", [("a", "b", "c"), (1, "int8"), 7], ids=repr)
def test_what_is_no_rule(rule):
    with pytest.raises(SchemeError, match="not a rule"):
        woqfx.plan(tiny_model("llama"), rules=[rule])


def test_an_unknown_way_to_show_progress():
    with pytest.raises(SchemeError, match="progress 'x' is not one of auto, bar, lines, json, none"):
        woqfx.quantize(tiny_model("llama"), progress="x")


def test_a_loaded_model_knows_its_name_as_from_pretrained_has_it(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    woqfx.quantize(tmp_path / "model", out=tmp_path / "out", progress="none")
    loaded = woqfx.load(tmp_path / "out")
    assert loaded.name_or_path == loaded.config.name_or_path == str(tmp_path / "out")
    woqfx.save(loaded, tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "out" / "config.json").read_bytes()


def test_the_generation_config_is_loaded(tmp_path):
    source = saved("llama", tmp_path)
    (source / "generation_config.json").write_text('{"max_new_tokens": 3, "eos_token_id": [5, 6]}')
    for model in (woqfx.quantize(source), woqfx.quantize(source, out=tmp_path / "out")):
        assert model.generation_config.max_new_tokens == 3
        assert model.generation_config.eos_token_id == [5, 6]


@pytest.mark.parametrize("compute", ["fp32", "bf16", "int8"])
def test_a_layers_output_may_be_written_to(compute):
    model = woqfx.quantize(nn.Sequential(nn.Linear(64, 64)), compute_dtype=compute)
    x = torch.randn(2, 64, requires_grad=True)
    y = model(x)
    y += 1
    y.sum().backward()
    assert x.grad is not None and bool(x.grad.any())
