"""`generate` on the runtime gives the tokens that transformers' model gives, whichever way it goes."""

from __future__ import annotations

import pytest
import torch
from runtime_pairs import pair_of
from transformers import GenerationConfig, StoppingCriteria, TextStreamer
from transformers.generation import LogitsProcessor

from woqfx_llm_runtime.requests.errors import ContextError, RequestError

PROMPTS = torch.tensor([[0, 0, 0, 5, 9, 17, 3], [8, 3, 90, 22, 7, 7, 41], [0, 0, 0, 0, 0, 0, 12]])
MASK = (PROMPTS != 0).long()

FAST = {
    "greedy": {},
    "temperature": {"do_sample": True, "temperature": 0.7},
    "top-k and top-p": {"do_sample": True, "top_k": 20, "top_p": 0.8},
    "min-p": {"do_sample": True, "min_p": 0.1, "top_k": 0},
    "penalty": {"repetition_penalty": 1.4},
    "no repeats": {"no_repeat_ngram_size": 2},
    "at least": {"min_new_tokens": 10, "eos_token_id": [41, 2, 17]},
    "many ends": {"eos_token_id": list(range(2, 60))},
    "two each": {"do_sample": True, "num_return_sequences": 2},
}
SLOW = {
    "beams": {"num_beams": 3},
    "beams, two each": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
    "sampled beams": {"num_beams": 2, "do_sample": True},
}


def same(pair, prompts, **settings):
    """Both give these tokens."""
    settings = {"max_new_tokens": 12, "pad_token_id": 0, "do_sample": False, **settings}
    torch.manual_seed(3)
    wanted = pair.torch.generate(prompts, **settings)
    torch.manual_seed(3)
    found = pair.runtime.generate(prompts, **settings)
    assert torch.equal(found, wanted)
    return found


@pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
@pytest.mark.parametrize("name", FAST)
def test_the_fast_path_gives_transformers_tokens(pair, name, batched, monkeypatch):
    prompts, mask = (PROMPTS, MASK) if batched else (PROMPTS[1:2], MASK[1:2])
    settings = {"max_new_tokens": 12, "pad_token_id": 0, "do_sample": False, **FAST[name]}
    torch.manual_seed(3)
    wanted = pair.torch.generate(prompts, attention_mask=mask, **settings)
    monkeypatch.setattr(pair.runtime, "_compute", lambda *_: pytest.fail("it was computed outside the scheduler"))
    torch.manual_seed(3)
    assert torch.equal(pair.runtime.generate(prompts, attention_mask=mask, **settings), wanted)


@pytest.mark.parametrize("name", SLOW)
def test_other_ways_go_through_transformers_loops(pair, name):
    same(pair, PROMPTS, attention_mask=MASK, **SLOW[name])
    assert not pair.engine.slots, "keys and values were not given back"


def test_scores_and_logits_come_with_the_tokens(pair):
    settings = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "pad_token_id": 0}
    one, other = (
        model.generate(PROMPTS, attention_mask=MASK, output_scores=True, output_logits=True, **settings)
        for model in (pair.torch, pair.runtime)
    )
    assert torch.equal(other.sequences, one.sequences)
    torch.testing.assert_close(torch.stack(other.logits), torch.stack(one.logits), rtol=1e-4, atol=1e-4)


def test_an_assistant_model(pair):
    assistant = pair_of("llama", max_position_embeddings=256, num_hidden_layers=1)
    same(pair, PROMPTS[1:2], assistant_model=assistant.torch)
    found = pair.runtime.generate(PROMPTS[1:2], assistant_model=assistant.runtime, max_new_tokens=12, do_sample=False)
    assert torch.equal(found, pair.torch.generate(PROMPTS[1:2], max_new_tokens=12, do_sample=False))


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.2}], ids=["plain", "penalty"])
def test_prompt_lookup_changes_no_token_and_saves_steps(pair, settings):
    prompt = PROMPTS[1:2].repeat(1, 4)
    plain = same(pair, prompt, max_new_tokens=60, **settings)
    steps = len(pair.engine.rows)
    pair.engine.rows.clear()
    pair.runtime._scheduler.slots.forget_all()
    settings = {"max_new_tokens": 60, "pad_token_id": 0, "do_sample": False, **settings}
    found = pair.runtime.generate(prompt, prompt_lookup_num_tokens=6, **settings)
    assert torch.equal(found, plain)
    assert len(pair.engine.rows) < steps if "repetition_penalty" not in settings else True


def test_sampling_with_prompt_lookup_draws_the_same_tokens(pair):
    prompt, settings = PROMPTS[1:2].repeat(1, 4), {"do_sample": True, "temperature": 0.3, "max_new_tokens": 30}
    torch.manual_seed(1)
    wanted = pair.torch.generate(prompt, pad_token_id=0, **settings)
    torch.manual_seed(1)
    assert torch.equal(pair.runtime.generate(prompt, pad_token_id=0, prompt_lookup_num_tokens=5, **settings), wanted)


class Forbid(LogitsProcessor):
    def __call__(self, input_ids, scores):
        scores[:, : scores.shape[1] // 2] = -float("inf")
        return scores


class AfterSeven(StoppingCriteria):
    def __call__(self, input_ids, scores, **_):
        return torch.full((len(input_ids),), input_ids.shape[1] >= PROMPTS.shape[1] + 7)


def test_processors_and_criteria_of_ones_own(pair):
    found = same(pair, PROMPTS, attention_mask=MASK, logits_processor=[Forbid()], stopping_criteria=[AfterSeven()])
    assert found.shape[1] == PROMPTS.shape[1] + 7
    assert int(found[:, PROMPTS.shape[1] :].min()) >= 64


class Kept(TextStreamer):
    def __init__(self):
        self.put_tokens, self.ended = [], False

    def put(self, value):
        self.put_tokens.append(value.tolist())

    def end(self):
        self.ended = True


def test_a_streamer_sees_every_token_once(pair):
    one, other = Kept(), Kept()
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    pair.torch.generate(PROMPTS[1:2], streamer=one, **settings)
    pair.runtime.generate(PROMPTS[1:2], streamer=other, **settings)
    assert other.put_tokens == one.put_tokens
    assert other.ended


def test_what_a_streamer_raises_reaches_the_caller_and_nothing_is_left(pair):
    class Broken(Kept):
        def put(self, value):
            super().put(value)
            if len(self.put_tokens) == 3:
                raise OSError("the pipe is closed")

    with pytest.raises(OSError, match="the pipe is closed"):
        pair.runtime.generate(PROMPTS[1:2], streamer=Broken(), max_new_tokens=50)
    same(pair, PROMPTS[1:2])
    assert not pair.runtime._scheduler._requests


def test_what_a_processor_raises_reaches_the_caller(pair):
    class Broken(LogitsProcessor):
        def __call__(self, input_ids, scores):
            raise ZeroDivisionError("nothing to divide")

    with pytest.raises(ZeroDivisionError, match="nothing to divide"):
        pair.runtime.generate(PROMPTS, attention_mask=MASK, logits_processor=[Broken()], max_new_tokens=5)
    same(pair, PROMPTS, attention_mask=MASK)


def test_stop_strings(pair, tmp_path):
    from tiny_models import save_tokenizer
    from transformers import AutoTokenizer

    save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    free = pair.torch.generate(PROMPTS[1:2], max_new_tokens=20, do_sample=False, pad_token_id=0)
    texts = [tokenizer.decode(token) for token in free[0, PROMPTS.shape[1] + 3 :]]
    text = next(text for text in texts if text.isascii() and text.isprintable() and text not in texts[:3])
    found = same(pair, PROMPTS[1:2], max_new_tokens=20, stop_strings=[text], tokenizer=tokenizer)
    assert found.shape[1] < free.shape[1]


def test_the_models_own_generation_config_counts(pair):
    for model in (pair.torch, pair.runtime):
        model.generation_config = GenerationConfig(max_new_tokens=4, pad_token_id=0, eos_token_id=2)
    assert torch.equal(pair.runtime.generate(PROMPTS[1:2]), pair.torch.generate(PROMPTS[1:2]))


def test_a_sequence_longer_than_the_model_allows_is_an_error(pair):
    with pytest.raises(ContextError, match=r"prompt of 7 tokens and 300 new ones are more than the 256"):
        pair.runtime.generate(PROMPTS[1:2], max_new_tokens=300)
    with pytest.raises(ContextError):
        pair.runtime.generate(torch.full((1, 257), 5), max_new_tokens=1)
    assert pair.runtime.generate(torch.full((1, 250), 5), max_new_tokens=6, eos_token_id=None).shape == (1, 256)


def test_tokens_of_another_vocabulary_are_an_error(pair):
    with pytest.raises(RequestError, match="token 128 is not in the vocabulary of 128"):
        pair.runtime.generate(torch.tensor([[5, 128]]), max_new_tokens=1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (torch.tensor([5, 6]), r"have shape \[2\]: .* of one sequence, pass input_ids\[None\]"),
        (torch.tensor([[[5, 6]]]), r"have shape \[1, 1, 2\]"),
        ([[5, 6]], r"are a list: pass a tensor \[rows, tokens\]"),
    ],
    ids=["one sequence", "too deep", "a list"],
)
@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_tokens_in_another_shape_are_an_error(pair, given, says, settings):
    with pytest.raises(RequestError, match=says):
        pair.runtime.generate(given, max_new_tokens=1, **settings)


def test_a_request_of_anything_else_is_an_error(pair):
    with pytest.raises(RequestError, match="are a list"):
        pair.runtime.submit([5, 6])
    with pytest.raises(RequestError, match=r"have shape \[1, 1, 2\]"):
        pair.runtime.submit(torch.tensor([[[5, 6]]]))


def test_a_typo_is_an_error(pair):
    with pytest.raises(ValueError, match="max_new_token"):
        pair.runtime.generate(PROMPTS[1:2], max_new_token=5)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma3", "mixtral"])
def test_left_padded_batches_of_other_families(family):
    same(pair_of(family), PROMPTS, attention_mask=MASK)


def test_longrope_starts_again_where_its_frequencies_change():
    from runtime_models import VARIANTS

    _, changes = VARIANTS["phi3-longrope"]
    pair = pair_of("phi3", by_length=32, **changes)
    same(pair, PROMPTS[1:2].repeat(1, 4), max_new_tokens=20)  # from 28 tokens to 48
    same(pair, PROMPTS[1:2].repeat(1, 5), max_new_tokens=20)  # from 35
