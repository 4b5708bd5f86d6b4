"""Every code block of the documents in `requirements/` runs, and does what the document says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from snippets import DOCUMENTS, Snippet, run, snippets
from transformers import AwqConfig, BitsAndBytesConfig, GPTQConfig

from woqfx import PackedWeight
from woqfx.langchain import WeightOnlyQuantPipeline
from woqfx.vocabularies import huggingface

CODE = [document for document in DOCUMENTS if any(block.kind == "code" for block in snippets(document))]
SIGNATURES = [block for document in DOCUMENTS for block in snippets(document) if block.kind == "signature"]
CLASSES = {"bits": (huggingface.AWQ, huggingface.GPTQ), "load_in_8bit": (huggingface.BITSANDBYTES,)}


def packed(llm: WeightOnlyQuantPipeline) -> list[PackedWeight]:
    return [module for module in llm.pipeline.model.modules() if isinstance(module, PackedWeight)]


def test_all_five_documents_are_here():
    assert len(DOCUMENTS) == 5 and len(CODE) == 4
    assert sum(len(snippets(document)) for document in DOCUMENTS) == 35


@pytest.mark.parametrize("encoder", [True, False], ids=["t5", "llama"])
@pytest.mark.parametrize("document", CODE, ids=lambda path: path.stem)
def test_the_documents_run(document: Path, encoder: bool, tiny_t5: Path, tiny_llama: Path):
    model = str(tiny_t5 if encoder else tiny_llama)
    blocks = [block for block in snippets(document) if block.kind == "code"]
    seen: dict[str, Any] = {}
    steps = run(blocks, model, encoder=encoder, namespace=seen)

    next(steps)  # from_model_id
    task = "text2text-generation" if encoder else "text-generation"
    assert seen["hf"].pipeline.task == task
    assert {weight.scheme.dtype for weight in packed(seen["hf"])} == {"nf4"}
    assert seen["hf"].get_num_tokens("hello") == 5

    next(steps)  # pipeline=
    assert packed(seen["hf"]) == [] and seen["hf"].pipeline is seen["pipe"]

    _, printed = next(steps)  # the chain
    prompt = seen["template"].format(question=seen["question"])
    assert printed.strip() and prompt not in printed
    if encoder:  # transformers' own pipeline for text-generation draws its tokens
        assert printed == seen["chain"].invoke({"question": seen["question"]}) + "\n"
    assert seen["hf"]._identifying_params["settings"].get("temperature", 0) == (0 if encoder else 0.7)

    _, printed = next(steps)  # on the CPU, quantized
    info = seen["llm"].generate([prompt]).generations[0][0].generation_info
    assert info["usage"]["output_tokens"] == 10 and info["finish_reason"] == "length"
    assert printed == seen["llm"].invoke(prompt) + "\n"

    _, printed = next(steps)  # a batch with a stop
    alone = [seen["chain"].invoke(question) for question in seen["questions"]]
    assert seen["answers"] == alone and len(alone) == 4
    assert printed == "".join(f"{answer}\n" for answer in alone)
    assert not any("\n\n" in answer for answer in alone)
    assert list(steps) == []


@pytest.mark.parametrize("block", SIGNATURES, ids=lambda block: block.name)
def test_the_parameters_of_the_reference_page_are_known(block: Snippet):
    parameters = block.parameters()
    if not parameters or parameters == ["config_dict"]:
        methods = ("post_init", "from_dict_optimum", "to_dict_optimum", "is_quantizable", "quantization_method")
        assert any(hasattr(one, name) for name in methods for one in (AwqConfig, GPTQConfig, BitsAndBytesConfig))
        return
    known = [{one.name for one in vocabulary.parameters} for vocabulary in CLASSES[parameters[0]]]
    assert any(set(parameters) <= names for names in known)


@pytest.mark.parametrize(
    "places", [{}, {"device": -1}, {"device": "cpu"}, {"device_map": "auto"}, {"device_map": {"": "cpu"}}], ids=str
)
def test_each_way_to_say_cpu(places: dict[str, Any], tiny_llama: Path):
    llm = WeightOnlyQuantPipeline.from_model_id(str(tiny_llama), "text-generation", load_in_8bit=True, **places)
    assert {weight.scheme.dtype for weight in packed(llm)} == {"int8"}
