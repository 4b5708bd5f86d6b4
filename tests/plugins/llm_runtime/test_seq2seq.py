"""Encoder-decoders on the native engine: transformers' logits and tokens, and sources that are encoded once."""

from __future__ import annotations

import copy
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from engine_models import checkpoint_of, dense_twin, on_engine, random_tokens
from folders_of_models import contents
from runtime_pairs import pair_of
from test_generate import FAST, SLOW
from tiny_models import tiny_model
from transformers import AutoModelForSeq2SeqLM, TextStreamer
from transformers.modeling_outputs import BaseModelOutput

import woqfx
import woqfx.transformers
from woqfx.errors import PlanError
from woqfx_llm_runtime.requests.errors import ContextError, RequestError

pytest.importorskip("woqfx_llm_runtime._core", reason="woqfx was installed without its native engine")

GREEDY = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
KINDS = {"relu": {}, "gated": {"feed_forward_proj": "gated-gelu"}}

#: Three sources of 70 columns: one on the left, one on the right, one without padding.
SOURCES = random_tokens(3, 70)
MASK = torch.ones_like(SOURCES)
MASK[0, :20] = MASK[1, 45:] = 0
SOURCES = SOURCES * MASK


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return checkpoint_of(tmp_path_factory.mktemp("t5") / "out", "t5", KINDS[kind], dtype="int8")


@pytest.fixture(scope="module")
def twin(kind, folder):
    return dense_twin(folder, "t5", KINDS[kind])


@pytest.fixture
def model(folder):
    return on_engine(folder)


def logits(model, sources, tokens, mask=None, **more):
    with torch.no_grad():
        return model(input_ids=sources, attention_mask=mask, decoder_input_ids=tokens, **more).logits


def test_logits_of_a_padded_batch(model, twin):
    """The decoder's 80 tokens cross a page; distances go beyond the last bucket's."""
    tokens = random_tokens(3, 80, seed=1)
    torch.testing.assert_close(
        logits(model, SOURCES, tokens, MASK), logits(twin, SOURCES, tokens, MASK), rtol=2e-4, atol=2e-4
    )


def test_a_source_longer_than_a_step_and_than_the_furthest_distance(model, twin):
    sources, tokens = random_tokens(1, 700, seed=2), random_tokens(1, 300, seed=3)
    torch.testing.assert_close(logits(model, sources, tokens), logits(twin, sources, tokens), rtol=2e-4, atol=2e-4)


def test_a_rows_logits_depend_on_nothing_but_the_row(model):
    """Not on the batch, on padding at either end, on how the decoder's tokens were cut: bit for bit."""
    tokens = random_tokens(3, 23, seed=1)
    together = logits(model, SOURCES, tokens, MASK)
    for row in range(3):
        source = SOURCES[row][MASK[row].bool()][None]
        alone = logits(model, source, tokens[row : row + 1])
        assert torch.equal(together[row : row + 1], alone)
        cache, parts = None, []
        for part in tokens[row : row + 1].split(5, dim=1):
            with torch.no_grad():
                step = model(input_ids=source, decoder_input_ids=part, past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            parts.append(step.logits)
        assert torch.equal(torch.cat(parts, 1), alone)


@pytest.mark.parametrize("name", {**FAST, **SLOW})
def test_the_tokens_of_transformers(model, twin, name):
    settings = {"max_new_tokens": 12, "pad_token_id": 0, "do_sample": False, **{**FAST, **SLOW}[name]}
    torch.manual_seed(3)
    wanted = twin.generate(SOURCES, attention_mask=MASK, **settings)
    torch.manual_seed(3)
    assert torch.equal(model.generate(SOURCES, attention_mask=MASK, **settings), wanted)


def test_prompt_lookup_and_a_decoder_that_is_told_its_beginning(model, twin):
    settings = {**GREEDY, "max_new_tokens": 40}
    wanted = twin.generate(SOURCES[2:], **settings)
    assert torch.equal(model.generate(SOURCES[2:], prompt_lookup_num_tokens=5, **settings), wanted)
    told = {"decoder_input_ids": torch.tensor([[0, 9, 17]])}
    assert torch.equal(model.generate(SOURCES[2:], **told, **GREEDY), twin.generate(SOURCES[2:], **told, **GREEDY))


def test_a_streamer_gets_what_transformers_gives_it(model, twin):
    class Words:
        def decode(self, tokens, **_):
            return " ".join(map(str, tokens))

    class Kept(TextStreamer):
        def __init__(self):
            super().__init__(Words())
            self.texts = []

        def on_finalized_text(self, text, stream_end=False):
            self.texts.append((text, stream_end))

    one, other = Kept(), Kept()
    twin.generate(SOURCES[2:], streamer=one, **GREEDY)
    model.generate(SOURCES[2:], streamer=other, **GREEDY)
    assert other.texts == one.texts


def test_many_threads_share_one_model(model, twin):
    sources = [random_tokens(1, 3 + 9 * i, seed=i)[0] for i in range(8)]
    wanted = [twin.generate(source[None], **GREEDY)[0, 1:].tolist() for source in sources]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: model.submit(sources[i % 8], **GREEDY).result(), range(32)))
    assert found == [wanted[i % 8] for i in range(32)]


@pytest.mark.parametrize("compute", ["bf16", "int8"])
def test_other_compute_dtypes(kind, compute, tmp_path):
    """As backend torch_cpu computes them, up to the rounding of what comes in between."""
    folder = checkpoint_of(tmp_path / "out", "t5", KINDS[kind], dtype="int4_clip", compute_dtype=compute)
    tokens = random_tokens(3, 20, seed=1)
    ours, theirs = (
        logits(one, SOURCES, tokens, MASK).double().log_softmax(-1) for one in (on_engine(folder), woqfx.load(folder))
    )
    assert float((theirs.exp() * (theirs - ours)).sum(-1).mean()) < 1e-4


@pytest.mark.parametrize("kv", ["fp16", "int8"])
def test_smaller_keys_and_values_cost_little(folder, model, kv):
    tokens = random_tokens(3, 60, seed=1)
    exact, smaller = (
        logits(one, SOURCES, tokens, MASK).double().log_softmax(-1) for one in (model, on_engine(folder, kv=kv))
    )
    assert float((exact.exp() * (exact - smaller)).sum(-1).mean()) < {"fp16": 1e-6, "int8": 1e-3}[kv]


def test_it_verifies_and_says_what_it_is(folder):
    model = on_engine(folder, verify=True)
    assert "2 layers of an encoder and 2 layers" in repr(model)


def test_quantizing_straight_to_the_runtime(twin):
    model = woqfx.quantize(tiny_model("t5"), dtype="int8", backend="llm_runtime", progress="none")
    assert model.generate(SOURCES[2:], **GREEDY).shape == (1, 13)
    assert model.engine.bytes_per_token < model.engine.weight_bytes / 2, "the encoder is not read for a token"


# -- what is computed when -----------------------------------------------------------------------------


def test_sources_are_encoded_together_and_once_for_all_who_share_them():
    pair = pair_of("t5")
    settings = {**GREEDY, "num_return_sequences": 2, "do_sample": True}
    pair.runtime.generate(SOURCES, attention_mask=MASK, **settings)
    assert pair.engine.sources == [3]
    pair.runtime.generate(SOURCES[1:2], attention_mask=MASK[1:2], **GREEDY)
    assert pair.engine.sources == [3], "it was remembered"
    pair.runtime.generate(SOURCES[1:2], attention_mask=MASK[1:2], num_beams=4, **GREEDY)
    assert pair.engine.sources == [3, 1], "transformers' loop encodes a source for all of its beams"
    pair.runtime._scheduler.slots.forget_all()
    assert not pair.engine.slots


def test_nothing_is_encoded_before_somebody_waits():
    pair, source = pair_of("t5"), SOURCES[2].clone()
    wanted = pair.torch.generate(source[None], **GREEDY)[0, 1:].tolist()
    answer = pair.runtime.submit(source, **GREEDY)
    source.fill_(7)  # what was handed in is what counts
    assert pair.engine.sources == []
    assert next(answer) == wanted[0]
    assert pair.engine.sources == [1]
    assert answer.result() == wanted


def test_memory_is_bounded_and_comes_back(folder, model):
    sources = [random_tokens(1, 70, seed=i)[0] for i in range(4)]
    wanted = [model.generate(source[None], **GREEDY)[0, 1:].tolist() for source in sources]
    page = 64 * model.engine.kv_bytes_per_token  # of a source, too; one of 70 tokens and its answer take three
    small = on_engine(folder, max_memory=7 * page)
    with pytest.raises(ContextError, match="bytes a token"):
        small.submit(random_tokens(1, 600)[0], **GREEDY).result()
    answers = [small.submit(source, **GREEDY) for source in sources]
    assert [answer.result() for answer in answers] == wanted
    assert small.engine.kv_bytes <= 7 * page
    small._scheduler.slots.forget_all()
    assert not small.engine.slots and small.engine.kv_bytes == 0


def test_a_long_source_is_cancelled_from_another_thread(model):
    answer = model.submit(random_tokens(1, 6000)[0], **GREEDY)
    threading.Timer(0.005, answer.cancel).start()
    answer.result()
    assert answer.finish_reason == "cancelled"
    model._scheduler.slots.forget_all()
    assert not model.engine.slots


# -- heads of their own --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flan(tmp_path_factory):
    """As google/flan-t5-small lies on the Hub: a head of its own, and a config.json that says so."""
    model = tiny_model("t5", feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(128, 64, generator=torch.Generator().manual_seed(5)))
    folder = tmp_path_factory.mktemp("flan") / "model"
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for made in ("dense_act_fn", "is_gated_act", "scale_decoder_outputs"):
        config.pop(made)
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return model, folder


@pytest.mark.parametrize("of", ["folder", "module"])
def test_a_head_of_its_own(flan, of, tmp_path):
    model, folder = flan
    out, tokens, twin = tmp_path / "out", random_tokens(3, 20, seed=1), copy.deepcopy(model)
    woqfx.quantize(folder if of == "folder" else model, out=out, dtype="int8", progress="none")
    with torch.no_grad():
        for name, value in contents(out).items():
            twin.get_parameter(name).copy_(value)
    wanted = logits(twin, SOURCES, tokens, MASK)
    assert wanted.abs().max() > 10, "they are not scaled"
    for found in (on_engine(out), woqfx.load(out), AutoModelForSeq2SeqLM.from_pretrained(out)):
        torch.testing.assert_close(logits(found, SOURCES, tokens, MASK), wanted, rtol=2e-4, atol=2e-3)


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inputs_embeds": torch.zeros(1, 3, 64)}, "pass input_ids, not inputs_embeds or encoder_outputs"),
        ({"input_ids": SOURCES[:1], "encoder_outputs": BaseModelOutput(torch.zeros(1, 3, 64))}, "not inputs_embeds or"),
        ({"input_ids": SOURCES[:1], "attention_mask": torch.zeros_like(SOURCES[:1])}, "row 0 .* leaves no token"),
        ({"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.tensor([[1, 0, 1]])}, "padded at their ends"),
        ({"input_ids": torch.tensor([[5, 128]])}, "token 128 is not in the vocabulary"),
        ({"input_ids": torch.tensor([5, 6])}, r"of one sequence, pass input_ids\[None\]"),
    ],
    ids=["embeddings", "encoder outputs", "an empty source", "a hole", "no token", "one sequence"],
)
def test_sources_that_the_runtime_cannot_encode(model, given, message):
    for settings in ({}, {"num_beams": 2}):
        with pytest.raises((RequestError, woqfx.WoqfxError), match=message):
            model.generate(**given, **settings, **GREEDY)
    assert not model.engine.slots


def test_calls_of_the_model_that_it_cannot_answer(model):
    with pytest.raises(RequestError, match="decoder_input_ids"):
        model(input_ids=SOURCES)
    with pytest.raises(RequestError, match="labels"):
        model(input_ids=SOURCES, decoder_input_ids=SOURCES, labels=SOURCES)


@pytest.mark.parametrize("family", ["bart"])
def test_other_encoder_decoders_are_refused_by_the_plan(family):
    problems = woqfx.plan(tiny_model(family), backend="llm_runtime").problems
    assert any("BartForConditionalGeneration is not one of the models" in one for one in problems)
    with pytest.raises(PlanError, match="T5ForConditionalGeneration"):
        woqfx.quantize(tiny_model(family), backend="llm_runtime", progress="none")
