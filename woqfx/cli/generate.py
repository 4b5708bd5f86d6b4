"""`woqfx generate`: text from a quantized model."""

from __future__ import annotations

import copy
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from woqfx.cli import text
from woqfx.cli.models import load_quantized, load_tokenizer
from woqfx.errors import SourceError

if TYPE_CHECKING:
    from torch import nn


@click.command(
    "generate",
    short_help="Let a quantized model go on with a text, or answer.",
    epilog="""\b
Examples:
  woqfx generate out/ -p "The capital of France is"
  woqfx generate out/ --chat -p "Explain gravity to a child." --max-new-tokens 200
  woqfx generate out/ --temperature 0.7 --seed 1 -p "Once upon a time"
  cat prompt.txt | woqfx generate out/ > answer.txt
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
    help="Draw tokens by their probability: below 1 bolder in the likely ones, above 1 wilder.",
)
@click.option("--seed", default=0, show_default=True, metavar="N", help="With --temperature: same seed, same text.")
@click.option("--stream/--no-stream", default=None, help="Print words as they come.  [default: on a terminal]")
@click.option("--backend", default="torch_cpu", show_default=True, metavar="NAME", help="What runs the model.")
@click.option(
    "--pack-cache",
    metavar="FOLDER",
    help="Keep the weights as the kernels hold them in FOLDER: from the second time on, loading is faster.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print the new text alone: not the prompt, no speed.")
def command(
    folder: str,
    prompt: str | None,
    chat: bool,
    max_new_tokens: int,
    greedy: bool,
    temperature: float | None,
    seed: int,
    stream: bool | None,
    backend: str,
    pack_cache: str | None,
    quiet: bool,
) -> None:
    """Let the quantized model in FOLDER go on with a text.

    The text goes to standard output, the speed to standard error.
    """
    if greedy and temperature is not None:
        raise click.UsageError("--greedy and --temperature exclude each other")
    prompt = _read(prompt)
    model, tokenizer = load_quantized(folder, backend, pack_cache), load_tokenizer(folder)
    inputs = _encode(tokenizer, prompt, chat, folder)
    settings = _settings(model, max_new_tokens, temperature)
    if not chat and not quiet:
        click.secho(prompt, nl=False, bold=sys.stdout.isatty())
    streaming = sys.stdout.isatty() if stream is None else stream
    start = time.monotonic()
    count = _generate(model, tokenizer, inputs, settings, seed, streaming)
    if not quiet:
        seconds = time.monotonic() - start
        click.echo(f"\n{count} tokens in {text.duration(seconds)}, {count / seconds:.1f} a second", err=True)


def _read(prompt: str | None) -> str:
    if prompt is None:
        if sys.stdin.isatty():
            raise click.UsageError('give a prompt: -p "...", or on standard input')
        prompt = sys.stdin.read().rstrip("\n")
    if not prompt:
        raise click.UsageError("the prompt is empty")
    return prompt


def _encode(tokenizer: Any, prompt: str, chat: bool, folder: str) -> Any:
    if not chat:
        return tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    if not tokenizer.chat_template:
        raise SourceError(f"{folder} has no chat template: leave out --chat, or add chat_template.jinja to the folder")
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)


def _settings(model: nn.Module, max_new_tokens: int, temperature: float | None) -> Any:
    """The model's own generation config, but for what the flags say."""
    if not getattr(model, "can_generate", bool)():
        raise SourceError(f"{type(model).__name__} does not generate text")
    settings: Any = copy.deepcopy(model.generation_config)
    settings.max_new_tokens, settings.max_length = max_new_tokens, None
    settings.do_sample = temperature is not None
    settings.temperature = temperature
    if temperature is None:
        settings.top_k = settings.top_p = settings.min_p = settings.typical_p = None
    if settings.pad_token_id is None:
        end = settings.eos_token_id
        settings.pad_token_id = end[0] if isinstance(end, list) else end
    return settings


def _generate(model: Any, tokenizer: Any, inputs: Any, settings: Any, seed: int, stream: bool) -> int:
    """Print what the model says; returns how many tokens that were."""
    import torch
    from transformers import TextStreamer

    torch.manual_seed(seed)
    streamer = TextStreamer(tokenizer, skip_prompt=not model.config.is_encoder_decoder, skip_special_tokens=True)
    ids = model.generate(**inputs, generation_config=settings, streamer=streamer if stream else None)[0]
    skipped = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    if not stream:
        click.echo(tokenizer.decode(ids[skipped:], skip_special_tokens=True))
    return len(ids) - skipped
