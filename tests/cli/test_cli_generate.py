"""`woqfx generate`: the text that `model.generate` gives."""

from __future__ import annotations

import shutil

import pytest
from transformers import AutoTokenizer

import woqfx

PROMPT = "The capital"


def continued(checkpoint, text=PROMPT, tokens=8, backend="torch_cpu"):
    """What the loaded model goes on with."""
    model, tokenizer = woqfx.load(checkpoint, backend=backend), AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer(text, return_tensors="pt").input_ids
    made = model.generate(ids, max_new_tokens=tokens, pad_token_id=0, do_sample=False)
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def test_prompt_and_continuation(run, checkpoint):
    result = run("generate", checkpoint, "-p", PROMPT, "--max-new-tokens", 8)
    assert result.stdout == PROMPT + continued(checkpoint) + "\n"
    assert "8 tokens in" in result.stderr
    assert result.stderr.endswith("; more by --max-new-tokens\n")


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_streaming_changes_nothing(run, checkpoint, stream):
    assert run("generate", checkpoint, "-q", "-p", PROMPT, "--max-new-tokens", 8, stream).stdout == (
        continued(checkpoint) + "\n"
    )


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_on_the_llm_runtime(run, checkpoint, stream):
    pytest.importorskip("woqfx_llm_runtime._core", reason="woqfx was installed without its native engine")
    flags = ["-q", "--backend", "llm_runtime", "--max-new-tokens", 8, stream]
    wanted = continued(checkpoint, backend="llm_runtime")
    assert run("generate", checkpoint, "-p", PROMPT, *flags).stdout == wanted + "\n"


def test_the_prompt_comes_from_standard_input(run, checkpoint):
    given = run("generate", checkpoint, "-p", PROMPT)
    assert run("generate", checkpoint, stdin=PROMPT + "\n").stdout == given.stdout


def test_sampling_depends_on_the_seed_alone(run, checkpoint):
    def sampled(seed):
        flags = ["--temperature", "5", "--max-new-tokens", 12, "-q"]
        return run("generate", checkpoint, "-p", PROMPT, "--seed", seed, *flags).stdout

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(5)}) > 1


def test_a_stop_text_ends_it_before(run, checkpoint):
    whole = continued(checkpoint, tokens=20)
    flags = ["-q", "--max-new-tokens", 20, "--stop", whole[3:5], "--stop", "never said"]
    assert run("generate", checkpoint, "-p", PROMPT, *flags).stdout == whole[: whole.index(whole[3:5])] + "\n"


def test_chat_applies_the_template(run, checkpoint):
    asked = run("generate", checkpoint, "--chat", "-p", "Hello", "--max-new-tokens", 8)
    assert asked.stdout == continued(checkpoint, "[user] Hello\n[assistant] ") + "\n"


def test_chat_without_a_template_is_an_error(run, model_folder, tmp_path):
    plain, out = tmp_path / "plain", tmp_path / "out"
    shutil.copytree(model_folder, plain, ignore=shutil.ignore_patterns("*.jinja"))
    woqfx.quantize(plain, out=out)
    result = run("generate", out, "--chat", "-p", "Hello")
    assert result.exit_code == 1
    assert "has no chat template" in result.stderr


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_an_error_of_the_engine_is_on_a_line_of_its_own(run, checkpoint, stream):
    pytest.importorskip("woqfx_llm_runtime._core", reason="woqfx was installed without its native engine")
    flags = ["--backend", "llm_runtime", "--backend-option", "max_memory=10", stream]
    result = run("generate", checkpoint, "-p", PROMPT, *flags)
    assert result.exit_code == 1
    assert result.stdout == (f"{PROMPT}\n" if stream == "--stream" else "")
    assert result.stderr.startswith("error: keys and values")


def test_without_a_tokenizer_it_says_what_is_missing(run, model_folder, tmp_path):
    bare, out = tmp_path / "bare", tmp_path / "out"
    shutil.copytree(model_folder, bare, ignore=shutil.ignore_patterns("tokenizer*", "*.jinja"))
    woqfx.quantize(bare, out=out)
    result = run("generate", out, "-p", "Hello")
    assert result.exit_code == 1
    assert "tokenizer.json" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["--greedy", "--temperature", "1", "-p", "x"], None, "exclude each other"),
        (["-p", ""], None, "empty"),
        ([], "", "empty"),
        (["--temperature", "0", "-p", "x"], None, "--temperature"),
        (["--max-new-tokens", "0", "-p", "x"], None, "--max-new-tokens"),
    ],
    ids=["greedy and hot", "empty prompt", "empty input", "cold", "nothing"],
)
def test_what_cannot_be_meant(run, checkpoint, arguments, stdin, message):
    result = run("generate", checkpoint, *arguments, stdin=stdin)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_a_prompt_beyond_the_context_is_refused_before_it_is_shown(run, checkpoint, stream):
    result = run("generate", checkpoint, "-p", "long " * 2000, stream)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "shorten the prompt" in result.stderr


def test_what_is_no_checkpoint_yet_says_how_to_make_one(run, model_folder):
    result = run("generate", model_folder, "-p", "x")
    assert result.exit_code == 1
    assert "make one with woqfx quantize" in result.stderr
