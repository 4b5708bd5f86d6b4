"""`WoqfxLLM`, in the spirit of LangChain's standard tests, which know chat models alone."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.prompts import PromptTemplate

import woqfx
from woqfx import WeightOnlyQuantConfig
from woqfx.errors import SettingsError
from woqfx.generating import TextGenerator
from woqfx.langchain import WoqfxLLM
from woqfx.source.tokenizer import load_tokenizer

PROMPTS = ["hello", "a longer prompt", "x"]


class Recorder(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.ends: list[Any] = []
        self.errors: list[BaseException] = []

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.ends.append(response)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)


@pytest.fixture(scope="module")
def llm(tiny_checkpoint: Path) -> WoqfxLLM:
    return WoqfxLLM(model=str(tiny_checkpoint), max_tokens=10, temperature=0)


def test_invoke_batch_and_stream_agree_and_leave_out_the_prompt(llm: WoqfxLLM):
    alone = [llm.invoke(prompt) for prompt in PROMPTS]
    assert llm.batch(PROMPTS) == alone
    assert llm.batch(PROMPTS, config={"max_concurrency": 2}) == alone
    assert ["".join(llm.stream(prompt)) for prompt in PROMPTS] == alone
    assert not any(answer.startswith(prompt) for prompt, answer in zip(PROMPTS, alone, strict=True))


async def test_the_asynchronous_ways_agree(llm: WoqfxLLM):
    alone = [llm.invoke(prompt) for prompt in PROMPTS]
    assert [await llm.ainvoke(prompt) for prompt in PROMPTS] == alone
    assert await llm.abatch(PROMPTS) == alone
    assert "".join([piece async for piece in llm.astream("hello")]) == alone[0]


async def test_a_cancelled_task_cancels_the_generation(llm: WoqfxLLM):
    task = asyncio.create_task(llm.ainvoke("x", max_tokens=490))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [thread for thread in threading.enumerate() if thread.name == "woqfx-stream"]
    assert llm.load()._turns._busy is False


def test_a_batch_is_one_run_of_the_model(llm: WoqfxLLM, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    model = llm.load().model
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **all: sizes.append(len(all["input_ids"])) or generate(**all))
    llm.batch([*PROMPTS, *PROMPTS])
    assert sizes == [6]


@pytest.mark.parametrize("stop", [["J"], ["\\d", "(", "J"]], ids=str)
def test_stop_is_text_and_exact(llm: WoqfxLLM, stop: list[str]):
    whole = llm.invoke("hello")
    assert "J" in whole
    cut = whole[: whole.index("J")]
    assert llm.invoke("hello", stop=stop) == "".join(llm.stream("hello", stop=stop)) == cut
    assert llm.bind(stop=stop).invoke("hello") == cut
    assert WoqfxLLM(generator=llm.load(), max_tokens=10, temperature=0, stop=stop).invoke("hello") == cut
    info = llm.generate(["hello"], stop=stop).generations[0][0].generation_info
    assert info["finish_reason"] == "stop" and info["usage"]["output_tokens"] < 10


def test_parameters_of_a_call_count(llm: WoqfxLLM):
    usage = llm.generate(["hello"], max_tokens=3).generations[0][0].generation_info["usage"]
    assert usage == {"input_tokens": 5, "output_tokens": 3, "total_tokens": 8}
    drawn = [llm.invoke("hello", temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(SettingsError, match="did you mean 'max_new_tokens'"):
        llm.invoke("hello", max_new_token=3)


def test_usage_and_finish_reason_reach_callbacks(llm: WoqfxLLM):
    seen = Recorder()
    llm.batch(PROMPTS, config={"callbacks": [seen]})
    output = seen.ends[0].llm_output
    read = sum(len(prompt) for prompt in PROMPTS)
    assert output["token_usage"] == {"prompt_tokens": read, "completion_tokens": 30, "total_tokens": read + 30}
    seen = Recorder()
    text = "".join(llm.stream("hello", config={"callbacks": [seen]}))
    assert "".join(seen.tokens) == text
    info = seen.ends[0].generations[0][0].generation_info
    assert info["finish_reason"] == "length" and info["usage"]["output_tokens"] == 10


def test_log_probabilities_on_demand(llm: WoqfxLLM):
    info = llm.generate(["hello"], logprobs=2, max_tokens=3).generations[0][0].generation_info
    (first, *_) = info["logprobs"]["content"]
    assert len(info["logprobs"]["content"]) == 3
    assert first["logprob"] == first["top_logprobs"][0]["logprob"] and len(first["top_logprobs"]) == 2


def test_errors_reach_the_caller_and_callbacks(llm: WoqfxLLM):
    seen = Recorder()
    with pytest.raises(SettingsError, match="shorten the prompt"):
        llm.invoke("x" * 3000, config={"callbacks": [seen]})
    assert len(seen.errors) == 1
    assert isinstance(llm.batch(["x" * 3000], return_exceptions=True)[0], SettingsError)
    with pytest.raises(SettingsError, match="shorten the prompt"):
        list(llm.stream("x" * 3000))


def test_tokens_are_the_models_own(llm: WoqfxLLM):
    assert llm.get_num_tokens("né") == 3 and len(llm.get_token_ids("hello")) == 5


def test_it_is_loaded_when_it_is_needed(tmp_path: Path):
    missing = WoqfxLLM(model=str(tmp_path / "nothing"))
    json.dumps(missing._identifying_params)
    with pytest.raises(woqfx.WoqfxError, match="nothing"):
        missing.invoke("x")


def test_threads_load_it_once(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    loads, load = [], woqfx.load
    monkeypatch.setattr("woqfx.langchain.source.api.load", lambda *a, **k: loads.append(a) or load(*a, **k))
    llm = WoqfxLLM(model=str(tiny_checkpoint), max_tokens=5, temperature=0)
    got: list[str] = []
    threads = [threading.Thread(target=lambda: got.append(llm.invoke("hello"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1 and len(got) == 4 and len(set(got)) == 1


class TestIdentity:
    CONFIGS = (None, {"weight_dtype": "nf4"}, {"weight_dtype": "int8"}, {"weight_dtype": "nf4", "group_size": 64})

    def test_no_two_configurations_share_a_cache_entry(self, tiny_llama: Path, tiny_checkpoint: Path):
        configs = [None if one is None else WeightOnlyQuantConfig(**one) for one in self.CONFIGS]
        models = [WoqfxLLM(model=str(tiny_llama), quantization_config=config) for config in configs]
        models += [WoqfxLLM(model=str(tiny_checkpoint)), WoqfxLLM(model=str(tiny_llama), temperature=0.5)]
        models += [WoqfxLLM(model=str(tiny_llama), max_tokens=9), WoqfxLLM(model=str(tiny_llama), stop=["."])]
        keys = [json.dumps(model._identifying_params, sort_keys=True) for model in models]
        assert len(set(keys)) == len(keys)
        again = WoqfxLLM(model=str(tiny_llama), quantization_config=WeightOnlyQuantConfig(weight_dtype="nf4"))
        assert json.dumps(again._identifying_params, sort_keys=True) == keys[1]

    def test_a_cache_answers_for_the_same_and_not_for_another(self, llm: WoqfxLLM, tiny_llama: Path):
        cache = InMemoryCache()
        made = {"cache": cache, "max_tokens": 10, "temperature": 0}
        first = WoqfxLLM(generator=llm.load(), **made)
        seen = Recorder()
        answer = first.invoke("hello")
        assert first.invoke("hello", config={"callbacks": [seen]}) == answer
        other = WoqfxLLM(model=str(tiny_llama), quantization_config={"weight_dtype": "int8"}, **made)
        other.invoke("hello")
        assert len(cache._cache) == 2
        first.invoke("hello", temperature=1.0, seed=1)
        assert len(cache._cache) == 3

    def test_a_changed_folder_is_another_model(self, tiny_llama: Path, tmp_path: Path):
        out = tmp_path / "out"
        woqfx.quantize(tiny_llama, dtype="nf4", out=out, progress="none")
        before = WoqfxLLM(model=str(out))._identifying_params
        woqfx.quantize(tiny_llama, dtype="int8", out=out, overwrite=True, progress="none")
        assert WoqfxLLM(model=str(out))._identifying_params != before

    def test_live_models_are_like_no_other(self, tiny_checkpoint: Path):
        model, tokenizer = woqfx.load(tiny_checkpoint), load_tokenizer(tiny_checkpoint)
        one, two = WoqfxLLM.from_model(model, tokenizer), WoqfxLLM.from_model(model, tokenizer)
        assert one._identifying_params == one._identifying_params != two._identifying_params
        assert "nf4" in json.dumps(one._identifying_params["quantization"])

    def test_it_can_be_saved(self, llm: WoqfxLLM, tmp_path: Path):
        llm.save(tmp_path / "llm.json")
        assert json.loads((tmp_path / "llm.json").read_text())["_type"] == "woqfx"


def test_a_pickle_loads_its_model_anew(llm: WoqfxLLM):
    answer = llm.invoke("hello")
    again = pickle.loads(pickle.dumps(llm))
    assert again.invoke("hello") == answer and again.load() is not llm.load()
    with pytest.raises(SettingsError, match="a loaded model cannot be pickled"):
        pickle.dumps(WoqfxLLM(generator=llm.load()))


def test_copies_share_the_loaded_model_unless_they_are_of_another(llm: WoqfxLLM, tiny_llama: Path):
    copy = llm.model_copy(update={"temperature": 0.3})
    assert copy.load() is llm.load()
    other = llm.model_copy(update={"model": str(tiny_llama)})
    assert other.load() is not llm.load()


def test_it_composes(llm: WoqfxLLM):
    chain = PromptTemplate.from_template("Q: {question}") | llm.bind(stop=["\n"])
    questions = [{"question": text} for text in PROMPTS]
    assert chain.batch(questions) == [chain.invoke(question) for question in questions]
    assert llm.with_config(tags=["x"]).invoke("hello") == llm.invoke("hello")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "say which model"),
        ({"model": "x", "temperature": -1}, "temperature must be"),
        ({"model": "x", "temprature": 1}, "temprature"),
        ({"model": "x", "generation_kwargs": {"nonsense": 1}}, "nonsense"),
        ({"model": "x", "batch_size": 0}, "batch_size"),
    ],
    ids=["model", "value", "field", "generation", "batch"],
)
def test_what_cannot_be_meant_is_refused_at_construction(fields: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        WoqfxLLM(**fields)


def test_it_says_who_it_is_in_traces(llm: WoqfxLLM):
    params = llm._get_ls_params()
    assert (params["ls_provider"], params["ls_model_type"]) == ("woqfx", "llm")
    assert params["ls_model_name"] == llm.model and params["ls_max_tokens"] == 10
    assert llm.metadata is not None and llm.metadata["lc_versions"]["woqfx"] == woqfx.__version__


def test_a_model_without_a_text_generator_is_refused():
    import torch

    with pytest.raises(woqfx.WoqfxError, match="Linear does not generate text"):
        TextGenerator(torch.nn.Linear(2, 2), None)
