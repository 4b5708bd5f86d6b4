"""`woqfx serve`: it starts, answers, and ends on Ctrl-C; what lets others in by mistake is refused."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest


@pytest.mark.slow
def test_it_serves_until_ctrl_c(checkpoint):
    command = [str(Path(sys.executable).parent / "woqfx"), "serve", str(checkpoint), "--port", "0", "--name", "mine"]
    environment = os.environ | {"WOQFX_API_KEY": "secret", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        watchdog = threading.Timer(120, server.kill)
        watchdog.start()
        said = ""
        for line in server.stderr:
            said += line
            if found := re.search(r"running on (http://127.0.0.1:\d+)", line):
                break
        assert found, said
        key = {"Authorization": "Bearer secret"}
        body = {"prompt": "Hello", "max_tokens": 3}
        answer = httpx.post(f"{found[1]}/v1/completions", json=body, headers=key, timeout=60)
        assert answer.json()["model"] == "mine"
        assert httpx.post(f"{found[1]}/v1/completions", json=body).status_code == 401
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
        watchdog.cancel()
    assert server.returncode in (0, 130, -signal.SIGINT)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_others_are_let_in_on_purpose_alone(run, checkpoint, host):
    result = run("serve", checkpoint, "--host", host, env={"WOQFX_API_KEY": ""})
    assert result.exit_code == 2
    assert f"--host {host} lets others in: set WOQFX_API_KEY, or say --no-api-key" in result.stderr


def test_without_fastapi_the_extra_is_named(run, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = run("serve", checkpoint)
    assert result.exit_code == 1
    assert "pip install 'woqfx[serve]'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "local"), [((), True), (("--no-api-key",), False), (("--api-key", "secret"), False)], ids=str
)
def test_without_a_key_it_is_for_this_machine(run, checkpoint, monkeypatch, arguments, local):
    made = []
    monkeypatch.setattr("woqfx.serve.create_app", lambda *_, **options: made.append(options["local"]))
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: None)
    assert run("serve", checkpoint, *arguments, env={"WOQFX_API_KEY": ""}).exit_code == 0
    assert made == [local]
