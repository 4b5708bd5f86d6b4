"""What the documentation says about the command line and Python is so."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from woqfx.cli import main

ROOT = Path(__file__).parent.parent.parent
PAGES = ["README.md", "docs/quickstart.md", "docs/cli.md"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """What a reader would type: lines after a $, and the examples in help."""
    lines = [line.strip() for block in blocks(page, "(?:console|text)") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if re.match(r"(\$ )?woqfx (?!\[)[a-z-]+ \S", line)]


def test_the_page_on_the_command_line_is_current():
    script = ROOT / "docs" / "make_cli.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_every_command_can_be_parsed(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wiki.test.raw").touch()
    found = commands(page)
    assert len(found) >= 4
    for line in found:
        words = shlex.split(line, comments=True)
        for stop in ("&&", ">", "|"):
            words = words[: words.index(stop)] if stop in words else words
        _, name, *arguments = words
        command = main.get_command(click.Context(main), name)
        assert command is not None, line
        command.make_context(name, [word for word in arguments if word != "--help"] or ["x", "y"])
