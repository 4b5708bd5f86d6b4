"""The same classes on the LLM runtime, which shares its steps among threads by itself."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

import woqfx
from woqfx.errors import SchemeError, SettingsError
from woqfx.generating import Constraint, Settings, turns
from woqfx.langchain import ChatWoqfx, WoqfxLLM

pytest.importorskip("woqfx_llm_runtime._core", reason="the runtime is not built here")

PROMPTS = ["hello", "a much longer one", "x"]


@pytest.fixture(scope="module")
def runtime(tiny_checkpoint: Path) -> WoqfxLLM:
    return WoqfxLLM(model=str(tiny_checkpoint), backend="llm_runtime", max_tokens=10, temperature=0)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"temperature": 1.2, "seed": 3},
        {"stop": ["J"]},
        {"temperature": 0.9, "top_p": 0.9, "frequency_penalty": 1.0, "seed": 5},
        {"repetition_penalty": 1.5, "max_tokens": 3},
        {"temperature": 2.0, "seed": 6, "no_repeat_ngram_size": 1},
    ],
    ids=str,
)
def test_it_answers_as_pytorch_does(runtime: WoqfxLLM, tiny_checkpoint: Path, asked: dict[str, object]):
    pytorch = WoqfxLLM(model=str(tiny_checkpoint), max_tokens=10, temperature=0)
    answers = pytorch.bind(**asked).batch(PROMPTS)
    bound = runtime.bind(**asked)
    assert bound.batch(PROMPTS) == answers == [bound.invoke(prompt) for prompt in PROMPTS]
    assert ["".join(bound.stream(prompt)) for prompt in PROMPTS] == answers


@pytest.mark.parametrize(
    "asked",
    [{}, {"top_k": 20}, {"top_p": 0.8}, {"top_k": 20, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.3}],
    ids=str,
)
def test_the_engine_chooses_what_the_sampler_does(
    runtime: WoqfxLLM, monkeypatch: pytest.MonkeyPatch, asked: dict[str, object]
):
    bound = runtime.bind(temperature=0.9, seed=4, **asked)
    answers = bound.batch(PROMPTS)
    monkeypatch.setattr(turns, "hand_in", lambda *_: None)  # so transformers' loop is run with woqfx's own sampler
    assert bound.batch(PROMPTS) == answers


@pytest.fixture(scope="module")
def t5_checkpoint(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runtime") / "t5"
    woqfx.quantize(tiny_t5, dtype="int8", out=out, progress="none")
    return out


@pytest.mark.parametrize("asked", [{}, {"temperature": 1.2, "seed": 3}, {"num_beams": 3}], ids=str)
def test_an_encoder_decoder_answers_as_pytorch_does(t5_checkpoint: Path, asked: dict[str, object]):
    pytorch, runtime = (
        WoqfxLLM(model=str(t5_checkpoint), backend=backend, max_tokens=10, temperature=0).bind(**asked)
        for backend in ("torch_cpu", "llm_runtime")
    )
    answers = pytorch.batch(PROMPTS)
    assert any(answers)
    assert runtime.batch(PROMPTS) == answers


@pytest.mark.parametrize("kind", [WoqfxLLM, ChatWoqfx])
def test_options_reach_the_backend(kind: type[WoqfxLLM | ChatWoqfx], tiny_checkpoint: Path):
    one = kind(model=str(tiny_checkpoint), backend="llm_runtime", backend_options={"kv": "int8"})
    assert "keys and values in int8" in repr(one.load().model)


def test_a_cache_tells_options_apart(runtime: WoqfxLLM):
    other = runtime.model_copy(update={"backend_options": {"kv": "int8"}})
    assert other._identifying_params["backend_options"] == {"kv": "int8"}
    assert other._identifying_params != runtime._identifying_params


def test_an_option_that_there_is_not_is_named(tiny_checkpoint: Path):
    one = WoqfxLLM(model=str(tiny_checkpoint), backend="llm_runtime", backend_options={"kv_cache": "int8"})
    with pytest.raises(SchemeError, match=r"backend llm_runtime has no option 'kv_cache'; its options: .*kv,"):
        one.load()


def test_options_of_a_backend_that_does_not_run_the_model_are_refused(tiny_llama: Path):
    one = WoqfxLLM(model=str(tiny_llama), backend_options={"pack_cache": "packed"})
    with pytest.raises(SettingsError, match="is not quantized, and runs without a backend: leave out pack_cache"):
        one.load()


def test_many_threads_at_once(runtime: WoqfxLLM):
    got: dict[int, str] = {}

    def work(at: int) -> None:
        got[at] = runtime.invoke(PROMPTS[at % 3], max_tokens=5 + at)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {at: runtime.invoke(PROMPTS[at % 3], max_tokens=5 + at) for at in range(12)}


def test_grammars_and_cancelling(runtime: WoqfxLLM):
    generator = runtime.load()
    prompt = generator.text_prompt("hello")
    (answer,) = generator.generate([prompt], Settings(temperature=0), constraint=Constraint.regex("[ab]{4}"))
    assert re.fullmatch("[ab]{4}", answer.text)
    with generator.stream(prompt, Settings(max_new_tokens=400, temperature=0)) as stream:
        next(iter(stream))
    assert stream.answer.finish == "cancelled" and stream.answer.new_tokens < 400


def test_an_error_ends_its_own_batch_alone(runtime: WoqfxLLM, monkeypatch: pytest.MonkeyPatch):
    generator = runtime.load()
    with monkeypatch.context() as patch:
        patch.setattr(generator.model, "submit", _broken)
        with pytest.raises(RuntimeError, match="out of order"):
            runtime.invoke("hello")
    assert runtime.invoke("hello")


def _broken(*_: object, **__: object) -> None:
    raise RuntimeError("out of order")
