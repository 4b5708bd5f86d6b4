from __future__ import annotations

import click
import pytest

from woqfx.cli.running import read_options_of


def test_values_have_their_options_types():
    given = ["kv=int8", "max_memory=1000000", "verify=true", "pack_cache=a=b"]
    expected = {"kv": "int8", "max_memory": 1_000_000, "verify": True, "pack_cache": "a=b"}
    assert read_options_of("llm_runtime", given) == expected


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("cache=out", "no option 'cache'; its options: kv, max_memory, head, pack_cache, verify"),
        ("kv", "'kv' has no value: write kv=VALUE"),
        ("max_memory=much", "'much' is not a valid integer"),
        ("verify=perhaps", "'perhaps' is not a valid boolean"),
    ],
)
def test_what_is_no_option_is_explained(text, match):
    with pytest.raises(click.BadParameter, match=match):
        read_options_of("llm_runtime", [text])


@pytest.mark.parametrize("command", ["generate", "chat", "serve", "eval", "bench"])
def test_every_command_that_runs_a_model_teaches_its_backends_options(run, command):
    taught = run(command, "--help").stdout
    assert "--backend-option NAME=VALUE" in taught
    assert "Options of backend llm_runtime, with their defaults:" in taught
    assert "kv=auto" in taught
    assert "verify=false" in taught


def test_layers_alone_have_no_backend_options(run):
    result = run("bench", "--backend-option", "pack_cache=out")
    assert result.exit_code == 2
    assert "--backend-option is about a whole model" in result.stderr


def test_a_value_that_the_backend_refuses_is_an_error_before_anything_is_loaded(run, checkpoint):
    result = run("generate", checkpoint, "-p", "a", "--backend", "llm_runtime", "--backend-option", "kv=int4")
    assert result.exit_code == 2
    assert "option kv of backend llm_runtime is 'int4': auto or fp16 or bf16 or fp32 or int8" in result.stderr


def test_options_reach_the_backend(run, checkpoint, tmp_path):
    cache = tmp_path / "packed"
    for _ in range(2):
        result = run(
            "generate", checkpoint, "-p", "a", "--max-new-tokens", "2", "--backend-option", f"pack_cache={cache}"
        )
        assert result.exit_code == 0, result.stderr
    assert list(cache.glob("*.packed"))
