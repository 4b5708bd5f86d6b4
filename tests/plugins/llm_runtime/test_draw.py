"""The engine draws the tokens that transformers and PyTorch draw, or says that it cannot tell."""

from __future__ import annotations

import pytest
import torch
from engine_models import checkpoint_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_choosing import transformers_choice
from tiny_models import tiny_model
from transformers.generation import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from woqfx.disk.checkpoint import Checkpoint
from woqfx_llm_runtime.families import family_of
from woqfx_llm_runtime.requests.choosing import Choose
from woqfx_llm_runtime.requests.drawing import Draw, Drawer

_core = pytest.importorskip("woqfx_llm_runtime._core")
lowering = pytest.importorskip("woqfx_llm_runtime.lowering")

VOCABULARY = 5003  # some strips, and a rest
SETTINGS = {
    "alone": [],
    "temperature": [TemperatureLogitsWarper(0.7)],
    "top-k": [TopKLogitsWarper(50)],
    "top-k of all": [TopKLogitsWarper(VOCABULARY + 1)],
    "top-k beyond all numbers": [TopKLogitsWarper(2**70)],
    "top-k of one": [TopKLogitsWarper(1)],
    "many": [TopKLogitsWarper(3000)],
    "top-p": [TopPLogitsWarper(0.9)],
    "usual": [TemperatureLogitsWarper(0.7), TopPLogitsWarper(0.9)],
    "tiny top-p": [TopPLogitsWarper(0.01)],
    "whole top-p": [TopPLogitsWarper(0.9999)],
    "min-p": [MinPLogitsWarper(0.05)],
    "tiny min-p": [MinPLogitsWarper(1e-6)],
    "all": [TemperatureLogitsWarper(0.8), TopKLogitsWarper(40), TopPLogitsWarper(0.95), MinPLogitsWarper(0.02)],
    "hot": [TemperatureLogitsWarper(3.0), TopKLogitsWarper(200), TopPLogitsWarper(0.8)],
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    changes = {"vocab_size": VOCABULARY, "num_hidden_layers": 1}
    folder = checkpoint_of(tmp_path_factory.mktemp("draw") / "out", "llama", changes)
    model = tiny_model("llama", **changes)
    return lowering.build(Checkpoint(folder), family_of(model)(model))


@pytest.fixture(scope="module", params=["state", "numbers"])
def drawer(engine, request):
    """From either source of random numbers; PyTorch's own numbers serve everywhere."""
    if request.param == "state" and not exponentials_are_of_the_generators_words():
        pytest.skip("this build of PyTorch makes exponential numbers by other means than its generator's words")
    drawer = Drawer(engine)
    drawer.__dict__["_source"] = request.param
    return drawer


def exponentials_are_of_the_generators_words():
    """Whether each is -log(1 - u) of one uniform float64: builds with MKL use its own generator on some processors."""
    one, other = (torch.Generator().manual_seed(3) for _ in range(2))
    made = torch.empty(100).exponential_(generator=one).double()
    uniform = torch.rand(100, dtype=torch.float64, generator=other)
    same = torch.allclose(made, -torch.log1p(-uniform), rtol=1e-6)
    return same and torch.equal(one.get_state(), other.get_state())


def test_how_random_numbers_are_made_is_found_out(engine):
    assert Drawer(engine)._source == ("state" if exponentials_are_of_the_generators_words() else "numbers")


def made(drawer, processors, logits, generator, ended=()):
    """What is drawn for some rows, and whether the engine did."""
    rows = [None if row in ended else scores for row, scores in enumerate(logits)]
    draw = Draw(Choose(processors, sample=True, generator=generator), torch.zeros(len(rows), 1).long(), rows)
    drawer.draw([draw])
    return draw.result, draw.settled


def wanted(processors, logits, generator):
    scores = logits
    for one in processors:
        scores = one(None, scores)
    return torch.multinomial(scores.softmax(-1), 1, generator=generator).squeeze(1).tolist()


@pytest.mark.parametrize("spread", [0.1, 2.0, 8.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_tokens_and_random_numbers_as_pytorch(drawer, name, spread):
    for seed in range(6):
        logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread
        own, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))
        if seed % 2:  # an odd number of words is gone
            torch.randint(9, (), generator=own), torch.randint(9, (), generator=theirs)
        for _ in range(3):
            assert made(drawer, SETTINGS[name], logits, own)[0] == wanted(SETTINGS[name], logits, theirs)
            assert torch.equal(own.get_state(), theirs.get_state())


@pytest.mark.parametrize("name", ["alone", "temperature", "top-k", "usual", "min-p", "all"])
def test_the_engine_is_rarely_in_doubt(drawer, name):
    logits = torch.randn(40, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 8
    generator = torch.Generator().manual_seed(2)
    assert sum(made(drawer, SETTINGS[name], row[None], generator)[1] for row in logits) >= 38


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.integers(1, 5),
    st.sampled_from(["top-k", "top-p", "usual", "tiny top-p", "min-p", "all", "top-k of one"]),
)
def test_equal_logits(engine, seed, levels, name):
    drawer = Drawer(engine)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, levels, (2, VOCABULARY), generator=generator).float() * 3
    logits[:, 2000:] = -torch.inf
    own, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))
    assert made(drawer, SETTINGS[name], logits, own)[0] == wanted(SETTINGS[name], logits, theirs)
    assert torch.equal(own.get_state(), theirs.get_state())


def test_numbers_that_a_temperature_makes_equal(drawer):
    logits = torch.full((1, VOCABULARY), -40.0)
    logits[0, 100:108] = torch.tensor(10.0) + torch.arange(8) * 2**-20  # neighbours of float32
    processors = [TemperatureLogitsWarper(1.7), TopKLogitsWarper(3)]
    own, theirs = (torch.Generator().manual_seed(4) for _ in range(2))
    for _ in range(40):
        assert made(drawer, processors, logits, own)[0] == wanted(processors, logits, theirs)


def test_a_temperature_of_nothing_is_left_to_pytorch(drawer):
    draw = Draw(
        Choose([TemperatureLogitsWarper(1e-50)], sample=True, generator=torch.Generator()),
        torch.zeros(1, 1).long(),
        [torch.ones(VOCABULARY)],
    )
    drawer.draw([draw])
    assert not draw.settled


@pytest.mark.parametrize("name", ["alone", "usual", "all"])
def test_what_is_no_distribution_is_left_to_pytorch(drawer, name):
    for odd in (torch.nan, torch.inf):
        logits = torch.zeros(1, VOCABULARY)
        logits[0, 17] = odd
        with pytest.raises(RuntimeError, match="probability tensor"):
            made(drawer, SETTINGS[name], logits, torch.Generator())


def test_one_token_alone(drawer):
    logits = torch.full((1, VOCABULARY), -torch.inf)
    logits[0, 4999] = -3.0
    for processors in SETTINGS.values():
        assert made(drawer, processors, logits, torch.Generator()) == ([4999], True)


def test_rows_that_have_ended_take_their_random_numbers(drawer):
    logits = torch.randn(4, VOCABULARY) * 5
    own, theirs = (torch.Generator().manual_seed(8) for _ in range(2))
    expected = wanted([], logits, theirs)
    for ended in ((1,), (0, 3)):
        own.manual_seed(8)
        found, by_engine = made(drawer, [], logits, own, ended)
        assert by_engine
        assert [found[row] for row in range(4) if row not in ended] == [
            expected[row] for row in range(4) if row not in ended
        ]
        assert torch.equal(own.get_state(), theirs.get_state())


def test_requests_do_not_touch_each_other(drawer):
    logits = [torch.randn(rows, VOCABULARY) * 5 for rows in (1, 3, 2)]
    names = ["usual", "alone", "all"]
    draws = [
        Draw(
            Choose(SETTINGS[name], sample=True, generator=torch.Generator().manual_seed(i)), torch.zeros(1, 1), list(x)
        )
        for i, (name, x) in enumerate(zip(names, logits, strict=True))
    ]
    drawer.draw(draws)
    for i, (name, x, draw) in enumerate(zip(names, logits, draws, strict=True)):
        assert draw.result == wanted(SETTINGS[name], x, torch.Generator().manual_seed(i))


def test_requests_that_share_a_generator_take_turns(drawer):
    shared, theirs, own = (torch.Generator().manual_seed(seed) for seed in (4, 4, 9))
    logits = 2 * torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(8))
    generators = [shared, own, shared, shared]
    draws = [
        Draw(Choose([], sample=True, generator=generator), torch.zeros(1, 1).long(), [scores])
        for generator, scores in zip(generators, logits, strict=True)
    ]
    drawer.draw(draws)
    assert all(draw.settled for draw in draws)
    one_after_the_other = [wanted([], logits[i : i + 1], theirs) for i in (0, 2, 3)]
    assert [draws[i].result for i in (0, 2, 3)] == one_after_the_other
    assert torch.equal(shared.get_state(), theirs.get_state())


@pytest.mark.parametrize(
    ("processors", "sampling"),
    [
        ([], (1, 0, 1, 0)),
        ([RepetitionPenaltyLogitsProcessor(1.2), *SETTINGS["all"]], (0.8, 40, 0.95, 0.02)),
        (SETTINGS["all"][::-1], (0.8, 0, 1, 0)),
        ([TopKLogitsWarper(5), RepetitionPenaltyLogitsProcessor(1.2)], (1, 0, 1, 0)),
        ([TopKLogitsWarper(5), TopKLogitsWarper(6)], (1, 6, 1, 0)),
        ([TopPLogitsWarper(0.5, min_tokens_to_keep=2)], (1, 0, 1, 0)),
        ([TopKLogitsWarper(5, filter_value=-1.0)], (1, 0, 1, 0)),
    ],
    ids=["none", "usual", "another order", "one behind", "twice", "two kept", "another filter"],
)
def test_what_the_engine_takes_over(processors, sampling, engine):
    choose = Choose(processors, sample=True, generator=torch.Generator().manual_seed(1))
    assert choose.sampling == sampling
    logits, tokens = torch.randn(1, VOCABULARY), torch.zeros(1, 3).long()
    torch.manual_seed(1)
    expected = transformers_choice(processors, tokens, logits, sample=True)
    draw = Draw(choose, tokens, list(choose.prepare(tokens, logits)))
    Drawer(engine).draw([draw])
    assert draw.result == expected.tolist()


@pytest.mark.parametrize(
    ("draw", "error"),
    [
        (((0.0, 0, 1, 0), [torch.zeros(VOCABULARY)], torch.zeros(5056).byte(), None), "temperature"),
        (((1.0, 0, 1, 0), [torch.zeros(7)], torch.Generator().get_state(), None), "row of logits"),
        (((1.0, 0, 1, 0), [torch.zeros(VOCABULARY)], torch.zeros(10).byte(), None), "state"),
        (((1.0, 0, 1, 0), [torch.zeros(VOCABULARY)], torch.zeros(5056).byte(), None), "Mersenne"),
        (((1.0, 0, 1, 0), [torch.zeros(VOCABULARY)], None, torch.zeros(2, VOCABULARY)), "random numbers"),
        (((1.0, 0, 1, 0), [torch.zeros(VOCABULARY)], None, None), "random numbers"),
    ],
    ids=["temperature", "row", "short state", "no state", "numbers", "neither"],
)
def test_other_shapes_are_refused(engine, draw, error):
    with pytest.raises(_core.Error, match=error):
        engine.draw([draw])
