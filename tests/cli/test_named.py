from __future__ import annotations

import click
import pytest

from woqfx.cli.named import read_named


def test_values_have_their_options_types():
    found = read_named(["gptq.damp_percent=0.05", "gptq.desc_act=true", "gptq.blocksize=64", "teq.start=awq"])
    assert found == {
        "gptq.damp_percent": 0.05,
        "gptq.desc_act": True,
        "gptq.blocksize": 64,
        "teq.start": "awq",
    }


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("damp_percent=0.05", "write one of .*gptq.damp_percent"),
        ("gptq.damp=0.05", "write one of .*gptq.damp_percent"),
        ("gptq.damp_percent", "then = and its value"),
        ("gptq.damp_percent=much", "'much' is not a valid float"),
        ("gptq.desc_act=perhaps", "'perhaps' is not a valid boolean"),
    ],
)
def test_what_is_no_option_is_explained(text, match):
    with pytest.raises(click.BadParameter, match=match):
        read_named([text])
