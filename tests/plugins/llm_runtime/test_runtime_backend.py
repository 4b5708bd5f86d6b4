"""The backend's answers, which need no engine."""

from __future__ import annotations

import pytest
from tiny_models import tiny_model

import woqfx
from woqfx import Scheme, this_cpu
from woqfx.contracts import fault_of
from woqfx_llm_runtime import backend as module
from woqfx_llm_runtime.families.fields import UnsupportedModelError


@pytest.fixture
def backend():
    return woqfx.registry().backend("llm_runtime")


def test_the_registry_takes_it(backend):
    assert fault_of("backend", backend) == ""


def test_it_runs_what_the_native_kernels_run(backend):
    grid = woqfx.registry().dtype("nf4")
    answer = backend.supports(Scheme("nf4", compute_dtype="int8"), grid, (64, 64), this_cpu())
    assert answer.ok and answer.kernel.startswith("native")
    refused = backend.supports(Scheme("nf4", compute_dtype="fp64"), grid, (64, 64), this_cpu())
    assert not refused.ok and "torch_cpu" in refused.remedy


def test_single_weights_are_refused(backend):
    q = woqfx.quantize_nearest(
        tiny_model("llama").lm_head.weight, woqfx.registry().dtype("int8"), Scheme("int8"), name="head"
    )
    with pytest.raises(UnsupportedModelError, match="runs whole models, not single layers: use backend torch_cpu"):
        backend.pack(q, q.dequantize().dtype)


def test_without_its_engine_the_plan_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    problems = woqfx.plan(tiny_model("llama"), backend="llm_runtime").problems
    assert any("without its native engine: install it again with a C++20 compiler" in one for one in problems)


def test_blocking_the_plugin_leaves_the_rest(monkeypatch):
    from woqfx.plugins import Registry, Settings

    left = Registry(Settings(block=frozenset({"llm_runtime"})))
    assert "llm_runtime" not in left.names("backend") and "torch_cpu" in left.names("backend")
    assert left.architecture(tiny_model("llama")).descriptions == {}
