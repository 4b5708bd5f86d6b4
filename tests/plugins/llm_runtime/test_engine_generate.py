"""Generation on the native engine: transformers' tokens, from any thread, and nothing left behind."""

from __future__ import annotations

import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from engine_models import checkpoint_of, dense_twin, on_engine, random_tokens
from test_generate import FAST, MASK, PROMPTS, SLOW

import woqfx
from woqfx_llm_runtime.requests.errors import ContextError

pytest.importorskip("woqfx_llm_runtime._core", reason="woqfx was installed without its native engine")

GREEDY = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    changes = {"max_position_embeddings": 2048}
    return checkpoint_of(tmp_path_factory.mktemp("generate") / "out", "llama", changes, dtype="int8")


@pytest.fixture(scope="module")
def twin(folder):
    return dense_twin(folder, "llama", {"max_position_embeddings": 2048})


@pytest.fixture
def model(folder):
    return on_engine(folder)


@pytest.mark.parametrize("name", {**FAST, **SLOW})
def test_the_tokens_of_transformers(model, twin, name):
    settings = {"max_new_tokens": 12, "pad_token_id": 0, "do_sample": False, **{**FAST, **SLOW}[name]}
    torch.manual_seed(3)
    wanted = twin.generate(PROMPTS, attention_mask=MASK, **settings)
    torch.manual_seed(3)
    assert torch.equal(model.generate(PROMPTS, attention_mask=MASK, **settings), wanted)


def test_prompt_lookup_gives_the_same_tokens(model, twin):
    prompt = PROMPTS[1:2].repeat(1, 5)
    wanted = twin.generate(prompt, **{**GREEDY, "max_new_tokens": 80})
    found = model.generate(prompt, prompt_lookup_num_tokens=8, **{**GREEDY, "max_new_tokens": 80})
    assert torch.equal(found, wanted)


def test_many_threads_share_one_model(model, twin):
    prompts = [random_tokens(1, 3 + i, seed=i)[0] for i in range(8)]
    wanted = [twin.generate(prompt[None], **GREEDY)[0, len(prompt) :].tolist() for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: model.submit(prompts[i % 8], **GREEDY).result(), range(64)))
    assert found == [wanted[i % 8] for i in range(64)]


def test_a_long_prompt_is_cancelled_from_another_thread(model):
    answer = model.submit(random_tokens(1, 1900)[0], max_new_tokens=100, eos_token_id=None)
    threading.Timer(0.001, answer.cancel).start()  # long before a tiny model is through with it
    start = time.monotonic()
    answer.result()
    assert answer.finish_reason == "cancelled"
    assert time.monotonic() - start < 10
    model._scheduler.slots.forget_all()
    assert not model.engine.slots


def test_the_bound_of_memory_holds(folder):
    small = on_engine(folder, max_memory=64 * on_engine(folder).engine.kv_bytes_per_token)
    with pytest.raises(ContextError, match="bytes a token"):
        small.submit(random_tokens(1, 500)[0], **GREEDY).result()
    answers = [small.submit(random_tokens(1, 20, seed=i)[0], **GREEDY) for i in range(6)]
    roomy = on_engine(folder)
    for i, answer in enumerate(answers):
        assert answer.result() == roomy.submit(random_tokens(1, 20, seed=i)[0], **GREEDY).result()
        assert small.engine.kv_bytes <= small.engine.max_memory


@pytest.mark.slow
def test_ten_thousand_requests_leave_nothing_behind(tmp_path):
    model = on_engine(checkpoint_of(tmp_path / "out", "llama", {"num_hidden_layers": 1}, dtype="int8"))
    prompts = [random_tokens(1, 2 + i % 12, seed=i)[0] for i in range(50)]

    def ask(count):
        for i in range(count):
            answer = model.submit(prompts[i % 50], max_new_tokens=1 + i % 2, do_sample=False)
            if i % 5:
                answer.result()
            elif i % 10:
                answer.cancel()

    ask(1000)
    gc.collect()
    before = resident_bytes()
    ask(9000)
    gc.collect()
    model.submit(prompts[0], max_new_tokens=1).result()
    assert resident_bytes() - before < 4 << 20
    model._scheduler.slots.forget_all()
    assert not model.engine.slots and not model.engine.kv_bytes


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_forked_process_goes_on_by_itself(model, twin):
    prompt = PROMPTS[1]
    wanted = twin.generate(prompt[None], **GREEDY)[0, 7:].tolist()
    assert model.submit(prompt, **GREEDY).result() == wanted
    child = os.fork()
    if child == 0:
        os._exit(0 if model.submit(prompt, **GREEDY).result() == wanted else 1)
    end = time.monotonic() + 60
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.02)
    if done == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the forked process hangs")
    assert os.waitstatus_to_exitcode(done[1]) == 0


@pytest.fixture(scope="module")
def real_texts():
    from pydoc_data.topics import topics

    return [topics[name].split("\n\n")[1] for name in sorted(topics) if topics[name].count("\n\n") > 2][:50]


@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.parametrize(
    ("compute", "divergence"),
    # Between layers both round alike; int8 rounds activations, and a last bit decides which way now and then.
    [("fp32", 1e-6), ("bf16", 1e-3), ("int8", 5e-3)],
)
def test_the_real_model_predicts_what_it_predicts_on_torch_cpu(smollm2, tmp_path, real_texts, compute, divergence):
    from woqfx.evaluate import compare
    from woqfx.source.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(smollm2))
    woqfx.quantize(smollm2, dtype="int4_clip", compute_dtype=compute, out=tmp_path / "out", progress="none")
    ours, theirs = on_engine(tmp_path / "out"), woqfx.load(tmp_path / "out")
    ids = torch.tensor(tokenizer(" ".join(real_texts)).input_ids[:128])
    assert compare(ours, theirs, ids, 128).divergence < divergence
    if compute == "fp32":
        rows = [tokenizer(text).input_ids[:16] for text in real_texts]
        prompts = torch.tensor([[0] * (16 - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (16 - len(row)) + [1] * len(row) for row in rows])
        settings = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        assert len(rows) == 50
        assert torch.equal(ours.generate(prompts, **settings), theirs.generate(prompts, **settings))
