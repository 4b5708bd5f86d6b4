"""The official client against the server: what it gets is what the model itself says."""

from __future__ import annotations

import json
import threading

import openai
import pytest
import torch

from woqfx.generating import Settings

PROMPT = "Once upon a time"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a town.",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string", "enum": ["Oslo", "Rome"]}},
                "required": ["town"],
            },
        },
    }
]
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def greedy(generator, prompt, count, **more):
    return generator.generate([prompt], Settings(max_new_tokens=count, temperature=0, **more))[0]


def test_the_model_is_listed(client):
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("tiny", "woqfx")
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_completion_is_what_the_model_says(client, generator):
    found = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, temperature=0)
    wanted = greedy(generator, generator.text_prompt(PROMPT), 12)
    assert found.choices[0].text == wanted.text
    assert found.choices[0].finish_reason == wanted.finish
    assert found.usage.prompt_tokens == len(generator.encode(PROMPT))
    assert found.usage.completion_tokens == wanted.new_tokens
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_several_prompts_each_with_n_answers_in_order(client, generator):
    prompts = [PROMPT, "A", generator.encode("It was")]
    found = client.completions.create(model="tiny", prompt=prompts[:2], max_tokens=6, temperature=0, n=2)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    wanted = [greedy(generator, generator.text_prompt(prompt), 6).text for prompt in prompts[:2]]
    assert [choice.text for choice in found.choices] == [wanted[0], wanted[0], wanted[1], wanted[1]]
    tokens = client.completions.create(model="tiny", prompt=[prompts[2]], max_tokens=6, temperature=0)
    text = client.completions.create(model="tiny", prompt="It was", max_tokens=6, temperature=0)
    assert tokens.choices[0].text == text.choices[0].text


def test_a_stream_adds_up_to_the_whole(client):
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**asked)
    parts = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].text for part in parts if part.choices) == whole.choices[0].text
    assert [p.choices[0].finish_reason for p in parts if p.choices][-1] == whole.choices[0].finish_reason
    assert parts[-1].usage == whole.usage
    assert len({part.id for part in parts}) == 1


def test_a_stop_text_ends_the_answer_before_it(client, generator):
    text = greedy(generator, generator.text_prompt(PROMPT), 30).text
    stop = text[5:7]
    found = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=30, temperature=0, stop=[stop])
    assert found.choices[0].text == text[: text.index(stop)]
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.completion_tokens < 30


def test_the_same_seed_gives_the_same_text_and_n_differ(client):
    def draw(seed, n=1):
        asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 1.0}
        return [choice.text for choice in client.completions.create(**asked, seed=seed, n=n).choices]

    assert draw(1) == draw(1) != draw(2)
    first, second = draw(1, n=2)
    assert [first] == draw(1)
    assert [second] == draw(2)


def test_echo_scores_the_prompt_as_the_model_does(client, generator):
    tokens = generator.encode(PROMPT)
    found = client.completions.create(
        model="tiny", prompt=[tokens], max_tokens=1, temperature=0, echo=True, logprobs=2
    ).choices[0]
    with torch.no_grad():
        scores = generator.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    wanted = [float(scores[at, token]) for at, token in enumerate(tokens[1:])]
    assert found.logprobs.token_logprobs[0] is None
    assert found.logprobs.token_logprobs[1:-1] == pytest.approx(wanted, abs=1e-5)
    assert found.logprobs.token_logprobs[-1] == pytest.approx(float(scores[-1].max()), abs=1e-5)
    for at, top in enumerate(found.logprobs.top_logprobs[1:-1]):
        assert max(top.values()) == pytest.approx(float(scores[at].max()), abs=1e-5)
    assert "".join(found.logprobs.tokens) == found.text
    assert found.text.startswith(PROMPT)


def test_echo_alone_generates_nothing(client):
    found = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=0, echo=True, logprobs=0)
    assert found.choices[0].text == PROMPT
    assert found.usage.completion_tokens == 0


def test_a_chat_goes_through_the_template(client, generator):
    found = client.chat.completions.create(model="tiny", messages=HELLO, max_completion_tokens=10, temperature=0)
    wanted = greedy(generator, generator.text_prompt("<user>Hello</user>\n<assistant>"), 10)
    assert found.choices[0].message.content == wanted.text
    assert found.choices[0].finish_reason == wanted.finish


def test_a_streamed_chat_adds_up_with_its_logprobs(client):
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 10, "temperature": 0}
    asked |= {"logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**asked).choices[0]
    parts = [part.choices[0] for part in client.chat.completions.create(**asked, stream=True)]
    assert parts[0].delta.role == "assistant"
    assert "".join(part.delta.content or "" for part in parts) == whole.message.content
    scores = [score for part in parts if part.logprobs for score in part.logprobs.content]
    assert scores == whole.logprobs.content
    assert all(len(score.top_logprobs) == 3 for score in scores)
    assert all(score.top_logprobs[0].logprob == score.logprob for score in scores)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_tool_that_must_be_called_is_called_by_its_schema(client, stream):
    asked = {"model": "tiny", "messages": HELLO, "tools": TOOLS, "tool_choice": "required", "max_tokens": 200}
    asked |= {"parallel_tool_calls": False, "temperature": 0}
    if stream:
        parts = [part.choices[0] for part in client.chat.completions.create(**asked, stream=True)]
        calls = [call for part in parts for call in part.delta.tool_calls or ()]
        finish = parts[-1].finish_reason
    else:
        choice = client.chat.completions.create(**asked).choices[0]
        calls, finish = choice.message.tool_calls, choice.finish_reason
    assert [call.function.name for call in calls] == ["weather"]
    assert json.loads(calls[0].function.arguments)["town"] in ("Oslo", "Rome")
    assert finish == "tool_calls"


def test_a_conversation_with_a_call_and_its_result_goes_on(client):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Oslo"}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "snow", "tool_call_id": "1"},
    ]
    found = client.chat.completions.create(
        model="tiny", messages=messages, tools=TOOLS, tool_choice="none", max_tokens=5, temperature=0
    )
    assert found.choices[0].message.tool_calls is None
    assert found.choices[0].finish_reason in ("length", "stop")


def test_an_answer_follows_a_schema(client):
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "switch", "schema": schema, "strict": True}}
    found = client.chat.completions.create(
        model="tiny", messages=HELLO, response_format=form, max_tokens=100, temperature=0
    )
    assert isinstance(json.loads(found.choices[0].message.content)["on"], bool)


def test_clients_that_come_together_get_what_each_gets_alone(client):
    prompts = ["A", "Once upon", "It was a dark and stormy night", "x"]

    def ask(prompt):
        return client.completions.create(model="tiny", prompt=prompt, max_tokens=10, temperature=0).choices[0].text

    alone = [ask(prompt) for prompt in prompts]
    together = dict.fromkeys(prompts, "")
    threads = [threading.Thread(target=lambda p=prompt: together.update({p: ask(p)})) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(together.values()) == alone
