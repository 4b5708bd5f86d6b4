"""Other people's clients against the server: LangChain's ChatOpenAI, and lm-evaluation-harness."""

from __future__ import annotations

import json

import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from transformers import AutoTokenizer

import woqfx
from woqfx.tasks import score_tasks

QUESTIONS = [("the sky is", [" blue", " a wednesday", " seven"], 0), ("two and two are", [" four", " red"], 1)] * 2


class Switch(BaseModel):
    """A switch."""

    on: bool


@pytest.fixture
def chat(address):
    return ChatOpenAI(
        base_url=f"{address}/v1", api_key="none", model="tiny", max_retries=0, max_tokens=8, temperature=0
    )


def test_chat_openai_invokes_streams_and_batches(chat):
    whole = chat.invoke("Hello")
    assert whole.usage_metadata["total_tokens"] > 0
    assert whole.response_metadata["finish_reason"] in ("stop", "length")
    assert "".join(str(part.content) for part in chat.stream("Hello")) == whole.content
    assert [answer.content for answer in chat.batch(["Hello", "Hello"])] == [whole.content] * 2


def test_chat_openai_gets_structured_output(chat):
    found = chat.model_copy(update={"max_tokens": 100}).with_structured_output(Switch, method="json_schema")
    assert isinstance(found.invoke("On or off?"), Switch)


@pytest.mark.slow
def test_the_harness_scores_the_server_as_the_model_itself(address, served_folder, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    rows = [json.dumps({"question": q, "choices": c, "gold": g}) for q, c, g in QUESTIONS]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    task = {
        "task": "colours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "colours.yaml").write_text(json.dumps(task))
    (wanted,) = score_tasks(
        woqfx.load(served_folder), AutoTokenizer.from_pretrained(served_folder), ["colours"], folder=tmp_path
    )
    asked = {"base_url": f"{address}/v1/completions", "model": "tiny", "tokenizer": str(served_folder)}
    manager = lm_eval.tasks.TaskManager(include_defaults=False)  # the task is described here
    found = lm_eval.simple_evaluate(
        "local-completions", model_args=asked, tasks=[task], task_manager=manager, bootstrap_iters=0
    )
    assert found["results"]["colours"]["acc,none"] == pytest.approx(wanted.value)
