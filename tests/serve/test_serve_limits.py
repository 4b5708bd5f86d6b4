"""What a server refuses, and how it says so; and that nothing runs on for clients that have gone."""

from __future__ import annotations

import json
import threading
import time

import httpx
import openai
import pytest
from serve_threads import busy

from woqfx.errors import SettingsError
from woqfx.serve import Limits
from woqfx.serve.requests import NEUTRAL, NO_EFFECT, CompletionRequest

COMPLETION = {"prompt": "Once upon a time", "max_tokens": 3, "temperature": 0}
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "temperature": 0}
NEUTRAL_OTHERS = {
    "best_of": 2,
    "logit_bias": {"1": 2},
    "modalities": ["audio"],
    "suffix": "x",
}


def refused(address, path, body, status, headers=None):
    headers = {"Content-Type": "application/json", **(headers or {})}
    answer = httpx.post(f"{address}/v1/{path}", content=json.dumps(body), timeout=60, headers=headers)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_health_needs_nothing(address):
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("path", "change", "param", "message"),
    [
        ("completions", {"max_tokns": 3}, "max_tokns", "max_tokns"),
        ("completions", {"prompt": []}, "prompt", "prompt: it is empty"),
        ("completions", {"prompt": [999999]}, None, "token 999999, and the model knows 259"),
        ("completions", {"prompt": "x" * 5000}, None, "shorten the prompt"),
        ("completions", {"temperature": -1}, "temperature", "temperature"),
        ("completions", {"max_tokens": 0}, "max_tokens", "max_tokens: it is 0, and without echo there is nothing"),
        ("completions", {"stop": [""]}, None, "stop"),
        ("completions", {"prompt": "\ud800"}, None, "half of a surrogate pair"),
        ("completions", {"seed": 2**64}, None, "seed must be a number from 0 to 18446744073709551615"),
        ("completions", {"temperature": 1e-300}, None, "temperature 1e-300 is too small to divide by"),
        ("completions", {"repetition_penalty": 1e-300}, None, "repetition_penalty must be a number from 0.001 to"),
        ("completions", {"presence_penalty": 3}, "presence_penalty", "presence_penalty"),
        ("completions", {"n": 1000}, "n", "1000 answers"),
        ("completions", {"stream": True, "echo": True, "logprobs": 1}, "stream", "come all at once"),
        (
            "completions",
            {"logit_bias": {"1": 2}},
            "logit_bias",
            "logit_bias: {'1': 2} is nothing that this server does",
        ),
        ("chat/completions", {"messages": []}, "messages", "messages"),
        ("chat/completions", {"messages": [{"role": "poet", "content": "x"}]}, "messages.0.role", "messages.0.role"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.str",
            "messages.0.content",
        ),
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs", "it needs logprobs"),
        ("chat/completions", {"tool_choice": "required"}, "tool_choice", "it needs tools"),
        ("chat/completions", {"tools": [{"type": "function", "function": {"name": "a b"}}]}, None, "a tool must be"),
        (
            "chat/completions",
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": "b"}}]},
            None,
            "the parameters of tool 'a' must be a JSON schema",
        ),
        ("chat/completions", {"response_format": {"type": "xml"}}, None, "response_format must be"),
        *(
            ("chat/completions", {"chat_template_kwargs": {name: value}}, "chat_template_kwargs", f"{name!r} is not a")
            for name, value in (("chat_template", "{{ 1 }}"), ("messages", []), ("self", 1), ("answer", False))
        ),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_is_wrong_is_named(address, path, change, param, message):
    base = COMPLETION if path == "completions" else CHAT
    error = refused(address, path, base | change, 400)
    assert message in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_impossible_prompt_is_a_status_not_a_broken_stream(address, stream):
    error = refused(address, "completions", COMPLETION | {"prompt": "x" * 5000, "stream": stream}, 400)
    assert "shorten the prompt" in error["message"]


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_what_would_change_the_answer_elsewhere_is_refused_here(name):
    with pytest.raises(ValueError, match=name):
        CompletionRequest(prompt="x", **{name: NEUTRAL_OTHERS[name]})
    for value in NEUTRAL[name]:
        CompletionRequest(prompt="x", **{name: value})


@pytest.mark.parametrize("name", NO_EFFECT)
def test_bookkeeping_changes_nothing(address, name):
    plain = httpx.post(f"{address}/v1/completions", json=COMPLETION, timeout=60).json()
    with_it = httpx.post(f"{address}/v1/completions", json=COMPLETION | {name: "x"}, timeout=60).json()
    assert with_it["choices"] == plain["choices"]


def test_another_model_is_not_here(address):
    error = refused(address, "completions", COMPLETION | {"model": "gpt-7"}, 404)
    assert error["code"] == "model_not_found"
    assert "'tiny'" in error["message"]


def test_no_json_and_no_route(address):
    answer = httpx.post(f"{address}/v1/completions", content=b"{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", None)
    assert "the body is no JSON" in error["message"]
    assert httpx.get(f"{address}/v1/nothing").status_code == 404


def test_the_key(generator, serve):
    with serve(generator, api_key="secret") as address:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            refused(address, "completions", COMPLETION, 401, headers=header)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()
        right = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)
        assert right.completions.create(model="tiny", **COMPLETION).choices
        assert httpx.get(f"{address}/health").status_code == 200


def test_a_local_server_is_for_its_own_names(generator, serve):
    with serve(generator, local=True) as address:
        port = address.rpartition(":")[2]
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", "LOCALHOST", f"[::1]:{port}", "127.0.0.2"):
            assert httpx.get(f"{address}/v1/models", headers={"Host": host}).status_code == 200, host
        for host in (
            f"rebound.example:{port}",
            "localhost.example",
            "10.0.0.1",
            "0.0.0.0",
            "127.0.0.1.example",
            "[::1",
        ):
            error = refused(address, "completions", COMPLETION, 403, headers={"Host": host})
            assert error["type"] == "permission_error" and "--api-key" in error["message"], host
        assert httpx.get(f"{address}/health", headers={"Host": "rebound.example"}).status_code == 200


def test_bodies_prompts_and_answers_are_bounded(generator, serve):
    with serve(generator, limits=Limits(body=2000, prompt_tokens=8, new_tokens=5, choices=2)) as address:
        assert "2000 bytes" in refused(address, "completions", {"prompt": "x" * 3000}, 413)["message"]
        unsaid = iter([b'{"prompt": "', b"x" * 3000, b'"}'])
        headers = {"Content-Type": "application/json"}
        assert httpx.post(f"{address}/v1/completions", content=unsaid, headers=headers).status_code == 413
        assert "takes 8" in refused(address, "completions", COMPLETION, 400)["message"]
        assert "gives 5" in refused(address, "completions", {"prompt": "a", "max_tokens": 6}, 400)["message"]
        assert "3 answers" in refused(address, "completions", {"prompt": "a", "n": 3}, 400)["message"]


@pytest.mark.parametrize("value", [0, -1])
def test_limits_that_let_nobody_in_are_refused(value):
    with pytest.raises(SettingsError, match="limit of requests must be at least 1"):
        Limits(requests=value)


def test_more_requests_than_allowed_are_told_to_come_again(generator, serve):
    with serve(generator, limits=Limits(requests=1)) as address, busy(generator) as model:
        first = threading.Thread(
            target=httpx.post, args=(f"{address}/v1/completions",), kwargs={"json": COMPLETION, "timeout": 60}
        )
        first.start()
        model.wait_until_it_runs()
        answer = httpx.post(f"{address}/v1/completions", json=COMPLETION)
        assert answer.status_code == 429
        assert answer.headers["Retry-After"] == "1"
        model.go_on()
        first.join()
        assert httpx.post(f"{address}/v1/completions", json=COMPLETION, timeout=60).status_code == 200


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_goes_away_ends_its_generation(generator, serve, stream):
    with serve(generator) as address, busy(generator, steps_apart=0.02) as model:
        model.go_on()
        asked = COMPLETION | {"max_tokens": 100, "stream": stream}
        with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=0.4) as client:
            if stream:
                with client.stream("POST", f"{address}/v1/completions", json=asked) as answer:
                    next(answer.iter_lines())
                    raise httpx.ReadTimeout("enough")
            else:
                client.post(f"{address}/v1/completions", json=asked)
        end = time.monotonic() + 20
        while model.running and time.monotonic() < end:
            time.sleep(0.05)
        assert not model.running
        assert model.steps < 90


def test_an_error_of_the_model_is_told_and_the_server_lives_on(generator, serve):
    with serve(generator) as address:
        with busy(generator, error=RuntimeError("the model broke")) as model:
            model.go_on()
            answer = httpx.post(f"{address}/v1/completions", json=COMPLETION, timeout=60)
            assert answer.status_code == 500
            assert answer.json()["error"]["type"] == "server_error"
        assert httpx.post(f"{address}/v1/completions", json=COMPLETION, timeout=60).status_code == 200


def test_an_error_in_the_middle_of_a_stream_is_its_last_event(generator, serve):
    with serve(generator) as address, busy(generator, error=RuntimeError("the model broke"), sound_steps=2) as model:
        model.go_on()
        told = httpx.post(f"{address}/v1/completions", json=COMPLETION | {"stream": True}, timeout=60)
        assert told.status_code == 200
        last = json.loads(told.text.strip().rpartition("data: ")[2])
        assert last["error"]["type"] == "server_error"


def test_variables_of_a_template_are_given_to_it(generator, address):
    said = httpx.post(f"{address}/v1/chat/completions", json=CHAT | {"chat_template_kwargs": {"mood": "x"}}, timeout=60)
    assert said.status_code == 200, said.text


def test_penalties_count_the_answer(address):
    asked = COMPLETION | {"max_tokens": 12}
    plain, penalized = (
        httpx.post(f"{address}/v1/completions", json=asked | more, timeout=60).json()["choices"][0]["text"]
        for more in ({}, {"frequency_penalty": 2, "presence_penalty": 2})
    )
    assert plain != penalized
