"""Tools: the dialect is read off the chat template, calls follow their schemas, answers are taken apart."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from woqfx.errors import SettingsError
from woqfx.generating import Settings, TextGenerator
from woqfx.generating.dialect import OWN, Dialect
from woqfx.generating.tools import ToolCall, ToolUse

_PLAIN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
_BEGIN = "{% if add_generation_prompt %}[assistant] {% endif %}"
_TOLD = "{% if tools %}[tools] {{ tools | tojson }}\n{% endif %}"


def template(call: str) -> str:
    """A chat template that knows of tools, and writes calls in this way."""
    return (
        f"{_TOLD}{{% for m in messages %}}[{{{{ m['role'] }}}}] {{{{ m['content'] }}}}"
        "{% if m.tool_calls %}{% for c in m.tool_calls %}" + call + "{% endfor %}</s>{% endif %}\n{% endfor %}" + _BEGIN
    )


#: How Qwen, Llama 3.1 and models of the Hermes kind write calls.
HERMES = template(
    """<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>"""
)
LLAMA = template("""{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}""")
BRACKETS = template("""<s>[{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}]""")
XML = template(
    "<f={{ c.function.name }}>{% for k, v in c.function.arguments.items() %}<p={{ k }}>{{ v }}</p>{% endfor %}</f>"
)

DIALECTS = {
    "hermes": (HERMES, Dialect('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", native=True)),
    "llama": (LLAMA, Dialect('{"name": "', '", "parameters": ', "}", native=True)),
    "special token": (BRACKETS, Dialect('<s>[{"name": "', '", "arguments": ', "}]", native=True)),
    "no JSON": (XML, OWN),
    "no tools": (_PLAIN + _BEGIN, OWN),
}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": f"It is {name}.", "parameters": schema}}


ADD = tool("add", a={"type": "integer", "minimum": 0, "maximum": 99}, b={"type": "integer", "minimum": 0, "maximum": 9})
NOW = tool("now")


@pytest.fixture(params=DIALECTS)
def speaking(request: pytest.FixtureRequest, generator: TextGenerator) -> tuple[TextGenerator, Dialect]:
    """A model with a chat template, and its dialect."""
    text, dialect = DIALECTS[request.param]
    tokenizer = copy.deepcopy(generator.tokenizer)
    tokenizer.chat_template = text
    return TextGenerator(generator.model, tokenizer), dialect


def ask(use: ToolUse, generator: TextGenerator, asked: Settings) -> str:
    prompt = use.prompt([{"role": "user", "content": "hello"}])
    (answer,) = generator.generate([prompt], asked, constraint=use.constraint, special=use.special)
    return answer.text


def test_the_dialect_is_found(speaking: tuple[TextGenerator, Dialect]):
    generator, dialect = speaking
    assert ToolUse(generator, [ADD]).dialect == dialect


@pytest.mark.parametrize("asked", [Settings(temperature=0), Settings(temperature=2.0, seed=1)], ids=["greedy", "wild"])
@pytest.mark.parametrize("choice", ["any", "add", "now"])
def test_a_call_that_must_come_comes_and_fits_its_schema(
    speaking: tuple[TextGenerator, Dialect], choice: str, asked: Settings
):
    generator, _ = speaking
    use = ToolUse(generator, [ADD, NOW], choice=choice)
    reply = use.parse(ask(use, generator, asked))
    (call,) = reply.calls
    assert reply.text == "" and reply.broken == () and choice in ("any", call.name)
    if call.name == "add":
        assert list(call.arguments) == ["a", "b"] and 0 <= call.arguments["a"] <= 99 and 0 <= call.arguments["b"] <= 9
    else:
        assert call.arguments == {}


def test_a_model_that_may_choose_may_just_talk(speaking: tuple[TextGenerator, Dialect]):
    generator, _ = speaking
    use = ToolUse(generator, [ADD])
    text = ask(use, generator, Settings(max_new_tokens=12, temperature=0))
    assert use.parse(text).text == text and text


def test_what_was_written_is_read_again(speaking: tuple[TextGenerator, Dialect]):
    generator, dialect = speaking
    use = ToolUse(generator, [ADD, NOW])
    calls = (ToolCall("add", {"a": 1, "b": 2}), ToolCall("now", {}))
    text = "Let me see.\n" + "\n".join(dialect.write(call.name, call.arguments) for call in calls)
    reply = use.parse(text)
    assert (reply.text, reply.calls, reply.broken) == ("Let me see.", calls, ())
    cut = use.parse(text[: text.index('"b"')])
    assert cut.text == "Let me see." and cut.calls == () and len(cut.broken) == 1


def test_a_template_without_tools_is_told_of_them_in_the_system_message(generator: TextGenerator):
    use = ToolUse(generator, [ADD])
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 2?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}],
        },
        {"role": "tool", "content": "3", "tool_call_id": "x"},
    ]
    prompt = generator.tokenizer.decode(use.prompt(messages).tokens)
    system, user, call, result, _ = prompt.split("\n[")
    assert system.startswith("[system] Be brief.") and '"name": "add"' in system and "maximum" in system
    assert user == "user] 1 + 2?"
    assert call == 'assistant] <tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    assert result == "user] <tool_response>\n3\n</tool_response>"


def test_no_call_means_no_tools(generator: TextGenerator):
    use = ToolUse(generator, [ADD], choice="none")
    plain = generator.chat_prompt([{"role": "user", "content": "x"}])
    assert use.constraint is None and use.prompt([{"role": "user", "content": "x"}]) == plain
    assert use.parse("<tool_call>").text == "<tool_call>"


@pytest.mark.parametrize(
    ("tools", "choice", "said"),
    [
        ([ADD], "subtract", "tool_choice is 'subtract', and the tools are: add"),
        ([], "auto", "the tools are: none"),
        ([{"type": "function", "function": {"name": 'a"b'}}], "auto", "a tool must be"),
        ([{"name": "add"}], "auto", "a tool must be"),
    ],
    ids=["choice", "none", "name", "form"],
)
def test_what_is_no_tool_is_refused(generator: TextGenerator, tools: list[Any], choice: str, said: str):
    with pytest.raises(SettingsError, match=said):
        ToolUse(generator, tools, choice=choice)
