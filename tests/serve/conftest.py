"""A server in a thread of its own, on a free port."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from tiny_models import save_tokenizer, tiny_model
from transformers import AutoTokenizer

import woqfx
from woqfx.generating import TextGenerator
from woqfx.serve import create_app

#: ChatML, as most small models have it.
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory):
    """A tiny llama with a tokenizer and a chat template, quantized."""
    source = tmp_path_factory.mktemp("served") / "source"
    tiny_model("llama", vocab_size=259, max_position_embeddings=2048).save_pretrained(source)
    save_tokenizer(source)
    (source / "chat_template.jinja").write_text(TEMPLATE)
    woqfx.quantize(source, dtype="int8", out=source.parent / "tiny")
    return source.parent / "tiny"


@pytest.fixture(scope="session")
def generator(served_folder):
    """The model, loaded once."""
    return TextGenerator(woqfx.load(served_folder), AutoTokenizer.from_pretrained(served_folder))


@contextmanager
def serving(generator, **options):
    """The address of a server that runs until the block ends."""
    app = create_app(generator, name="tiny", **options)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        end = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def address(generator):
    """A server with the default limits."""
    with serving(generator) as address:
        yield address


@pytest.fixture(scope="session")
def serve():
    """`with serve(generator, limits=..., api_key=...) as address`."""
    return serving
