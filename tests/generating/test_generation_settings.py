from __future__ import annotations

from typing import Any

import pytest

from woqfx.errors import SettingsError
from woqfx.generating import Settings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, not 0"),
        ({"max_tokens": True}, "max_new_tokens must be a whole number of at least 1, not True"),
        ({"temperature": -1}, "temperature must be a number of at least 0, not -1"),
        ({"top_p": 1.5}, "top_p must be a number from 0 to 1, not 1.5"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1, not 0"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number from 0.001 to 1000.0, not 0"),
        ({"temperature": 1e-9}, "temperature 1e-09 is too small to divide by: 0 always takes the likeliest token"),
        ({"seed": 2**64}, "seed must be a number from 0 to 18446744073709551615"),
        ({"frequency_penalty": 3}, "frequency_penalty must be a number from -2 to 2, not 3"),
        ({"stop": [""]}, "stop holds '': it must be a text of at least one character"),
        ({"stop": [5]}, "stop holds 5"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"max_new_token": 5}, "there is no setting 'max_new_token', did you mean 'max_new_tokens'?"),
        ({"temprature": 5}, "did you mean 'temperature'?"),
        ({"num_return_sequences": 2}, "num_return_sequences cannot be set here: ask as many times"),
        ({"eos_token_id": 2}, "put the token's text into stop"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], said: str):
    with pytest.raises(SettingsError) as error:
        Settings.read(given)
    assert said in str(error.value)


def test_all_problems_are_named_at_once():
    with pytest.raises(SettingsError, match=r"max_new_tokens.*top_p"):
        Settings(max_new_tokens=0, top_p=7)
    with pytest.raises(SettingsError, match=r"nonsense.*rubbish"):
        Settings.read({"nonsense": 1, "rubbish": 2})


def test_a_call_goes_before_the_object_and_none_leaves_it():
    base = Settings.read({"max_tokens": 5, "temperature": 0.5, "stop": "x", "num_beams": 2})
    call = Settings.read({"max_completion_tokens": 9, "temperature": None, "stop": ["y"]}, base)
    assert (call.max_new_tokens, call.temperature, call.stop, dict(call.more)) == (9, 0.5, ("y",), {"num_beams": 2})


@pytest.mark.parametrize(
    ("given", "temperature"),
    [({"do_sample": False, "temperature": 0.7}, 0.0), ({"do_sample": True}, 1.0), ({"temperature": 0}, 0), ({}, None)],
)
def test_do_sample_is_understood(given: dict[str, Any], temperature: float | None):
    assert Settings.read(given).temperature == temperature


def test_what_was_set_is_told_for_caches():
    assert Settings.read({"temperature": 0, "stop": "."}).described() == {
        "max_new_tokens": 256,
        "temperature": 0,
        "stop": (".",),
    }
