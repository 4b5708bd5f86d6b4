"""`ChatWoqfx` on a tiny random model: its mechanics. What a real model makes of it: test_chat_standard.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from woqfx.errors import SettingsError
from woqfx.langchain import ChatWoqfx


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def now() -> str:
    """The time."""
    return "12:00"


class Person(BaseModel):
    """Somebody."""

    name: str = Field(max_length=8)
    age: int = Field(ge=0, le=150)


@pytest.fixture(scope="module")
def chat(tiny_checkpoint: Path) -> ChatWoqfx:
    # A random model does not end a number or a text by itself: it draws, and its seed is one that comes to an end.
    return ChatWoqfx(model=str(tiny_checkpoint), max_tokens=150, temperature=1.0, seed=5)


@pytest.fixture(scope="module")
def greedy(chat: ChatWoqfx) -> ChatWoqfx:
    return ChatWoqfx(generator=chat.load(), max_tokens=10, temperature=0)


def test_the_template_is_the_models_own(greedy: ChatWoqfx):
    messages = [SystemMessage("Be brief."), HumanMessage("hello"), AIMessage("hi"), HumanMessage("x")]
    text = "[system] Be brief.\n[user] hello\n[assistant] hi\n[user] x\n[assistant] "
    question = greedy._question(messages, None, {})
    assert greedy.load().tokenizer.decode(question.prompt.tokens) == text
    assert greedy.get_num_tokens_from_messages(messages) == len(text)
    assert greedy.invoke(messages).usage_metadata == {
        "input_tokens": len(text),
        "output_tokens": 10,
        "total_tokens": len(text) + 10,
    }


def test_invoke_stream_and_batch_agree(greedy: ChatWoqfx):
    alone = [greedy.invoke(text) for text in ("hello", "x", "a longer one")]
    assert [one.content for one in greedy.batch(["hello", "x", "a longer one"])] == [one.content for one in alone]
    chunks = list(greedy.stream("hello"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    assert (whole.content, whole.usage_metadata) == (alone[0].content, alone[0].usage_metadata)
    assert whole.response_metadata == alone[0].response_metadata
    assert alone[0].response_metadata["finish_reason"] == "length"


async def test_the_asynchronous_ways_agree(greedy: ChatWoqfx):
    answer = greedy.invoke("hello").content
    assert (await greedy.ainvoke("hello")).content == answer
    assert [one.content for one in await greedy.abatch(["hello", "hello"])] == [answer] * 2
    assert "".join([str(chunk.content) async for chunk in greedy.astream("hello")]) == answer


def test_a_batch_shares_runs_of_the_model(greedy: ChatWoqfx, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    model = greedy.load().model
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **all: sizes.append(len(all["input_ids"])) or generate(**all))
    greedy.batch([f"question {at}" for at in range(8)])
    assert sum(sizes) == 8 and max(sizes) >= 4


def test_usage_reaches_langchains_counter(greedy: ChatWoqfx):
    counter = UsageMetadataCallbackHandler()
    answers = greedy.batch(["hello", "x"], config={"callbacks": [counter]})
    (usage,) = counter.usage_metadata.values()
    assert usage["output_tokens"] == 20
    assert usage["input_tokens"] == sum(answer.usage_metadata["input_tokens"] for answer in answers)


@pytest.mark.parametrize(
    "choice", ["any", "required", True, "add", {"type": "function", "function": {"name": "add"}}], ids=str
)
def test_calls_that_must_come(chat: ChatWoqfx, choice: Any):
    bound = chat.bind_tools([add, now], tool_choice=choice)
    message = bound.invoke("1 + 2?", temperature=0, frequency_penalty=2.0)
    whole = None
    for chunk in bound.stream("1 + 2?", temperature=0, frequency_penalty=2.0):
        whole = chunk if whole is None else whole + chunk
    for answer in (message, whole):
        assert answer.content == "" and len(answer.tool_calls) == 1 and answer.invalid_tool_calls == []
        (call,) = answer.tool_calls
        assert call["name"] in (("add",) if choice == "add" or isinstance(choice, dict) else ("add", "now"))
        assert re.fullmatch("call_[0-9a-f]{24}", call["id"])
        assert answer.response_metadata["finish_reason"] == "tool_calls"
    assert message.tool_calls[0]["args"] == whole.tool_calls[0]["args"]


def test_the_loop_of_an_agent(chat: ChatWoqfx):
    question = HumanMessage("What time is it?")
    call = chat.bind_tools([now, add], tool_choice="now").invoke([question])
    result = now.invoke(call.tool_calls[0])
    assert isinstance(result, ToolMessage) and result.content == "12:00"
    answer = chat.bind_tools([now, add]).invoke([question, call, result], max_tokens=5)
    assert isinstance(answer, AIMessage) and answer.usage_metadata["output_tokens"] <= 5


def test_a_call_that_was_cut_off_is_told_as_such(chat: ChatWoqfx):
    bound = chat.bind_tools([add], tool_choice="add")
    message = bound.invoke("1 + 2?", max_tokens=40)
    assert message.tool_calls == [] and message.response_metadata["finish_reason"] == "length"
    assert message.invalid_tool_calls[0]["args"].startswith('<tool_call>\n{"name": "add"')
    whole = None
    for chunk in bound.stream("1 + 2?", max_tokens=40):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls == [] and len(whole.invalid_tool_calls) == 1


def test_no_tool_may_be_called(greedy: ChatWoqfx):
    bound = greedy.bind_tools([add], tool_choice="none")
    assert bound.invoke("hello").content == greedy.invoke("hello").content


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat: ChatWoqfx, method: str):
    person = chat.with_structured_output(Person, method=method).invoke("Who is it?", frequency_penalty=2.0)
    assert isinstance(person, Person)
    value = chat.with_structured_output(Person.model_json_schema(), method=method).invoke("Who?", frequency_penalty=2.0)
    assert set(value) == {"name", "age"}


def test_structured_output_with_the_raw_answer(chat: ChatWoqfx):
    found = chat.with_structured_output(Person, include_raw=True).invoke("Who is it?")
    assert found["parsed"] == Person(**json.loads(found["raw"].content)) and found["parsing_error"] is None
    short = ChatWoqfx(generator=chat.load(), max_tokens=3)
    cut = short.with_structured_output(Person, include_raw=True).invoke("Who is it?")
    assert cut["parsed"] is None and cut["parsing_error"] is not None


def test_the_schema_is_told_in_the_system_message(chat: ChatWoqfx):
    form = {"type": "json_schema", "json_schema": {"schema": Person.model_json_schema()}}
    question = chat._question([SystemMessage("Be brief."), HumanMessage("x")], None, {"response_format": form})
    text = chat.load().tokenizer.decode(question.prompt.tokens)
    assert text.startswith("[system] Be brief.\n\nAnswer with one JSON object") and '"maxLength": 8' in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "another"}, "there is no setting 'model'"),
        ({"max_token": 5}, "did you mean 'max_tokens'"),
        ({"response_format": {"type": "xml"}}, "response_format must be"),
        ({"tools": [{"name": "add"}]}, "a tool must be"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(greedy: ChatWoqfx, given: dict[str, Any], said: str):
    with pytest.raises(SettingsError, match=said):
        greedy.invoke("x", **given)


def test_what_tools_and_methods_there_are(greedy: ChatWoqfx):
    with pytest.raises(SettingsError, match="tool_choice is 'subtract', and the tools are add"):
        greedy.bind_tools([add], tool_choice="subtract")
    with pytest.raises(SettingsError, match="there are json_schema, function_calling, json_mode"):
        greedy.with_structured_output(Person, method="yaml")
    with pytest.raises(SettingsError, match="with_structured_output has no colour"):
        greedy.with_structured_output(Person, colour="red")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
            "image_url: the model reads text",
        ),
        ([{"type": "nonsense"}], "nonsense"),
    ],
    ids=["image", "nonsense"],
)
def test_content_that_is_no_text_is_refused(greedy: ChatWoqfx, content: list[Any], said: str):
    with pytest.raises(SettingsError, match=said):
        greedy.invoke([HumanMessage(content)])


def test_thoughts_are_not_shown_again(greedy: ChatWoqfx):
    thought = AIMessage([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}])
    question = greedy._question([HumanMessage("x"), thought, HumanMessage("y")], None, {})
    assert greedy.load().tokenizer.decode(question.prompt.tokens) == "[user] x\n[assistant] hi\n[user] y\n[assistant] "


def test_a_model_without_a_template_says_so(greedy: ChatWoqfx, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(greedy.load().tokenizer, "chat_template", None)
    with pytest.raises(SettingsError, match="the model has no chat template: use plain text prompts"):
        greedy.invoke("x")
    monkeypatch.setattr(greedy.load().tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(SettingsError, match="refuses the messages: roles must alternate"):
        greedy.invoke("x")
