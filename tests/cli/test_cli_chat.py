"""`woqfx chat`: answers in the model's template, with what was said before."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import sys
import time

import pytest
from transformers import AutoTokenizer

import woqfx


def answer(checkpoint, conversation, tokens=8):
    """What the model answers to a conversation in its template."""
    model, tokenizer = woqfx.load(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).input_ids
    made = model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def user(said):
    return {"role": "user", "content": said}


def test_it_remembers_what_was_said(run, checkpoint):
    first = answer(checkpoint, [user("a")], tokens=2)
    second = answer(checkpoint, [user("a"), {"role": "assistant", "content": first}, user("b")], tokens=2)
    result = run("chat", checkpoint, "--max-new-tokens", 2, stdin="a\n\nb\n")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{first}\n{second}\n"


def test_a_new_conversation_and_a_system_message(run, checkpoint):
    system = {"role": "system", "content": "Be brief"}
    wanted = answer(checkpoint, [system, user("Hi")])
    result = run("chat", checkpoint, "--max-new-tokens", 8, "--system", "Be brief", stdin="Hi\n/new\nHi\n")
    assert result.stdout == f"{wanted}\n{wanted}\n"


def test_a_conversation_that_becomes_too_long_is_said(run, checkpoint):
    result = run("chat", checkpoint, "--max-new-tokens", 4, stdin="x" * 200 + "\nHi\n")
    assert result.exit_code == 0
    assert "context 64" in result.stderr and "/new" in result.stderr
    assert result.stdout == answer(checkpoint, [user("Hi")], tokens=4) + "\n"


def test_without_a_template_it_is_an_error(run, model_folder, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(model_folder, plain, ignore=shutil.ignore_patterns("*.jinja"))
    woqfx.quantize(plain, out=tmp_path / "out")
    result = run("chat", tmp_path / "out", stdin="Hi\n")
    assert result.exit_code == 1
    assert "has no chat template" in result.stderr


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(tmp_path):
    from tiny_models import save_tokenizer, tiny_model

    model = tiny_model("llama", vocab_size=259, max_position_embeddings=100_000)
    model.generation_config.eos_token_id = None
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    woqfx.quantize(tmp_path / "model", out=tmp_path / "out")
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored, if the tests run in a shell's background
        command = "from woqfx.cli import main; main()"
        arguments = ["chat", str(tmp_path / "out"), "--max-new-tokens", "90000"]
        os.execv(sys.executable, [sys.executable, "-c", command, *arguments])
    try:
        shown = Shown(terminal)
        shown.until("loading the model")
        shown.until("> ")
        os.write(terminal, b"Hi\n")
        shown.until("Hi\r\n", more=40)
        os.kill(child, signal.SIGINT)
        shown.until("(stopped)")
        shown.until("> ")
        os.write(terminal, b"\x04")
        _, status = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)  # or it goes on answering
        raise
    assert os.waitstatus_to_exitcode(status) == 0


class Shown:
    """What a terminal shows."""

    def __init__(self, terminal):
        self.terminal, self.text = terminal, ""

    def until(self, mark, more=0):
        end = time.monotonic() + 60
        while mark not in self.text or len(self.text.partition(mark)[2]) < more:
            assert time.monotonic() < end, f"no {mark!r} in {self.text!r}"
            self.text += os.read(self.terminal, 4096).decode(errors="replace")
        self.text = self.text.partition(mark)[2]


def test_an_answer_that_was_cut_says_how_to_get_more(run, checkpoint):
    result = run("chat", checkpoint, "--max-new-tokens", 3, stdin="Hi\n")
    assert "cut off, --max-new-tokens gives more" in result.stderr
    result = run("chat", checkpoint, "--max-new-tokens", 500, stdin="Hi\n")
    assert ("the context is full: say /new" in result.stderr) == ("cut off" in result.stderr)
