from __future__ import annotations

import json

import pytest
import shrinking
import torch
from folders_of_models import digests, logits, request
from tiny_models import FAMILIES, tiny_model

import woqfx
from woqfx import events
from woqfx.blocks.report import TIMINGS
from woqfx.disk.checkpoint import Checkpoint
from woqfx.disk.manifest import REPORT
from woqfx.engine import write_checkpoint
from woqfx.errors import PlanError, PluginError, SourceError
from woqfx.planning import make_plan
from woqfx.source import FolderSource, ModuleSource

QUICK = {"llama", "t5"}


@pytest.fixture(autouse=True)
def plugin():
    with shrinking.registered():
        yield


def quantize(model, **changes):
    asked = {"algorithm": "shrinking", "dtype": "int4_fullrange", "calibration": shrinking.tokens(), "samples": 4}
    return woqfx.quantize(model, **{**asked, "seq_len": 40, "progress": "none", **changes})


def files(folder):
    return {name: digest for name, digest in digests(folder).items() if name != TIMINGS}


def report(folder):
    return json.loads((folder / REPORT).read_text())


@pytest.fixture
def threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_the_same_bytes_from_a_folder_live_and_on_two_threads(family, tmp_path, threads):
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "model")
    threads(2)
    loaded = quantize(tmp_path / "model", out=tmp_path / "two")
    threads(1)
    live = quantize(model, out=tmp_path / "live")
    assert live is model
    assert files(tmp_path / "two") == files(tmp_path / "live")
    assert torch.equal(logits(loaded), logits(live))
    blocks = report(tmp_path / "two")["blocks"]
    assert all(list(block["error"]) == ["nearest", "transform", "round", "refine"] for block in blocks)
    assert all(fold["used"] for block in blocks for fold in block["feeds"])
    assert any(block["feeds"] for block in blocks)
    quantized = set(Checkpoint(tmp_path / "two").weights)
    assert {f"{block['name']}.{layer}" for block in blocks for layer in block["layers"]} == quantized


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
def test_folds_of_short_floats_are_exact(family, kind, tmp_path):
    """A grid of 8 bits and weights hardly differ: what is left are the norms' own types."""
    model = tiny_model(family, dtype=kind)
    before = tiny_model(family, dtype=kind).float()
    made = quantize(
        model, dtype="int8", group_size=16, scale_dtype="fp32", out=tmp_path / "out", options={"power": 0.5}
    )
    assert all(fold["used"] for block in report(tmp_path / "out")["blocks"] for fold in block["feeds"])
    kept = {name: tensor for name, tensor in made.named_parameters() if "norm" in name and tensor.ndim == 1}
    assert all(tensor.dtype == kind for tensor in kept.values())
    assert any(not torch.equal(tensor.float(), before.get_parameter(name)) for name, tensor in kept.items())
    expected = logits(before)
    made = made.float()
    assert float((logits(made) - expected).norm() / expected.norm()) < 0.02


def test_data_make_it_better_than_nearest(tmp_path):
    for name, algorithm in (("data", "shrinking"), ("nearest", "rtn")):
        quantize(tiny_model("llama"), algorithm=algorithm, out=tmp_path / name)
    for block in report(tmp_path / "data")["blocks"]:
        for facts in block["layers"].values():
            assert facts["output_error"]["round"] < facts["output_error"]["transform"] * 1.0001
            assert facts["tokens"] == 160
            assert facts["notes"]["ratio"] in shrinking.RATIOS
    assert not (tmp_path / "nearest" / REPORT).exists()
    assert not (tmp_path / "nearest" / TIMINGS).exists()


def test_the_next_block_sees_what_was_asked_for(tmp_path):
    folder = tmp_path / "model"
    tiny_model("llama", num_hidden_layers=3).save_pretrained(folder)
    for propagate in ("quantized", "float"):
        quantize(folder, propagate=propagate, out=tmp_path / propagate, dtype="int4_clip")
    one, other = (report(tmp_path / name) for name in ("quantized", "float"))
    assert one["blocks"][0] == other["blocks"][0]
    assert one["blocks"][1] != other["blocks"][1]
    assert (one["request"]["propagate"], other["request"]["propagate"]) == ("quantized", "float")


def test_the_manifest_tells_of_the_data(tmp_path):
    quantize(tiny_model("llama"), out=tmp_path / "out")
    found = Checkpoint(tmp_path / "out").request["calibration"]
    assert found["description"].endswith("4 sequences, 160 tokens")
    assert len(found["sha256"]) == 64
    assert (found["samples"], found["seq_len"]) == (4, 40)
    others = shrinking.tokens()
    others[0][0] += 1
    quantize(tiny_model("llama"), calibration=others, out=tmp_path / "other")
    assert Checkpoint(tmp_path / "other").request["calibration"]["sha256"] != found["sha256"]


def test_what_is_saved_is_what_was_written(tmp_path):
    live = quantize(tiny_model("llama"), out=tmp_path / "out")
    woqfx.save(live, tmp_path / "live")
    woqfx.save(woqfx.load(tmp_path / "out"), tmp_path / "loaded")
    woqfx.save(quantize(tiny_model("llama")), tmp_path / "never written")
    for name in ("live", "loaded", "never written"):
        assert report(tmp_path / name) == report(tmp_path / "out")
        one, other = Checkpoint(tmp_path / name), Checkpoint(tmp_path / "out")
        assert all(torch.equal(one.read_kept(kept), other.read_kept(kept)) for kept in one.kept)
        assert all(torch.equal(one.read_weight(w).codes, other.read_weight(w).codes) for w in one.weights)


def test_experts_that_saw_too_little_are_rounded_to_nearest(tmp_path):
    model = tiny_model("qwen3_moe", num_experts=16)
    quantize(model, calibration=shrinking.tokens(1, 40), samples=1, out=tmp_path / "out")
    seen = [
        expert
        for block in report(tmp_path / "out")["blocks"]
        for layer in block["layers"].values()
        for expert in layer.get("experts", [])
    ]
    assert len(seen) == 2 * 2 * 16
    few = [expert for expert in seen if expert["tokens"] < 32]
    assert few
    assert all("rounded to nearest" in expert["fallback"] for expert in few)
    assert all("fallback" not in expert and expert["ratio"] for expert in seen if expert["tokens"] >= 32)


def test_a_head_is_rounded_without_data(tmp_path):
    out = tmp_path / "out"
    quantize(tiny_model("llama"), rules=["lm_head=int8", "*.layers.0.mlp.*=keep"], out=out)
    weights = Checkpoint(out).weights
    assert weights["lm_head.weight"].scheme.dtype == "int8"
    assert not [name for name in weights if "layers.0.mlp" in name]
    nearest = tmp_path / "nearest"
    quantize(tiny_model("llama"), algorithm="rtn", rules=["lm_head=int8"], out=nearest)
    one, other = (Checkpoint(folder).read_weight("lm_head.weight") for folder in (out, nearest))
    assert torch.equal(one.codes, other.codes)


def test_double_quantization_of_experts(tmp_path):
    made = quantize(tiny_model("mixtral"), double_quant=True, out=tmp_path / "out")
    assert torch.isfinite(logits(made)).all()


def test_events_tell_of_each_block(tmp_path):
    seen = []

    class Listener:
        @woqfx.hookimpl
        def woqfx_event(self, event):
            seen.append(event)

    woqfx.register(Listener(), "listener")
    try:
        quantize(tiny_model("llama"), out=tmp_path / "out")
    finally:
        woqfx.unregister("listener")
    started = [event for event in seen if isinstance(event, events.BlockStarted)]
    done = [event for event in seen if isinstance(event, events.BlockDone)]
    assert [(event.name, event.number, event.blocks) for event in started] == [
        ("model.layers.0", 1, 2),
        ("model.layers.1", 2, 2),
    ]
    told = report(tmp_path / "out")["blocks"]
    assert [event.error for event in done] == [block["error"]["refine"] for block in told]
    times = json.loads((tmp_path / "out" / TIMINGS).read_text())["blocks"]
    assert [(t["name"], t["seconds"], t["memory"]) for t in times] == [(e.name, e.seconds, e.memory) for e in done]


def test_a_run_restores_the_number_of_threads(threads):
    threads(2)
    quantize(tiny_model("llama"))
    assert torch.get_num_threads() == 2


def test_activations_beyond_the_budget_are_mapped(monkeypatch, tmp_path):
    quantize(tiny_model("llama"), out=tmp_path / "memory")
    monkeypatch.setattr("woqfx.blocks.activations.Store.__init__.__defaults__", (0,))
    quantize(tiny_model("llama"), out=tmp_path / "files")
    made = quantize(tiny_model("llama"))
    assert files(tmp_path / "memory") == files(tmp_path / "files")
    assert torch.equal(logits(made), logits(woqfx.load(tmp_path / "files")))


def test_problems_are_told_before_any_work(tmp_path):
    plain = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 8))
    with pytest.raises(PlanError, match=r"no repeated blocks that woqfx could find.*rtn"):
        quantize(plain)
    with pytest.raises(woqfx.WoqfxError, match=r"no tokenizer"):
        quantize(tiny_model("llama"), calibration="python-docs")
    with pytest.raises(PlanError, match="seq_len 65 is beyond the 64 positions"):
        quantize(tiny_model("llama"), seq_len=65)
    with pytest.raises(woqfx.WoqfxError, match="propagate 'both' is not one of quantized, float"):
        quantize(tiny_model("llama"), propagate="both")


def test_blocks_that_share_weights_are_a_problem():
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(PlanError, match=r"layers\.1\.mlp\.up_proj\.weight: it is tied to .*use rtn"):
        quantize(model)


def test_a_source_that_changes_is_noticed(tmp_path):
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    source = FolderSource(folder)
    plan = make_plan(source, request(algorithm="shrinking", calibration=shrinking.data()))
    from woqfx.api import calibrate

    steps = write_checkpoint(source, plan, tmp_path / "out", calibration=calibrate(source, plan))
    next(steps)
    (folder / "model.safetensors").touch()
    with pytest.raises(SourceError, match="was changed while it was read"):
        list(steps)


class Bad(shrinking.Shrinking):
    name = "bad"


def refuses(what, match, monkeypatch):
    class Plugin:
        @woqfx.hookimpl
        def woqfx_algorithms(self):
            return [Bad]

    for name, method in what.items():
        monkeypatch.setattr(Bad, name, method, raising=False)
    woqfx.register(Plugin(), "bad")
    try:
        with pytest.raises(PluginError, match=match) as caught:
            quantize(tiny_model("llama", num_hidden_layers=1), algorithm="bad")
    finally:
        woqfx.unregister("bad")
    assert "layers.0" in str(caught.value)
    assert "bad" in str(caught.value)


def only_real(round):
    """The plan tries each algorithm on a sample: that one goes well."""
    return lambda self, layer: round(layer) if "layers" in layer.name else shrinking.Shrinking.round(self, layer)


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ({"round": only_real(lambda layer: layer.weight)}, "returned Tensor, not a QTensor"),
        ({"round": only_real(lambda layer: 1 / 0)}, "failed: ZeroDivisionError"),
        ({"transform": lambda self, block: [1]}, "gave int, not a Fold of a feed"),
        ({"transform": lambda self, block: 1 / 0}, "failed: ZeroDivisionError"),
        (
            {"transform": lambda self, block: [woqfx.Fold(block.feeds[0], -torch.ones(block.feeds[0].size))]},
            "gave scales for input_layernorm that are not 64 positive numbers",
        ),
        ({"refine": lambda self, block, quantized: {"nothing": torch.ones(1)}}, "refined 'nothing'"),
        ({"refine": lambda self, block, quantized: {"mlp.up_proj.weight": torch.ones(96, 64)}}, "not a QTensor"),
        ({"refine": lambda self, block, quantized: {"input_layernorm.weight": torch.ones(3)}}, r"which is \[64\]"),
        (
            {"refine": lambda self, block, quantized: {"input_layernorm.weight": torch.full((64,), torch.nan)}},
            "not finite",
        ),
    ],
)
def test_an_algorithm_that_misbehaves_is_named(what, match, monkeypatch):
    refuses(what, match, monkeypatch)


def test_a_fold_that_would_change_the_output_is_not_used(tmp_path, monkeypatch):
    """As if the search had missed a consumer."""
    from dataclasses import replace

    import woqfx.blocks.steps

    real = woqfx.blocks.steps.find_feeds

    def missed(block, like=()):
        norm, *others = real(block, like)
        return (replace(norm, consumers=dict(list(norm.consumers.items())[1:])), *others)

    monkeypatch.setattr(woqfx.blocks.steps, "find_feeds", missed)
    quantize(tiny_model("llama"), out=tmp_path / "out")
    for block in report(tmp_path / "out")["blocks"]:
        first, *others = block["feeds"]
        assert not first["used"]
        assert "the block's output would change by" in first["reason"]
        assert all(fold["used"] for fold in others)
    source = ModuleSource(tiny_model("llama"))
    name = "model.layers.0.input_layernorm.weight"
    assert torch.equal(Checkpoint(tmp_path / "out").read_kept(name), source.read(name))
