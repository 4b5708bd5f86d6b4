"""One step of the runtime's model: `forward` and its cache, as transformers' model gives it."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from runtime_pairs import pair_of
from transformers import DynamicCache

from woqfx_llm_runtime.requests.errors import RequestError

TOKENS = torch.tensor([[5, 9, 17, 3, 44], [8, 3, 90, 22, 7]])


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def logits(model, **inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("keep", [0, 1, 3, torch.tensor([0, 4])], ids=["all", "last", "three", "named"])
def test_logits(pair, keep):
    found, wanted = (logits(model, input_ids=TOKENS, logits_to_keep=keep) for model in (pair.runtime, pair.torch))
    close(found, wanted)


@pytest.mark.parametrize("side", ["left", "right", "hole"])
def test_padding_computes_nothing(pair, side):
    mask = torch.ones_like(TOKENS)
    mask[0, {"left": slice(0, 2), "right": slice(3, 5), "hole": slice(1, 3)}[side]] = 0
    found = logits(pair.runtime, input_ids=TOKENS, attention_mask=mask)
    alone = logits(pair.torch, input_ids=TOKENS[:1, mask[0].bool()])
    close(found[:1, mask[0].bool()], alone)
    close(found[1:], logits(pair.torch, input_ids=TOKENS[1:]))
    assert not found[0, ~mask[0].bool()].any()


def test_a_cache_goes_on_where_it_was(pair):
    whole = logits(pair.torch, input_ids=TOKENS)
    first = pair.runtime(input_ids=TOKENS[:, :3])
    then = pair.runtime(input_ids=TOKENS[:, 3:], past_key_values=first.past_key_values)
    close(torch.cat([first.logits, then.logits], 1), whole)
    assert then.past_key_values.get_seq_length() == 5


def test_cropping_reordering_repeating_and_selecting(pair):
    cache = pair.runtime(input_ids=TOKENS[:, :4]).past_key_values
    cache.crop(-2)
    close(
        pair.runtime(input_ids=TOKENS[:, 2:4], past_key_values=cache).logits,
        logits(pair.torch, input_ids=TOKENS[:, :4])[:, 2:],
    )
    cache.reorder_cache(torch.tensor([1, 1]))
    both = TOKENS[[1, 1]]
    close(pair.runtime(input_ids=both[:, 4:], past_key_values=cache).logits, logits(pair.torch, input_ids=both)[:, 4:])
    cache.batch_repeat_interleave(2)
    assert (cache.batch_size, len(pair.engine.slots)) == (4, 4)
    cache.batch_select_indices(torch.tensor([3]))
    assert (cache.batch_size, len(pair.engine.slots)) == (1, 1)


def test_cropping_counts_columns_not_tokens(pair):
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    cache = pair.runtime(input_ids=TOKENS, attention_mask=mask).past_key_values
    cache.crop(-2)
    assert [pair.engine.length(slot) for slot in cache.slots] == [1, 3]


def test_slots_are_given_back(pair):
    kept = pair.runtime(input_ids=TOKENS)
    assert len(pair.engine.slots) == 2
    pair.runtime(input_ids=TOKENS, use_cache=False)
    assert len(pair.engine.slots) == 2
    kept = None
    gc.collect()
    assert kept is None and not pair.engine.slots


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"inputs_embeds": torch.zeros(1, 2, 64), "input_ids": TOKENS}, "inputs_embeds"),
        ({"input_ids": TOKENS, "output_hidden_states": True}, "output_hidden_states"),
        ({"input_ids": TOKENS, "labels": TOKENS}, "labels"),
        ({"input_ids": None}, "takes input_ids"),
        ({"input_ids": TOKENS, "position_ids": torch.arange(1, 6)[None]}, "position_ids are not those"),
        ({"input_ids": TOKENS, "past_key_values": DynamicCache()}, "past_key_values is a DynamicCache"),
        ({"input_ids": TOKENS, "attention_mask": torch.ones(2, 2)}, r"attention_mask has shape \[2, 2\]"),
        ({"input_ids": TOKENS, "attention_mask": torch.ones(2, 1, 5, 5)}, "attention_mask has shape"),
        ({"input_ids": TOKENS + 0.5}, "input_ids are torch.float32"),
        ({"input_ids": TOKENS + 1000}, "is not in the vocabulary of 128"),
    ],
    ids=[
        *("embeddings", "hidden states", "labels", "nothing", "positions", "another cache", "short mask", "4-D mask"),
        *("fractions", "another vocabulary"),
    ],
)
def test_what_it_cannot_do_is_an_error(pair, inputs, message):
    with pytest.raises(RequestError, match=message):
        pair.runtime(**inputs)


def test_padding_may_be_any_number(pair):
    ids, mask = TOKENS.clone(), torch.ones_like(TOKENS)
    ids[0, 0], mask[0, 0] = -100, 0
    assert logits(pair.runtime, input_ids=ids, attention_mask=mask).shape == (2, 5, 128)


@pytest.mark.parametrize("take", [copy.deepcopy, copy.copy, pickle.dumps], ids=["deep copy", "copy", "pickle"])
def test_it_is_no_thing_to_copy(pair, take):
    with pytest.raises(RequestError, match="load the checkpoint again, or share this one"):
        take(pair.runtime)


def test_positions_that_agree_are_taken(pair):
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    pair.runtime(input_ids=TOKENS, attention_mask=mask, position_ids=positions)
    pair.runtime(input_ids=TOKENS, position_ids=torch.arange(5)[None])


def test_it_makes_room_among_ended_sequences():
    pair = pair_of("llama", max_memory=64 * 512)  # 64 tokens of 512 bytes
    assert pair.engine.kv_bytes_per_token == 512
    pair.runtime.generate(torch.arange(3, 43)[None], max_new_tokens=4)
    assert pair.engine.kv_bytes >= 40 * 512
    assert logits(pair.runtime, input_ids=torch.arange(3, 43)[None]).shape == (1, 40, 128)


def test_a_model_of_the_runtime_says_what_it_is(pair):
    model = pair.runtime
    assert (model.device, model.dtype, model.can_generate()) == (torch.device("cpu"), torch.float32, True)
    assert "plain" in repr(model)
    assert model.eval() is model and not list(model.parameters()) and not model.state_dict()
