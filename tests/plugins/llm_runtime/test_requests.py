"""Requests of several threads share the steps of one engine, and nothing of one shows in another."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from runtime_pairs import pair_of

from woqfx_llm_runtime.requests import scheduler as scheduling
from woqfx_llm_runtime.requests.errors import ContextError, RequestError
from woqfx_llm_runtime.requests.slots import REMEMBERED

PROMPTS = [torch.arange(3 + i, 9 + 2 * i) for i in range(8)]
GREEDY = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None}


def alone(pair, prompt, **settings):
    """What transformers' model says to it."""
    made = pair.torch.generate(prompt[None], pad_token_id=0, **{**GREEDY, **settings})
    return made[0, len(prompt) :].tolist()


def left_behind(pair):
    """Slots in use, requests under way."""
    scheduler = pair.runtime._scheduler
    scheduler.slots.forget_all()
    return len(pair.engine.slots), len(scheduler._requests)


def test_tokens_come_one_by_one(pair):
    answer = pair.runtime.submit(PROMPTS[0], **GREEDY)
    assert answer.finish_reason is None
    assert list(answer) == alone(pair, PROMPTS[0]) == answer.tokens == answer.result()
    assert answer.finish_reason == "length"
    assert next(answer, None) is None
    assert left_behind(pair) == (0, 0)


def test_steps_are_shared(pair):
    answers = [pair.runtime.submit(prompt, **GREEDY) for prompt in PROMPTS]
    answers[0].result()
    assert max(pair.engine.rows) == len(PROMPTS)
    assert [answer.result() for answer in answers] == [alone(pair, prompt) for prompt in PROMPTS]
    assert len(pair.engine.rows) < 20, "the others' tokens came in steps of their own"


def test_the_end_and_its_reason(pair):
    tokens = alone(pair, PROMPTS[1])
    stop = next(token for i, token in enumerate(tokens) if i > 2 and token not in tokens[:i])
    answer = pair.runtime.submit(PROMPTS[1], **{**GREEDY, "eos_token_id": stop})
    assert answer.result() == tokens[: tokens.index(stop) + 1]
    assert answer.finish_reason == "stop"


def test_a_seed_gives_what_generate_gives_whoever_else_is_there(pair):
    settings = {**GREEDY, "do_sample": True, "temperature": 1.5}
    wanted = []
    for seed, prompt in enumerate(PROMPTS):
        torch.manual_seed(seed)
        wanted.append(alone(pair, prompt, do_sample=True, temperature=1.5))
    answers = [pair.runtime.submit(prompt, seed=seed, **settings) for seed, prompt in enumerate(PROMPTS)]
    assert [answer.result() for answer in reversed(answers)][::-1] == wanted


def test_many_threads(pair):
    def ask(i):
        prompt = PROMPTS[i % len(PROMPTS)]
        if i % 3:
            return pair.runtime.submit(prompt, **GREEDY).result()
        return pair.runtime.generate(prompt[None], pad_token_id=0, **GREEDY)[0, len(prompt) :].tolist()

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, range(24)))
    assert found == [alone(pair, PROMPTS[i % len(PROMPTS)]) for i in range(24)]
    assert max(pair.engine.rows) > 1
    assert left_behind(pair) == (0, 0)


def test_a_row_that_ends_leaves_the_batch(pair):
    tokens = [alone(pair, prompt) for prompt in PROMPTS[:3]]
    stop = tokens[0][2]
    padded = torch.zeros(3, 10, dtype=torch.int64)
    for row, prompt in enumerate(PROMPTS[:3]):
        padded[row, 10 - len(prompt) :] = prompt
    pair.runtime.generate(
        padded, attention_mask=(padded != 0).long(), pad_token_id=0, **{**GREEDY, "eos_token_id": stop}
    )
    assert pair.engine.rows[0] == 3 and pair.engine.rows[-1] < 3


def test_cancelling_from_another_thread(pair):
    answer = pair.runtime.submit(PROMPTS[2], **{**GREEDY, "max_new_tokens": 200})
    seen = []

    def read():
        for token in answer:
            seen.append(token)
            if len(seen) == 3:
                threading.Thread(target=answer.cancel).start()

    reader = threading.Thread(target=read)
    reader.start()
    reader.join(20)
    assert not reader.is_alive()
    assert 3 <= len(seen) < 200 and answer.finish_reason == "cancelled"
    assert left_behind(pair) == (0, 0)
    assert pair.runtime.submit(PROMPTS[2], **GREEDY).result() == alone(pair, PROMPTS[2])


def test_an_answer_that_is_dropped_is_given_up(pair):
    dropped = pair.runtime.submit(PROMPTS[3], **GREEDY)
    next(dropped)
    del dropped
    gc.collect()
    pair.runtime.submit(PROMPTS[0], **{**GREEDY, "max_new_tokens": 1}).result()
    assert left_behind(pair) == (0, 0)


def test_an_interrupt_ends_one_call_and_leaves_the_others(pair, monkeypatch):
    other = pair.runtime.submit(PROMPTS[1], **GREEDY)
    next(other)
    forward, calls = pair.engine.forward, []

    def interrupted(*arguments):
        forward(*arguments)
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(pair.engine, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pair.runtime.generate(PROMPTS[0][None], pad_token_id=0, **GREEDY)
    assert other.result() == alone(pair, PROMPTS[1])
    assert left_behind(pair) == (0, 0)


def test_what_one_request_raises_is_not_the_others_trouble(pair):
    def broken(tokens, scores):
        raise ZeroDivisionError("nothing to divide")

    bad = pair.runtime.submit(PROMPTS[0], logits_processor=[broken], **GREEDY)
    good = pair.runtime.submit(PROMPTS[1], **GREEDY)
    assert good.result() == alone(pair, PROMPTS[1])
    with pytest.raises(ZeroDivisionError):
        bad.result()
    assert left_behind(pair) == (0, 0)


def test_long_prompts_come_in_chunks_and_others_go_on(pair, monkeypatch):
    monkeypatch.setattr(scheduling, "PROMPT_CHUNK", 16)
    pair.runtime._scheduler._chunk = 16
    short = pair.runtime.submit(PROMPTS[0], **GREEDY)
    next(short)
    prompt = torch.arange(100) % 90 + 3
    long = pair.runtime.submit(prompt, **GREEDY)
    pair.engine.rows.clear()
    assert short.result() == alone(pair, PROMPTS[0])
    assert pair.engine.rows[:7] == [2] * 7, "the short one had to wait for the long prompt"
    assert long.result() == alone(pair, prompt)


class Counting:
    """Counts the tokens that an engine computes."""

    def __init__(self, engine, monkeypatch):
        self.tokens, forward = 0, engine.forward

        def counted(slots, counts, wanted, tokens, logits):
            forward(slots, counts, wanted, tokens, logits)
            self.tokens += sum(counts)

        monkeypatch.setattr(engine, "forward", counted)


def test_a_conversation_that_goes_on_is_not_computed_again(pair, monkeypatch):
    first = torch.arange(100) % 90 + 3
    said = pair.runtime.submit(first, **GREEDY).result()
    then = torch.cat([first, torch.tensor(said), torch.tensor([7, 8, 9])])
    counting = Counting(pair.engine, monkeypatch)
    found = pair.runtime.submit(then, **{**GREEDY, "max_new_tokens": 1}).result()
    assert counting.tokens == 1 + 3  # the last token of the answer was never computed
    assert found == alone(pair, then, max_new_tokens=1)


def test_rows_that_begin_alike_compute_their_beginning_once(pair, monkeypatch):
    system = torch.arange(60) % 80 + 3
    prompts = [torch.cat([system, torch.tensor([10 + i, 20 + i])]) for i in range(5)]
    counting = Counting(pair.engine, monkeypatch)
    settings = {**GREEDY, "max_new_tokens": 1}
    answers = [pair.runtime.submit(prompt, **settings) for prompt in prompts]
    assert [answer.result() for answer in answers] == [alone(pair, prompt, max_new_tokens=1) for prompt in prompts]
    assert counting.tokens == 62 + 4 * 2


def test_when_memory_is_short_the_youngest_waits():
    pair = pair_of("llama", max_memory=64 * 512, max_position_embeddings=256)  # 64 tokens
    prompts = [torch.arange(3 + 10 * i, 23 + 10 * i) for i in range(4)]
    answers = [pair.runtime.submit(prompt, **GREEDY) for prompt in prompts]
    assert [answer.result() for answer in answers] == [alone(pair, prompt) for prompt in prompts]
    assert left_behind(pair) == (0, 0)


def test_a_sequence_that_no_memory_can_hold_is_an_error():
    pair = pair_of("llama", max_memory=64 * 512, max_position_embeddings=256)
    with pytest.raises(ContextError, match="512 bytes a token"):
        pair.runtime.submit(torch.arange(100) % 90 + 3, **GREEDY).result()
    assert pair.runtime.submit(PROMPTS[0], **GREEDY).result() == alone(pair, PROMPTS[0])


def test_many_requests_leave_nothing_behind():
    pair = pair_of("llama", num_hidden_layers=1)
    settings = {**GREEDY, "max_new_tokens": 1}
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        prompt = torch.randint(3, 128, (int(torch.randint(2, 14, (), generator=generator)),), generator=generator)
        answer = pair.runtime.submit(prompt, **settings)
        if len(prompt) % 3:
            answer.result()
    del answer
    gc.collect()
    pair.runtime.submit(PROMPTS[0], **settings).result()
    assert len(pair.engine.slots) <= REMEMBERED
    assert left_behind(pair) == (0, 0)
    assert len(pair.engine._cache) == 0


def test_what_submit_cannot_do(pair):
    with pytest.raises(RequestError, match="submit takes one sequence, not 2"):
        pair.runtime.submit(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(RequestError, match="transformers' own loop: call generate"):
        pair.runtime.submit(PROMPTS[0], num_beams=2)
    with pytest.raises(ContextError, match="more than the 256"):
        pair.runtime.submit(PROMPTS[0], max_new_tokens=1000)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_starts_afresh(pair):
    waiting = pair.runtime.submit(PROMPTS[0], **GREEDY)
    next(waiting)
    scheduler = pair.runtime._scheduler
    with scheduler._changed:  # as if another thread held the lock at that moment
        child = os.fork()
        if child == 0:
            works = pair.runtime.submit(PROMPTS[1], **GREEDY).result() == alone(pair, PROMPTS[1])
            try:
                waiting.result()
            except RequestError as error:
                works = works and "forked" in str(error)
            os._exit(0 if works else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert waiting.result() == alone(pair, PROMPTS[0])


def test_more_end_tokens_than_a_few(pair):
    tokens = alone(pair, PROMPTS[1])
    stops = [token for token in range(128) if token not in tokens[:3]]
    answer = pair.runtime.submit(PROMPTS[1], **{**GREEDY, "eos_token_id": stops})
    assert answer.result() == alone(pair, PROMPTS[1], eos_token_id=stops)
    assert answer.finish_reason == "stop"


def test_greedy_and_drawn_tokens_share_steps(pair):
    torch.manual_seed(3)
    wanted = alone(pair, PROMPTS[2], do_sample=True, temperature=1.5)
    drawn = pair.runtime.submit(PROMPTS[2], seed=3, **{**GREEDY, "do_sample": True, "temperature": 1.5})
    greedy = pair.runtime.submit(PROMPTS[1], **GREEDY)
    assert (greedy.result(), drawn.result()) == (alone(pair, PROMPTS[1]), wanted)
    assert max(pair.engine.rows) == 2


def test_scores_that_a_processor_keeps_stay_as_they_were(pair):
    kept, copies = [], []

    def keep(tokens, scores):
        kept.append(scores)
        copies.append(scores.clone())
        return scores

    pair.runtime.submit(PROMPTS[0], logits_processor=[keep], **GREEDY).result()
    assert all(torch.equal(one, copy) for one, copy in zip(kept, copies, strict=True)) and len(kept) == 16


def test_numbers_that_are_no_tokens_are_refused(pair):
    with pytest.raises(RequestError, match=r"float32.*whole numbers"):
        pair.runtime.generate(torch.tensor([[1.5]]), **GREEDY)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"do_sample": True}], ids=str)
def test_a_prompt_of_no_token_is_refused(pair, settings):
    nothing = torch.empty(1, 0, dtype=torch.int64)
    with pytest.raises(RequestError, match=r"the prompt has no token.*bos_token_id"):
        pair.runtime.generate(nothing, max_new_tokens=3, **settings)
    with pytest.raises(RequestError, match="the prompt has no token"):
        pair.runtime.submit(nothing[0], max_new_tokens=3)
    assert left_behind(pair) == (0, 0)


def test_a_source_of_no_token_is_refused():
    pair = pair_of("t5")
    with pytest.raises(RequestError, match="the prompt has no token"):
        pair.runtime.generate(torch.empty(1, 0, dtype=torch.int64), max_new_tokens=3)


def test_a_draw_that_fails_ends_its_requests_and_nothing_else(pair, monkeypatch):
    def broken(draws):
        raise TypeError("numbers that the engine cannot take")

    with monkeypatch.context() as changed:
        changed.setattr(pair.engine, "draw", broken)
        drawn = [pair.runtime.submit(prompt, **{**GREEDY, "do_sample": True}) for prompt in PROMPTS[:2]]
        greedy = pair.runtime.submit(PROMPTS[2], **GREEDY)
        assert greedy.result() == alone(pair, PROMPTS[2])
        for answer in drawn:
            with pytest.raises(TypeError, match="cannot take"):
                answer.result()
    assert left_behind(pair) == (0, 0)
    assert pair.runtime.submit(PROMPTS[0], **GREEDY).result() == alone(pair, PROMPTS[0])
