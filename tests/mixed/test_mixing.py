"""`target_bits`: from a budget to rules, on tiny models whose sensitive layers are known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

import woqfx
from woqfx.calibration import CalibrationRequest, prepare_calibration
from woqfx.errors import PlanError, SchemeError
from woqfx.mixed.mixing import mix, plan_within
from woqfx.mixed.sensitivity import measure
from woqfx.planning import make_plan
from woqfx.request import Request
from woqfx.scheme import Rule
from woqfx.source import open_source

TOKENS = torch.randint(3, 128, (40, 32), generator=torch.Generator().manual_seed(0))
DATA = CalibrationRequest(TOKENS, samples=40, seq_len=32)


def request(**changes):
    return replace(Request(woqfx.Scheme("nf4"), calibration=DATA), **changes)


def nearest_harm(model, layer, scheme):
    """The mean over tokens of |y' - y|^2 / |y|^2 of a llama's block when one of its layers is rounded: by hooks."""
    block = next(b for n, b in model.model.named_modules() if layer.startswith(f"model.{n}.") and n.count(".") == 1)
    seen = []
    hook = block.register_forward_hook(
        lambda _, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    linear = model.get_submodule(layer)
    before = linear.weight.data
    with torch.no_grad():
        model(TOKENS[:64], use_cache=False)
        q = woqfx.quantize_nearest(before, woqfx.registry().dtype(scheme.dtype), scheme, name="w")
        linear.weight.data = q.dequantize()
        model(TOKENS[:64], use_cache=False)
    linear.weight.data = before
    hook.remove()
    off = (seen[1] - seen[0]).square().sum(-1) / seen[0].square().sum(-1)
    return float(off.double().mean())


class TestMeasure:
    def measured(self, model, schemes, **changes):
        source = open_source(model)
        plan = make_plan(source, request(algorithm="needy", **changes))
        names = [planned.layer.name for planned in plan.quantized.values()]
        return measure(source, plan, prepare_calibration(DATA, source), dict.fromkeys(names, schemes))

    @pytest.fixture(autouse=True)
    def needy(self):
        """An algorithm that looks at data, so that the plan goes through blocks."""

        class Needy(woqfx.Algorithm):
            name = "needy"
            needs_data = True

            def round(self, layer):
                return super().round(layer)

        class Plugin:
            @woqfx.hookimpl
            def woqfx_algorithms(self):
                return [Needy]

        woqfx.register(Plugin(), "needy")
        yield
        woqfx.unregister("needy")

    def test_the_harm_of_a_layer_is_that_to_its_blocks_output(self):
        model = tiny_model("llama")
        found = self.measured(model, [woqfx.Scheme("nf4")])
        assert len(found) == 14
        for layer in (
            "model.layers.0.mlp.down_proj",
            "model.layers.1.self_attn.v_proj",
            "model.layers.1.mlp.gate_proj",
        ):
            assert found[layer][0] == pytest.approx(nearest_harm(model, layer, woqfx.Scheme("nf4")), rel=1e-3)

    def test_other_schemes_are_about_what_they_would_be_measured_as(self):
        model = tiny_model("llama")
        schemes = [woqfx.Scheme("nf4", group_size=64), woqfx.Scheme("int8"), woqfx.Scheme("nf4", group_size=16)]
        found = self.measured(model, schemes)
        for layer in ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.o_proj"):
            for scheme, cost in zip(schemes, found[layer], strict=True):
                assert cost == pytest.approx(nearest_harm(model, layer, scheme), rel=0.25)

    def test_nothing_is_changed(self):
        model = tiny_model("llama")
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.measured(model, [woqfx.Scheme("nf4")])
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    @pytest.mark.parametrize("family", ["mixtral", "t5", "gpt2", "falcon"])
    def test_architectures(self, family):
        found = self.measured(tiny_model(family), [woqfx.Scheme("int8"), woqfx.Scheme("nf4")])
        assert found and all(0 <= fine < coarse for fine, coarse in found.values())


class TestMix:
    @pytest.mark.parametrize("bits", [4.25, 4.75, 5.5, 7])
    def test_the_target_is_met_and_not_passed(self, bits):
        plan = plan_within(open_source(tiny_model("llama")), request(), bits)
        assert bits - 0.15 < plan.bits_per_weight <= bits and not plan.problems

    def test_without_a_target_nothing_is_measured(self, monkeypatch):
        monkeypatch.setattr("woqfx.mixed.mixing.measure", None)
        assert plan_within(open_source(tiny_model("llama")), request()).request.rules == ()

    def test_the_layers_that_matter_get_the_bits(self):
        model = tiny_model("llama")
        with torch.no_grad():  # one layer with values beyond what four bits hold, in a place that matters
            weight = model.model.layers[1].mlp.down_proj.weight
            weight.mul_(20)[:, ::32] *= 10
        rules = {str(rule) for rule in mix(open_source(model), request(), 5.2).rules}
        assert any(rule.startswith("model.layers.1.mlp.down_proj=dtype:int8") for rule in rules)

    def test_it_is_better_than_one_scheme_of_the_same_size(self):
        model = tiny_model("llama", num_hidden_layers=4)
        with torch.no_grad():
            for number, layer in enumerate(model.model.layers):  # of different importance
                layer.mlp.down_proj.weight *= 4.0**number / 4
        plain = request(scheme=woqfx.Scheme("nf4", group_size=16))
        source = open_source(model)
        size = make_plan(source, plain).bits_per_weight
        logits = {}
        with torch.no_grad():
            logits["float"] = model(TOKENS, use_cache=False).logits
            for name, asked in (("uniform", plain), ("mixed", mix(source, plain, size))):
                assert make_plan(source, asked).bits_per_weight <= size
                copied = tiny_model("llama", num_hidden_layers=4)
                copied.load_state_dict(model.state_dict())
                run = woqfx.quantize(copied, dtype="nf4", group_size=16, rules=asked.rules, progress="none")
                logits[name] = run(TOKENS, use_cache=False).logits
        errors = {name: (logits[name] - logits["float"]).square().mean() for name in ("uniform", "mixed")}
        assert errors["mixed"] < 0.8 * errors["uniform"]

    def test_layers_under_a_rule_keep_to_it(self):
        asked = request(rules=(Rule("*.0.*", {"dtype": "fp4_e2m1"}), Rule("*.v_proj", None)))
        plan = plan_within(open_source(tiny_model("llama")), asked, 4.6)
        for planned in plan.layers:
            if planned.layer.name.endswith("v_proj"):
                assert planned.scheme is None
            elif ".0." in planned.layer.name:
                assert planned.scheme == woqfx.Scheme("fp4_e2m1")
        assert 4.4 < plan.bits_per_weight <= 4.6

    def test_the_same_rules_every_time_and_from_a_folder(self, tmp_path):
        model = tiny_model("llama")
        model.save_pretrained(tmp_path)
        sources = [open_source(model), open_source(model), open_source(tmp_path)]
        found = [
            mix(source, request(), 4.75, workers=workers).rules
            for source, workers in zip(sources, (1, 2, 1), strict=True)
        ]
        assert found[0] and found[0] == found[1] == found[2]

    def test_a_target_that_cannot_be_met(self):
        with pytest.raises(
            PlanError, match=r"target_bits 3 cannot be reached: the smallest choice .* takes 4.2\d bits"
        ):
            mix(open_source(tiny_model("llama")), request(), 3)

    @pytest.mark.parametrize("bits", [np.float64(4.75), np.float32(4.75)], ids=["float64", "float32"])
    def test_a_target_of_numpy_is_a_number(self, bits, monkeypatch):
        monkeypatch.setattr("woqfx.mixed.mixing.FINE", "absent")
        plan = plan_within(open_source(tiny_model("llama")), request(), bits)
        assert 4.5 < plan.bits_per_weight <= 4.75

    @pytest.mark.parametrize("bits", [0, -1, 64, float("nan"), True])
    def test_a_target_that_cannot_be_meant(self, bits):
        with pytest.raises(SchemeError, match="give the bits that a weight shall take in the mean"):
            mix(open_source(tiny_model("llama")), request(), bits)

    def test_a_request_that_cannot_be_carried_out_is_refused_before_anything_is_measured(self, monkeypatch):
        monkeypatch.setattr("woqfx.mixed.mixing.measure", None)
        with pytest.raises(PlanError, match="nothere"):
            mix(open_source(tiny_model("llama")), request(rules=(Rule("nothere", None),)), 4.5)

    def test_without_the_fine_dtype_groups_alone_are_chosen(self, monkeypatch):
        monkeypatch.setattr("woqfx.mixed.mixing.FINE", "absent")
        plan = plan_within(open_source(tiny_model("llama")), request(), 4.75)
        assert {planned.scheme.dtype for planned in plan.quantized.values()} == {"nf4"}
        assert 4.5 < plan.bits_per_weight <= 4.75


def test_through_the_front_door(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    asked = {"dtype": "nf4", "calibration": TOKENS, "samples": 40, "seq_len": 32, "target_bits": 5.0}
    plan = woqfx.plan(tmp_path / "model", **asked)
    woqfx.quantize(tmp_path / "model", out=tmp_path / "out", progress="none", **asked)
    written = json.loads((tmp_path / "out" / "woqfx.json").read_text())
    assert written["request"]["rules"] == [str(rule) for rule in plan.request.rules] != []
    assert 4.8 < plan.bits_per_weight <= 5
