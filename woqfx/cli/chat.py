"""`woqfx chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from woqfx.cli import text
from woqfx.cli.models import load_generator
from woqfx.cli.running import RunCommand, Running
from woqfx.errors import SettingsError, SourceError

if TYPE_CHECKING:
    from woqfx.generating import Settings, TextGenerator

_HELP = "Ctrl-C stops an answer, Ctrl-D ends the chat; /new begins a new one."


@click.command(
    "chat",
    cls=RunCommand,
    short_help="Talk to a quantized model in the terminal.",
    epilog="""\b
Examples:
  woqfx chat out/
  woqfx chat out/ --backend llm_runtime --system "You answer in one sentence."
  woqfx chat out/ --temperature 0.7 --seed 1

Ctrl-C stops the answer, and the chat goes on; Ctrl-D ends it. A line /new forgets all that was said.
Lines may also come from a pipe: each is a message.
""",
)
@click.argument("folder")
@click.option("--system", metavar="TEXT", help="What the model shall be told before the first message.")
@click.option(
    "--max-new-tokens", default=512, show_default=True, type=click.IntRange(min=1), metavar="N", help="Of one answer."
)
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    metavar="X",
    help="0 always takes the likeliest token; above, tokens are drawn by their probability.",
)
@click.option("--seed", metavar="N", type=int, help="With --temperature: same seed, same answers.")
def command(
    folder: str, system: str | None, max_new_tokens: int, temperature: float, seed: int | None, backend: Running
) -> None:
    """Talk to the quantized model in FOLDER, in its own chat template; it remembers what was said."""
    generator = load_generator(folder, backend)
    from woqfx.generating import Settings

    settings = Settings(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    if not generator.tokenizer.chat_template:
        raise SourceError(
            f"{folder} has no chat template: use woqfx generate, or add chat_template.jinja to the folder"
        )
    if sys.stdin.isatty():
        click.secho(_HELP, dim=True, err=True)
    beginning = [] if system is None else [{"role": "system", "content": system}]
    messages = list(beginning)
    for said in _lines():
        if said == "/new":
            messages = list(beginning)
            continue
        messages.append({"role": "user", "content": said})
        try:
            messages.append({"role": "assistant", "content": _answer(generator, messages, settings)})
        except SettingsError as error:  # the conversation has become longer than the model's context
            messages.pop()
            click.secho(f"{error}, or say /new", fg="yellow", err=True)


def _lines() -> Iterator[str]:
    """What is typed, a message at a time; at a prompt, Ctrl-C takes back the line."""
    while True:
        try:
            said = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            click.echo()
            click.secho(_HELP, dim=True, err=True)
            continue
        if said:
            yield said


def _answer(generator: TextGenerator, messages: list[dict[str, str]], settings: Settings) -> str:
    """Print the answer as it comes; what was said until it ended, or was stopped."""
    start, said = time.monotonic(), ""
    with generator.stream(generator.chat_prompt(messages), settings) as stream:
        try:
            for piece in stream:
                said += piece.text
                click.echo(piece.text, nl=False)
        except KeyboardInterrupt:
            click.secho(" (stopped)", dim=True, nl=False, err=True)
            stream.close()
            click.echo()
            return said
    click.echo()
    answer, seconds = stream.answer, time.monotonic() - start
    notes = []
    if sys.stdin.isatty():
        count = answer.new_tokens
        notes.append(f"{count} tokens in {text.duration(seconds)}, {count / seconds:.1f} a second")
    if answer.finish == "length":
        full = answer.new_tokens < settings.max_new_tokens  # less than was asked for, but all that the model can take
        remedy = "the context is full: say /new" if full else "--max-new-tokens gives more"
        notes.append(f"the answer was cut off, {remedy}")
    if notes:
        click.secho("; ".join(notes), dim=True, err=True)
    return said
