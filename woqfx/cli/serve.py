"""`woqfx serve`: an OpenAI-compatible server."""

from __future__ import annotations

from pathlib import Path

import click

from woqfx.cli.running import RunCommand, Running
from woqfx.errors import WoqfxError


@click.command(
    "serve",
    cls=RunCommand,
    short_help="Serve a quantized model to OpenAI's clients.",
    epilog="""\b
Examples:
  woqfx serve out/
  woqfx serve out/ --backend llm_runtime --port 8080 --name my-model
  WOQFX_API_KEY=secret woqfx serve out/ --host 0.0.0.0
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50}'
""",
)
@click.argument("folder")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), metavar="N", help="0: any.")
@click.option("--name", metavar="NAME", help="What clients call the model.  [default: the folder's name]")
@click.option(
    "--api-key",
    envvar="WOQFX_API_KEY",
    show_envvar=True,
    metavar="KEY",
    help="What clients must send. The variable is better: other users of this machine see options.",
)
@click.option("--no-api-key", is_flag=True, help="Let everyone in who reaches ADDRESS, by whatever name.")
@click.option(
    "--batch", default=8, show_default=True, type=click.IntRange(min=1), metavar="N", help="Answers at a time."
)
@click.option(
    "--max-requests",
    default=32,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Requests that run or wait; more get status 429.",
)
@click.option(
    "--max-body",
    default=4 << 20,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="The largest request; larger ones get status 413.",
)
@click.option(
    "--max-prompt", type=click.IntRange(min=1), metavar="N", help="Tokens of a prompt.  [default: the context]"
)
@click.option("--max-new", type=click.IntRange(min=1), metavar="N", help="Tokens of an answer.  [default: the context]")
def command(
    folder: str,
    host: str,
    port: int,
    name: str | None,
    backend: Running,
    api_key: str | None,
    no_api_key: bool,
    batch: int,
    max_requests: int,
    max_body: int,
    max_prompt: int | None,
    max_new: int | None,
) -> None:
    """Serve the quantized model in FOLDER as OpenAI's API has it, until Ctrl-C.

    There are /v1/completions, /v1/chat/completions, /v1/models and /health. Requests that come together run together.
    It listens to this machine alone unless --host says otherwise, and then wants an API key.
    """
    try:
        import uvicorn

        from woqfx.serve import Limits, create_app
        from woqfx.serve.local import is_local
    except ImportError as error:
        raise WoqfxError(f"the server needs FastAPI and uvicorn ({error}): pip install 'woqfx[serve]'") from error
    local = not api_key and not no_api_key
    if local and not is_local(host):
        raise click.UsageError(f"--host {host} lets others in: set WOQFX_API_KEY, or say --no-api-key")
    from woqfx.cli.models import load_generator

    generator = load_generator(folder, backend, batch_size=batch)
    limits = Limits(requests=max_requests, body=max_body, prompt_tokens=max_prompt, new_tokens=max_new)
    called = name or Path(folder).resolve().name
    app = create_app(generator, name=called, limits=limits, api_key=api_key or None, local=local)
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=5, server_header=False)
