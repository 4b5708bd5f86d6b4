from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folders_of_models import request, saved
from tiny_models import tiny_model

import woqfx
from woqfx import events
from woqfx.engine import quantize_in_memory, quantize_tensors, write_checkpoint
from woqfx.errors import PluginError
from woqfx.planning import make_plan
from woqfx.source import FolderSource, ModuleSource


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> FolderSource:
    return FolderSource(saved("llama", tmp_path_factory.mktemp("models"), num_hidden_layers=1))


@pytest.fixture
def seen(monkeypatch) -> list[events.Event]:
    found: list[events.Event] = []

    class Listener:
        @woqfx.hookimpl
        def woqfx_event(self, event):
            found.append(event)

    woqfx.register(Listener(), "listener")
    yield found
    woqfx.unregister("listener")


def test_each_tensor_comes_once_in_order_with_its_error(source):
    plan = make_plan(source, request())
    names = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
    kept, quantized, head = quantize_tensors(source, plan, names)
    assert [kept.name, quantized.name, head.name] == names
    assert torch.equal(kept.result, source.read("model.norm.weight"))
    weight = source.read(quantized.name)
    off = (quantized.result.dequantize().double() - weight.double()).norm() / weight.double().norm()
    assert quantized.error == pytest.approx(float(off), rel=1e-5)
    assert (kept.error, head.error) == (None, None)
    assert quantized.parts().keys() == {f"{names[1]}.codes", f"{names[1]}.scales"}


def test_events_tell_the_whole_run(source, tmp_path, seen):
    plan = make_plan(source, request())
    for _ in write_checkpoint(source, plan, tmp_path / "out"):
        pass
    started, *middle, finished = seen
    assert isinstance(started, events.RunStarted)
    assert (started.output, started.tensors, started.resumed) == (str(tmp_path / "out"), len(source.tensors), 0)
    assert started.weights == sum(layer.weights for layer in plan.quantized.values())
    done = [event for event in middle if isinstance(event, events.TensorDone)]
    assert [event.done for event in done] == list(range(1, len(source.tensors) + 1))
    assert sum(event.weights for event in done) == started.weights
    assert isinstance(middle[-1], events.Committed)
    assert middle[-1].bytes_written == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert isinstance(finished, events.RunFinished)
    assert len({event.run for event in seen}) == 1


def test_an_error_is_an_event_too(seen):
    model = tiny_model("llama")
    model.lm_head.weight.data[0, 0] = float("nan")
    source = ModuleSource(model)
    with pytest.raises(woqfx.WoqfxError):
        list(quantize_in_memory(source, make_plan(source, request(rules=["lm_head=int8"]))))
    assert isinstance(seen[-1], events.RunFailed)
    assert seen[-1].error.startswith("WeightError: lm_head")


class Misbehaving(woqfx.Algorithm):
    name = "misbehaving"

    def round(self, layer):
        return self.misbehave(layer, super().round(layer))


def wrong_scheme(layer, q):
    return replace(q, scheme=replace(q.scheme, compute_dtype="int8"))


def short_codes(layer, q):
    return replace(q, codes=q.codes[:, 1:])


def bad_scale(layer, q):
    q.scales[0, 0] = float("inf")
    return q


def raises(layer, q):
    raise ZeroDivisionError("by zero")


@pytest.mark.parametrize(
    ("misbehave", "match"),
    [
        (lambda layer, q: None, "returned NoneType, not a QTensor"),
        (lambda layer, q: q.codes, "returned Tensor, not a QTensor"),
        (wrong_scheme, "where .* was planned"),
        (short_codes, "returned parts .* where its scheme has"),
        (lambda layer, q: replace(q, offsets=q.scales.clone()), "returned a weight with offsets, .* give zero points"),
        (bad_scale, "a scale is not finite"),
        (raises, r"failed: ZeroDivisionError\('by zero'\)"),
    ],
    ids=["nothing", "codes alone", "another scheme", "short codes", "offsets", "an infinite scale", "an exception"],
)
def test_an_algorithm_that_misbehaves_is_named(source, tmp_path, misbehave, match):
    class Plugin:
        @woqfx.hookimpl
        def woqfx_algorithms(self):
            return [type("Bad", (Misbehaving,), {"misbehave": staticmethod(misbehave)})]

    # The plan tries each algorithm on a sample, so it is made for an honest one.
    plan = make_plan(source, request())
    woqfx.register(Plugin(), "bad plugin")
    try:
        bad = replace(plan, request=replace(plan.request, algorithm="misbehaving"))
        with pytest.raises(woqfx.WoqfxError, match=match) as caught:
            list(write_checkpoint(source, bad, tmp_path / "out"))
    finally:
        woqfx.unregister("bad plugin")
    assert "misbehaving" in str(caught.value)
    assert "layers.0" in str(caught.value)
    assert isinstance(caught.value, (PluginError, woqfx.errors.CheckpointError))


def test_reading_ahead_stops_with_the_run(source):
    import threading

    steps = quantize_tensors(source, make_plan(source, request()), list(source.tensors))
    next(steps)
    steps.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("woqfx-read")]


def test_the_run_is_described_by_all_that_decides_the_bytes(source, tmp_path):
    from woqfx.disk.journal import Journal
    from woqfx.disk.output import JOURNAL

    steps = write_checkpoint(source, make_plan(source, request(dtype="nf4")), tmp_path / "out")
    next(steps)
    steps.close()
    run = Journal.peek(tmp_path / "out" / JOURNAL).run
    assert run["woqfx"] == woqfx.__version__
    assert run["source"] == {"name": source.label, "fingerprint": source.fingerprint()}
    assert run["request"] == request(dtype="nf4").to_json()
    assert len(run["plugins"]) == 2
    assert Path(run["source"]["name"]).is_dir()
