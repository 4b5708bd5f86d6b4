"""Answers against transformers' own `generate`, alone, in batches, as streams and from threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_model

from woqfx.errors import GenerationError, SettingsError
from woqfx.generating import Answer, Piece, Settings, TextGenerator

TEXTS = ["hello", "a much longer prompt than that", "x", "né"]
GREEDY = Settings(max_new_tokens=12, temperature=0)
DRAWN = Settings(max_new_tokens=12, temperature=1.3, top_k=50, top_p=0.9, seed=3)


def answers(generator: TextGenerator, texts: list[str], asked: Settings) -> list[Answer]:
    return generator.generate([generator.text_prompt(text) for text in texts], asked)


def reference(generator: TextGenerator, text: str, **asked: Any) -> str:
    """What transformers gives for one prompt."""
    inputs = generator.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    ids = generator.model.generate(**inputs, **asked)[0]
    skipped = 1 if generator.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    return str(generator.tokenizer.decode(ids[skipped:], skip_special_tokens=True))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "opt", "gemma2", "bloom", "mixtral", "t5", "bart"])
def test_a_batch_gives_what_transformers_gives_for_each_prompt_alone(family: str, tokenizer: Any):
    ours = TextGenerator(tiny_model(family, vocab_size=259), tokenizer)
    texts = [answer.text for answer in answers(ours, TEXTS, GREEDY)]
    assert texts == [reference(ours, text, max_new_tokens=12, do_sample=False) for text in TEXTS]


@pytest.mark.parametrize(
    "asked",
    [
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"num_beams": 3},
        {"num_beams": 2, "length_penalty": 2.0, "early_stopping": True},
        {"min_new_tokens": 12},
        {"suppress_tokens": [74, 75, 76]},
    ],
    ids=str,
)
def test_settings_mean_what_they_mean_in_transformers(generator: TextGenerator, asked: dict[str, Any]):
    ours = Settings.read({"max_new_tokens": 12, "temperature": 0, **asked})
    texts = [answer.text for answer in answers(generator, TEXTS, ours)]
    assert texts == [reference(generator, text, max_new_tokens=12, do_sample=False, **asked) for text in TEXTS]


def test_a_draw_does_not_depend_on_its_neighbours_or_torchs_own_generator(generator: TextGenerator):
    together = answers(generator, TEXTS, DRAWN)
    state = torch.get_rng_state()
    assert [answers(generator, [text], DRAWN)[0] for text in TEXTS] == together
    assert torch.equal(torch.get_rng_state(), state)
    assert answers(generator, TEXTS, Settings.read({"seed": 4}, DRAWN)) != together


def test_draws_follow_the_model(generator: TextGenerator):
    """2000 draws of one token, against the probabilities that transformers' arithmetic gives."""
    ids = torch.tensor([generator.text_prompt("hello").tokens])
    with torch.no_grad():
        logits = generator.model(ids).logits[0, -1] / 0.2
    values, tokens = logits.topk(5)
    wanted = dict(zip(tokens.tolist(), values.softmax(-1).tolist(), strict=True))
    sampler = generator.request(generator.text_prompt("hello"), Settings(temperature=0.2, top_k=5, seed=0)).sampler
    drawn = [sampler.choose(logits * 0.2, ()).token for _ in range(2000)]
    assert {token: drawn.count(token) / 2000 for token in wanted} == pytest.approx(wanted, abs=0.04)
    assert set(drawn) <= set(wanted)


def test_openais_penalties_count_the_answer_alone(generator: TextGenerator):
    sampler = generator.request(
        generator.text_prompt("hello"), Settings(temperature=0, frequency_penalty=1.0, presence_penalty=0.5)
    ).sampler
    scores = torch.tensor([2.0, 1.0, -0.4, -9.0])
    # 2, then 2 - 1.5 < 1, then 1 - 1.5 = -0.5 < 0.5, then 2 - 2.5 = -0.5 = 1 - 1.5 < -0.4
    assert [sampler.choose(scores, (0, 0, 0)).token for _ in range(4)] == [0, 1, 0, 2]


def test_log_probabilities(generator: TextGenerator):
    asked = Settings(max_new_tokens=3, temperature=0, logprobs=2)
    (answer,) = answers(generator, ["hello"], asked)
    prompt = [*generator.text_prompt("hello").tokens]
    with torch.no_grad():
        logprobs = generator.model(torch.tensor([[*prompt, *(score.token for score in answer.scores)]])).logits[0]
    for at, score in enumerate(answer.scores):
        values, tokens = logprobs[len(prompt) - 1 + at].log_softmax(-1).topk(2)
        assert [token for token, _ in score.top] == tokens.tolist() and score.token == int(tokens[0])
        assert [score.logprob, score.top[1][1]] == pytest.approx(values.tolist(), abs=1e-4)


class TestStop:
    @settings(deadline=None, max_examples=25)
    @given(start=st.integers(0, 10), size=st.integers(1, 5))
    def test_the_answer_ends_before_a_stop_text_and_generation_with_it(
        self, generator: TextGenerator, start: int, size: int
    ):
        (whole,) = answers(generator, ["hello"], GREEDY)
        stop = whole.text[start : start + size]
        if not stop:
            return
        (cut,) = answers(generator, ["hello"], Settings.read({"stop": [stop]}, GREEDY))
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert (cut.finish, cut.stop_text) == ("stop", stop)
        assert cut.new_tokens <= whole.new_tokens

    def test_rows_stop_by_themselves(self, generator: TextGenerator):
        whole = answers(generator, TEXTS, GREEDY)
        asked = [
            Settings.read({"stop": [answer.text[2 + row]], "max_tokens": 12 - row}, GREEDY)
            for row, answer in enumerate(whole)
        ]
        requests = [generator.request(generator.text_prompt(text), one) for text, one in zip(TEXTS, asked, strict=True)]
        generator.run(requests)
        assert [request.answer.text for request in requests] == [
            answer.text[: answer.text.index(answer.text[2 + row])] for row, answer in enumerate(whole)
        ]

    def test_special_tokens_stop_too(self, generator: TextGenerator):
        request = generator.request(generator.text_prompt("x"), Settings(stop=("<s>",)))
        assert {1, 2} <= request.ends

    def test_an_end_of_sequence_is_counted_and_is_no_text(self, generator: TextGenerator):
        (whole,) = answers(generator, ["hello"], Settings.read({"logprobs": 0}, GREEDY))
        token = whole.scores[0].token
        ours = TextGenerator(generator.model, generator.tokenizer)
        ours.__dict__["_ends"] = frozenset({token})
        (answer,) = answers(ours, ["hello"], GREEDY)
        assert (answer.text, answer.finish, answer.stop_text) == ("", "stop", None)
        assert (answer.prompt_tokens, answer.new_tokens) == (5, 1)


class TestStream:
    @pytest.mark.parametrize(
        "asked", [GREEDY, DRAWN, Settings.read({"stop": ["J"]}, GREEDY)], ids=["greedy", "drawn", "stop"]
    )
    def test_the_pieces_are_the_answer(self, generator: TextGenerator, asked: Settings):
        (whole,) = answers(generator, ["hello"], asked)
        with generator.stream(generator.text_prompt("hello"), asked) as stream:
            assert "".join(piece.text for piece in stream) == whole.text
        assert stream.answer == whole

    def test_leaving_it_cancels_the_generation(self, generator: TextGenerator):
        with generator.stream(generator.text_prompt("x"), Settings(max_new_tokens=400, temperature=0)) as stream:
            next(iter(stream))
        assert stream.answer.finish == "cancelled" and stream.answer.new_tokens < 400
        assert not [thread for thread in threading.enumerate() if thread.name == "woqfx-stream"]

    def test_the_model_may_be_asked_in_between(self, generator: TextGenerator):
        with generator.stream(generator.text_prompt("hello"), GREEDY) as stream:
            first = next(iter(stream))
            between = answers(generator, ["x"], GREEDY)
            rest = "".join(piece.text for piece in stream)
        assert first.text + rest == answers(generator, ["hello"], GREEDY)[0].text
        assert between == answers(generator, ["x"], GREEDY)

    def test_an_error_of_the_model_reaches_the_reader(self, tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
        ours = TextGenerator(tiny_model("llama", vocab_size=259), tokenizer)
        monkeypatch.setattr(ours.model, "forward", broken)
        with pytest.raises(RuntimeError, match="out of order"):
            list(ours.stream(ours.text_prompt("x"), GREEDY))

    def test_beams_cannot_be_streamed(self, generator: TextGenerator):
        with pytest.raises(SettingsError, match="num_beams"):
            generator.stream(generator.text_prompt("x"), Settings.read({"num_beams": 2}))


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("out of order")


class TestThreads:
    def test_requests_of_many_threads_share_batches_and_each_gets_its_own(
        self, generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
    ):
        sizes = []
        forward = generator.model.generate

        def counting(*args: Any, **kwargs: Any) -> Any:
            sizes.append(len(kwargs["input_ids"]))
            return forward(*args, **kwargs)

        monkeypatch.setattr(generator.model, "generate", counting)
        asked = [Settings(max_new_tokens=5 + at, temperature=at / 4, seed=at) for at in range(8)]
        got: dict[int, Answer] = {}

        def work(at: int) -> None:
            got[at] = answers(generator, [TEXTS[at % 4]], asked[at])[0]

        threads = [threading.Thread(target=work, args=(at,)) for at in range(8)]
        with generator.together(8):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert sum(sizes) == 8 and max(sizes) > 1
        assert [got[at] for at in range(8)] == [answers(generator, [TEXTS[at % 4]], asked[at])[0] for at in range(8)]

    def test_one_rows_error_is_its_own(self, generator: TextGenerator):
        def angry(piece: Piece) -> None:
            raise ValueError("listener")

        good = generator.request(generator.text_prompt("hello"), GREEDY)
        bad = generator.request(generator.text_prompt("x"), GREEDY, listener=angry)
        generator.run([bad, good])
        assert good.answer == answers(generator, ["hello"], GREEDY)[0]
        with pytest.raises(ValueError, match="listener"):
            _ = bad.answer

    def test_cancelling_ends_one_request_of_a_batch(self, generator: TextGenerator):
        requests: list[Any] = []

        def stop(piece: Piece) -> None:
            requests[0].cancel()

        requests.append(generator.request(generator.text_prompt("hello"), GREEDY, listener=stop))
        requests.append(generator.request(generator.text_prompt("x"), GREEDY))
        generator.run(requests)
        assert requests[0].answer.finish == "cancelled" and requests[0].answer.new_tokens < 12
        assert requests[1].answer == answers(generator, ["x"], GREEDY)[0]

    def test_an_interrupted_thread_leaves_the_model_usable(self, tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
        ours = TextGenerator(tiny_model("llama", vocab_size=259), tokenizer)

        def interrupted(*_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(ours.model, "forward", interrupted)
            with pytest.raises(KeyboardInterrupt):
                answers(ours, ["x"], GREEDY)
        assert answers(ours, ["x"], GREEDY)[0].new_tokens == 12


def test_a_timeout_is_an_error(generator: TextGenerator):
    with pytest.raises(GenerationError, match=r"timeout: 0 tokens came in 0 seconds"):
        answers(generator, ["x"], Settings(timeout=0))


def test_the_context_ends_an_answer_and_a_prompt_beyond_it_is_refused(tokenizer: Any):
    generator = TextGenerator(tiny_model("llama", vocab_size=259, max_position_embeddings=512), tokenizer)
    (answer,) = answers(generator, ["x" * 505], Settings(max_new_tokens=50, temperature=0))
    assert (answer.new_tokens, answer.finish) == (7, "length")
    with pytest.raises(SettingsError, match="the prompt has 512 tokens and the model's context 512"):
        answers(generator, ["x" * 512], GREEDY)
    assert answers(generator, ["xxxx"], Settings(max_length=10, temperature=0))[0].new_tokens == 6
    with pytest.raises(SettingsError, match="max_length is 3"):
        answers(generator, ["xxxx"], Settings(max_length=3))


def test_an_empty_prompt_is_refused(generator: TextGenerator):
    with pytest.raises(SettingsError, match="the prompt is empty"):
        generator.text_prompt("")


def test_a_models_own_way_to_draw_counts_until_the_caller_says_otherwise(tokenizer: Any):
    model = tiny_model("llama", vocab_size=259)
    greedy = answers(TextGenerator(model, tokenizer), ["hello"], GREEDY)
    model.generation_config.do_sample, model.generation_config.temperature = True, 5.0
    drawing = TextGenerator(model, tokenizer)
    drawn = {answers(drawing, ["hello"], Settings(max_new_tokens=12))[0].text for _ in range(3)}
    assert len(drawn) == 3
    assert answers(drawing, ["hello"], GREEDY) == greedy
