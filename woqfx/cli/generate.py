"""`woqfx generate`: text from a quantized model."""

from __future__ import annotations

import sys
import time

import click

from woqfx.cli import text
from woqfx.cli.models import load_generator
from woqfx.cli.running import RunCommand, Running
from woqfx.errors import SourceError


@click.command(
    "generate",
    cls=RunCommand,
    short_help="Let a quantized model go on with a text, or answer.",
    epilog="""\b
Examples:
  woqfx generate out/ -p "The capital of France is"
  woqfx generate out/ --chat -p "Explain gravity to a child." --max-new-tokens 200
  woqfx generate out/ --temperature 0.7 --seed 1 -p "Once upon a time"
  cat prompt.txt | woqfx generate out/ > answer.txt
  woqfx generate out/ --backend llm_runtime --backend-option pack_cache=out/packed -p "Hello"
""",
)
@click.argument("folder")
@click.option("-p", "--prompt", metavar="TEXT", help="The text to go on with. Read from standard input if not given.")
@click.option("--chat", is_flag=True, help="Take the prompt as a user's message, in the model's own chat template.")
@click.option(
    "--max-new-tokens", default=64, show_default=True, type=click.IntRange(min=1), metavar="N", help="When to stop."
)
@click.option("--greedy", is_flag=True, help="Always take the likeliest token: so it is unless --temperature is given.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Draw tokens by their probability: below 1 nearer to the likeliest, above 1 wilder.",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times.")
@click.option("--seed", default=0, show_default=True, metavar="N", help="With --temperature: same seed, same text.")
@click.option("--stream/--no-stream", default=None, help="Print words as they come.  [default: on a terminal]")
@click.option("-q", "--quiet", is_flag=True, help="Print the new text alone: not the prompt, no speed.")
def command(
    folder: str,
    prompt: str | None,
    chat: bool,
    max_new_tokens: int,
    greedy: bool,
    temperature: float | None,
    stop: tuple[str, ...],
    seed: int,
    stream: bool | None,
    backend: Running,
    quiet: bool,
) -> None:
    """Let the quantized model in FOLDER go on with a text.

    The text goes to standard output, the speed to standard error.
    """
    if greedy and temperature is not None:
        raise click.UsageError("--greedy and --temperature exclude each other")
    prompt = _read(prompt)
    generator = load_generator(folder, backend)
    from woqfx.generating import Settings

    if chat and not generator.tokenizer.chat_template:
        raise SourceError(f"{folder} has no chat template: leave out --chat, or add chat_template.jinja to the folder")
    asked = generator.chat_prompt([{"role": "user", "content": prompt}]) if chat else generator.text_prompt(prompt)
    settings = Settings(max_new_tokens=max_new_tokens, temperature=temperature or 0.0, seed=seed, stop=stop)
    request = generator.request(asked, settings)  # what is wrong with it is told before anything is shown
    shown = "" if chat or quiet else prompt
    start = time.monotonic()
    if sys.stdout.isatty() if stream is None else stream:
        click.secho(shown, nl=False, bold=sys.stdout.isatty())
        try:
            with generator.stream(asked, settings) as pieces:
                for piece in pieces:
                    click.echo(piece.text, nl=False)
        finally:
            click.echo()
        answer = pieces.answer
    else:
        generator.run([request])
        answer = request.answer
        click.secho(shown, nl=False, bold=sys.stdout.isatty())
        click.echo(answer.text)
    if not quiet:
        seconds, count = time.monotonic() - start, answer.new_tokens
        cut = "; more by --max-new-tokens" if count == max_new_tokens and answer.finish == "length" else ""
        click.echo(f"\n{count} tokens in {text.duration(seconds)}, {count / seconds:.1f} a second{cut}", err=True)


def _read(prompt: str | None) -> str:
    if prompt is None:
        if sys.stdin.isatty():
            raise click.UsageError('give a prompt: -p "...", or on standard input')
        prompt = sys.stdin.read().rstrip("\n")
    if not prompt:
        raise click.UsageError('the prompt is empty: give one, -p "..." or on standard input')
    return prompt
