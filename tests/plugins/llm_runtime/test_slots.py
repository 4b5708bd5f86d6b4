"""The engine below everything: sequences in slots, and that a call computes the same however it is made."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from engine_models import checkpoint_of, random_tokens
from tiny_models import tiny_model

from woqfx.disk.checkpoint import Checkpoint
from woqfx_llm_runtime.families import family_of

_core = pytest.importorskip("woqfx_llm_runtime._core")
lowering = pytest.importorskip("woqfx_llm_runtime.lowering")

VOCABULARY = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint_of(tmp_path_factory.mktemp("slots") / "out", "llama", {"max_position_embeddings": 400})


def engine_of(folder, **options):
    describe = family_of(tiny_model("llama"))
    assert describe is not None
    described = describe(tiny_model("llama", max_position_embeddings=400))
    return lowering.build(Checkpoint(folder), described, lowering.EngineOptions(**options))


@pytest.fixture
def engine(folder):
    return engine_of(folder)


def run(engine, slot, tokens, wanted=None):
    wanted = len(tokens) if wanted is None else wanted
    logits = torch.empty(wanted, VOCABULARY)
    engine.forward([slot], [len(tokens)], [wanted], tokens, logits)
    return logits


@pytest.fixture(scope="module")
def text():
    return random_tokens(1, 300, VOCABULARY)[0]


@pytest.mark.parametrize("cuts", [(299,), (64, 128), (1, 2, 3), (240, 241), (63, 65)], ids=str)
def test_a_text_gives_the_same_however_it_is_cut(engine, text, cuts):
    whole = run(engine, engine.create(), text)
    slot = engine.create()
    parts = [run(engine, slot, part) for part in torch.tensor_split(text, cuts)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_copy_goes_its_own_way(engine, text):
    slot = engine.create()
    run(engine, slot, text[:100])
    copied = engine.copy(slot, 70)
    run(engine, copied, text[200:230])
    assert (engine.length(slot), engine.length(copied)) == (100, 100)
    assert torch.equal(run(engine, slot, text[100:110]), run(engine, engine.create(), text[:110])[100:])


def test_a_copy_takes_memory_only_where_it_differs(engine, text):
    slot = engine.create()
    run(engine, slot, text[:200])
    before = engine.kv_bytes
    copied = engine.copy(slot, 200)
    assert engine.kv_bytes == before
    run(engine, copied, text[:1])
    assert engine.kv_bytes == before + 64 * engine.kv_bytes_per_token


def test_trimming_goes_back_in_time(engine, text):
    slot = engine.create()
    run(engine, slot, text[:150])
    engine.trim(slot, 90)
    assert torch.equal(run(engine, slot, text[90:95]), run(engine, engine.create(), text[:95])[90:])


def test_memory_comes_back(engine, text):
    slots = [engine.create() for _ in range(3)]
    for slot in slots:
        run(engine, slot, text)
    for slot in slots:
        engine.free(slot)
    assert (engine.kv_bytes, engine.slots) == (0, [])


def test_more_memory_than_is_allowed_changes_nothing(folder, text):
    small = engine_of(folder, max_memory=engine_of(folder).kv_bytes_per_token * 128)
    slot = small.create()
    first = run(small, slot, text[:100], wanted=1)
    with pytest.raises(_core.OutOfMemory, match="max_memory"):
        run(small, slot, text[100:200])
    assert small.length(slot) == 100
    again = small.create()
    with pytest.raises(_core.OutOfMemory):
        run(small, again, text[:65])
    small.free(slot)
    assert torch.equal(run(small, again, text[:100], wanted=1), first)


def test_a_step_is_cancelled_from_another_thread(engine, text):
    slot = engine.create()
    run(engine, slot, text[:10])
    stop, ends = threading.Event(), []

    def keep_cancelling():
        while not stop.is_set():
            engine.cancel()

    thread = threading.Thread(target=keep_cancelling)
    thread.start()
    try:
        for _ in range(200):
            try:
                run(engine, slot, text[10:290], wanted=0)
            except _core.Cancelled as error:
                ends.append(str(error))
                break
            engine.trim(slot, 10)
    finally:
        stop.set()
        thread.join()
    assert ends and engine.length(slot) == 10
    assert torch.equal(run(engine, slot, text[10:20]), run(engine, engine.create(), text[:20])[10:])


@pytest.mark.parametrize(
    ("slots", "counts", "wanted", "tokens", "message"),
    [
        ([0, 0], [1, 1], [0, 0], [1, 1], "twice"),
        ([7], [1], [0], [1], "no slot 7"),
        ([0], [2], [0], [1], "ask for others"),
        ([0], [1], [0], [1, 2], "take fewer"),
        ([0], [1], [2], [1], "more logits"),
        ([0], [1], [1], [128], "vocabulary of 128"),
        ([0], [1], [1], [-1], "vocabulary of 128"),
        ([0], [401], [0], [1] * 401, "context of 400"),
    ],
    ids=["twice", "no-slot", "too-few", "too-many", "logits", "token", "negative", "context"],
)
def test_a_call_that_makes_no_sense(engine, slots, counts, wanted, tokens, message):
    assert engine.create() == 0
    with pytest.raises(_core.Error, match=message):
        engine.forward(slots, counts, wanted, torch.tensor(tokens), torch.empty(sum(wanted), VOCABULARY))
    assert engine.length(0) == 0


ISAS = """
import sys, torch
sys.path[:0] = sys.argv[2:]
import test_slots
from pathlib import Path
engine = test_slots.engine_of(Path(sys.argv[1]), kv="fp32")
torch.save(test_slots.run(engine, engine.create(), torch.load(sys.argv[1] + "/text.pt")), sys.argv[1] + "/got.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_instruction_sets_agree(folder, text, isa):
    from woqfx_native import _core as native

    if not native.supported(native.Isa[isa]):
        pytest.skip(f"this CPU has no {isa}")
    torch.save(text, folder / "text.pt")
    here = Path(__file__).parent
    command = [sys.executable, "-c", ISAS, str(folder), str(here), str(here.parent.parent)]
    subprocess.run(command, check=True, env={**os.environ, "WOQFX_ISA": isa}, timeout=120)
    engine = engine_of(folder, kv="fp32")
    expected = run(engine, engine.create(), text)
    torch.testing.assert_close(torch.load(folder / "got.pt"), expected, rtol=1e-4, atol=2e-5)
