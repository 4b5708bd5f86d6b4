from __future__ import annotations

import json
import re
from typing import Any

import pytest

from woqfx.errors import SettingsError
from woqfx.generating import Constraint, Settings, TextGenerator

WILD = [Settings(max_new_tokens=200, temperature=t, seed=seed) for t, seed in ((0, 0), (1.5, 1), (3.0, 2))]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["x", "né"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
}


def ask(generator: TextGenerator, constraint: Constraint, asked: Settings) -> str:
    (answer,) = generator.generate([generator.text_prompt("hello")], asked, constraint=constraint)
    assert answer.finish == "stop"
    return answer.text


@pytest.mark.parametrize("asked", WILD, ids=lambda asked: f"temperature={asked.temperature}")
def test_json_of_a_schema_whatever_the_model_would_say(generator: TextGenerator, asked: Settings):
    text = ask(generator, Constraint.json_schema(PERSON), asked)
    value = json.loads(text)
    assert list(value) == ["name", "age", "kind", "tags"]  # and no other property, though the schema is silent on them
    assert len(value["name"]) <= 8 and 0 <= value["age"] <= 150 and value["kind"] in ("x", "né")
    assert len(value["tags"]) <= 3 and all(isinstance(tag, bool) for tag in value["tags"])
    assert "\n" not in text


@pytest.mark.parametrize("asked", WILD, ids=lambda asked: f"temperature={asked.temperature}")
def test_text_of_an_expression(generator: TextGenerator, asked: Settings):
    assert re.fullmatch("[a-c]{2,5}-(né|ö)", ask(generator, Constraint.regex("[a-c]{2,5}-(né|ö)"), asked))


def test_rows_follow_grammars_of_their_own_and_the_free_row_is_free(generator: TextGenerator):
    prompt, asked = generator.text_prompt("hello"), Settings(max_new_tokens=12, temperature=0)
    requests = [
        generator.request(prompt, asked, constraint=Constraint.regex("[ab]{4}")),
        generator.request(prompt, asked),
        generator.request(prompt, asked, constraint=Constraint.regex("[0-9]{3}")),
    ]
    generator.run(requests)
    assert re.fullmatch("[ab]{4}", requests[0].answer.text) and re.fullmatch("[0-9]{3}", requests[2].answer.text)
    assert requests[1].answer == generator.generate([prompt], asked)[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constraint.regex("(unclosed"),
        lambda: Constraint.lark("start: nothing"),
        lambda: Constraint.json_schema({"type": "nonsense"}),
    ],
    ids=["regex", "lark", "schema"],
)
def test_what_is_no_grammar_is_refused(make: Any):
    with pytest.raises(SettingsError, match="the constraint cannot be used"):
        make()


def test_beams_cannot_follow_a_grammar(generator: TextGenerator):
    with pytest.raises(SettingsError, match="num_beams"):
        generator.requests(
            [generator.text_prompt("x")], Settings.read({"num_beams": 2}), constraint=Constraint.regex("a")
        )
