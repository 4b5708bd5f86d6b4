from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from woqfx.blocks.trees import from_json, leaves, map_leaves, to_json

TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.integers(0, 9).map(lambda n: torch.full((2,), n))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple)),
    max_leaves=12,
)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@given(TREES)
def test_a_tree_comes_back_from_json(tree):
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return len(kept) - 1

    text = json.dumps(to_json(tree, keep))
    assert same(from_json(json.loads(text), kept.__getitem__), tree)
    assert all(a is b for a, b in zip(kept, leaves(tree), strict=True))


@given(TREES)
def test_mapping_changes_tensors_alone(tree):
    twice = map_leaves(tree, lambda tensor: tensor * 2)
    assert [t.tolist() for t in leaves(twice)] == [(t * 2).tolist() for t in leaves(tree)]
    assert same(map_leaves(tree, lambda tensor: tensor), tree)


def test_other_objects_stay_themselves():
    thing = object()
    assert map_leaves({"a": (thing, [torch.ones(1)])}, lambda tensor: tensor)["a"][0] is thing


@pytest.mark.parametrize("thing", [{1}, object(), {"a": 1}], ids=["set", "object", "dict"])
def test_what_is_no_tree_is_refused(thing):
    with pytest.raises(TypeError, match=type(thing).__name__):
        to_json((1, [thing]), lambda tensor: 0)
