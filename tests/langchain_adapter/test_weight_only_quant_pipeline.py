"""`WeightOnlyQuantPipeline`: the original's surface, without its faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny_models import save_tokenizer, tiny_model

from woqfx import PackedWeight, WeightOnlyQuantConfig
from woqfx.errors import SettingsError
from woqfx.langchain import WeightOnlyQuantPipeline, pipeline

NF4 = WeightOnlyQuantConfig(weight_dtype="nf4")


def make(model: Path, task: str = "text-generation", **fields: Any) -> WeightOnlyQuantPipeline:
    fields = {"quantization_config": NF4, "pipeline_kwargs": {"max_new_tokens": 8}, **fields}
    return WeightOnlyQuantPipeline.from_model_id(str(model), task, **fields)


def dtypes(llm: WeightOnlyQuantPipeline) -> set[str]:
    return {module.scheme.dtype for module in llm.pipeline.model.modules() if isinstance(module, PackedWeight)}


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> WeightOnlyQuantPipeline:
    return make(tiny_llama)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ({"load_in_4bit": True}, {"nf4"}),
        ({"load_in_8bit": True}, {"int8"}),
        ({"quantization_config": WeightOnlyQuantConfig(weight_dtype="int4_clip")}, {"int4_clip"}),
        (
            {"quantization_config": transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")},
            {"nf4"},
        ),
        ({}, set()),
    ],
    ids=["4bit", "8bit", "config", "bitsandbytes", "none"],
)
def test_each_way_to_say_how(tiny_llama: Path, given: dict[str, Any], dtype: set[str]):
    assert dtypes(make(tiny_llama, **{"quantization_config": None, **given})) == dtype


def test_the_checkpoint_of_woqfx_too(tiny_checkpoint: Path):
    assert dtypes(make(tiny_checkpoint, quantization_config=None)) == {"nf4"}


@pytest.mark.parametrize("task", ["text2text-generation", "summarization"])
def test_tasks_that_transformers_gave_up(tiny_t5: Path, task: str):
    llm = make(tiny_t5, task)
    assert llm.invoke("hello") and llm.pipeline.task == task
    (given,) = llm.pipeline("hello")
    assert given == {("summary_text" if task == "summarization" else "generated_text"): llm.invoke("hello")}


def test_a_models_own_settings_for_a_task(tmp_path: Path):
    model = tiny_model("t5", vocab_size=259)
    model.config.task_specific_params = {"summarization": {"prefix": "sum: ", "num_beams": 3, "max_length": 7}}
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    own = make(tmp_path, "summarization", pipeline_kwargs=None, quantization_config=None)
    plain = make(
        tmp_path, "text2text-generation", pipeline_kwargs={"num_beams": 3, "max_length": 7}, quantization_config=None
    )
    assert own.invoke("hello") == plain.invoke("sum: hello")
    assert own.generate(["hello"]).generations[0][0].generation_info["usage"]["input_tokens"] == len("sum: hello")
    assert own.invoke("hello", num_beams=1, max_length=12) != own.invoke("hello")


def test_parameters_of_a_call_count(llm: WeightOnlyQuantPipeline):
    def length(**asked: Any) -> int:
        return int(llm.generate(["hello"], **asked).generations[0][0].generation_info["usage"]["output_tokens"])

    assert (length(), length(max_new_tokens=3), length(pipeline_kwargs={"max_new_tokens": 4})) == (8, 3, 4)
    assert llm.invoke("x", temperature=2.0, seed=1) == llm.invoke("x", temperature=2.0, seed=1) != llm.invoke("x")


def test_a_batch_is_one_run_and_stop_is_text(llm: WeightOnlyQuantPipeline, monkeypatch: pytest.MonkeyPatch):
    alone = [llm.invoke(text) for text in ("hello", "a longer one")]
    sizes = []
    model = llm.pipeline.model
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **all: sizes.append(len(all["input_ids"])) or generate(**all))
    assert llm.batch(["hello", "a longer one"]) == alone and sizes == [2]
    whole = alone[0]
    assert llm.invoke("hello", stop=[whole[3]]) == whole[: whole.index(whole[3])]
    for pattern in ("+", "(", "."):  # the original took them for expressions
        assert llm.invoke("hello", stop=[pattern]) == whole.split(pattern)[0]


def test_it_streams(llm: WeightOnlyQuantPipeline):
    assert "".join(llm.stream("hello")) == llm.invoke("hello")


def test_an_existing_pipeline_answers_as_it_is_set(tiny_llama: Path):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, max_new_tokens=6, do_sample=False)
    llm = WeightOnlyQuantPipeline(pipeline=pipe)
    assert "hello" + llm.invoke("hello") == pipe("hello")[0]["generated_text"]
    assert llm.generate(["hello"]).generations[0][0].generation_info["usage"]["output_tokens"] == 6


def test_the_quantization_is_part_of_what_it_is(tiny_llama: Path):
    models = [make(tiny_llama), make(tiny_llama, quantization_config=WeightOnlyQuantConfig(weight_dtype="int8"))]
    models += [make(tiny_llama, pipeline_kwargs={"max_new_tokens": 9})]
    keys = {str(model._identifying_params) for model in models}
    assert len(keys) == 3 and "nf4" in str(models[0]._identifying_params)
    assert make(tiny_llama)._identifying_params == models[0]._identifying_params  # a cache on disk outlives the process
    assert models[0]._llm_type == "weight_only_quantization"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": "translation"}, "Got invalid task translation"),
        ({"device": 0}, "woqfx runs models on the CPU"),
        ({"device": "cuda"}, "woqfx runs models on the CPU"),
        ({"device": 0, "device_map": "auto"}, "cannot be set simultaneously"),
        ({"device_map": {"": "cuda:0"}}, "woqfx runs models on the CPU"),
        ({"quantization_config": WeightOnlyQuantConfig}, "is the class WeightOnlyQuantConfig: pass an object"),
        ({"load_in_4bit": True}, "exclude each other"),
        ({"pipeline_kwargs": {"max_new_token": 5}}, "did you mean 'max_new_tokens'"),
        ({"pipeline_kwargs": {"return_full_text": True}}, "an answer never holds its prompt"),
        ({"task": "text2text-generation"}, "Llama"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_meant_is_refused(tiny_llama: Path, given: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        make(tiny_llama, **given)
    assert issubclass(SettingsError, ValueError)


def test_what_is_no_pipeline_is_refused():
    with pytest.raises(ValueError, match="pipeline must be a pipeline"):
        WeightOnlyQuantPipeline(pipeline="text-generation")
    with pytest.raises(SettingsError, match="needs model=a loaded model"):
        pipeline("summarization")
    with pytest.raises(SettingsError, match="Got invalid task"):
        pipeline("fill-mask")
