"""`woqfx eval --tasks`: the harness's scores are those of the model, and what is wrong with a request is said."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer

import woqfx

pytest.importorskip("lm_eval")

QUESTIONS = [("the sky is", (" blue", " a wednesday", " seven"), 0), ("two and two are", (" four", " red"), 1)] * 3
DESCRIPTION = """task: colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A task that needs no network."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [json.dumps({"question": q, "choices": c, "gold": g}) for q, c, g in QUESTIONS]
    (folder / "colours.jsonl").write_text("\n".join(rows))
    (folder / "colours.yaml").write_text(DESCRIPTION.format(data=folder / "colours.jsonl"))
    return folder


def accuracy(checkpoint, questions):
    """By hand: the choice whose tokens the model finds the likeliest together."""
    model, tokenizer = woqfx.load(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    right = 0
    for question, choices, gold in questions:
        scores = []
        for choice in choices:
            before, whole = (tokenizer(text, return_tensors="pt").input_ids for text in (question, question + choice))
            with torch.no_grad():
                logits = model(whole).logits.log_softmax(-1)
            new = range(before.shape[1], whole.shape[1])
            scores.append(sum(float(logits[0, at - 1, whole[0, at]]) for at in new))
        right += scores.index(max(scores)) == gold
    return right / len(questions)


@pytest.mark.slow
def test_the_scores_are_the_models_own(run, checkpoint, folder):
    result = run("eval", checkpoint, "--tasks", "colours", "--task-folder", folder, "--json")
    assert result.exit_code == 0, result.stderr
    (score,) = json.loads(result.stdout)["scores"]
    assert score["value"] == pytest.approx(accuracy(checkpoint, QUESTIONS))
    assert (score["task"], score["metric"], score["examples"], score["shots"]) == ("colours", "acc", 6, 0)


@pytest.mark.slow
def test_a_table_beside_the_original(run, checkpoint, model_folder, folder):
    flags = ["--tasks", "colours", "--task-folder", folder, "--against", model_folder, "--limit", 2, "--batch", 2]
    result = run("eval", checkpoint, *flags)
    assert result.exit_code == 0, result.stderr
    assert "original" in result.stdout
    assert f"{accuracy(checkpoint, QUESTIONS[:2]):.4f}" in result.stdout


@pytest.mark.slow
def test_an_unknown_task_is_named(run, checkpoint, folder):
    result = run("eval", checkpoint, "--tasks", "colour", "--task-folder", folder)
    assert result.exit_code == 1
    assert "there is no task 'colour': did you mean colours?" in result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limit", 3], "--limit needs --tasks"),
        (["--tasks", "colours", "--tokens", 40], "--tokens is for a text"),
        (["--tasks", "colours", "--task-folder", "EMPTY"], "holds no .yaml file"),
    ],
    ids=["limit of no task", "tokens of a task", "an empty folder"],
)
def test_what_is_wrong_with_a_request_is_said(run, checkpoint, tmp_path, flags, message):
    result = run("eval", checkpoint, *[tmp_path if flag == "EMPTY" else flag for flag in flags])
    assert result.exit_code != 0
    assert message in result.stderr


def test_without_the_harness_the_extra_is_named(run, checkpoint, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    result = run("eval", checkpoint, "--tasks", "colours")
    assert result.exit_code == 1
    assert "pip install 'woqfx[eval]'" in result.stderr
