"""What all commands have in common: help, versions, and what a user sees when something goes wrong."""

from __future__ import annotations

import subprocess
import sys

import click
import click.testing
import pytest

import woqfx
from woqfx.cli import main
from woqfx.cli.failures import reported
from woqfx.errors import OutputError, PlanError

COMMANDS = (
    *("quantize", "tune", "plan", "inspect", "report", "generate", "chat", "serve", "eval", "bench", "convert"),
    *("export", "plugins", "new-plugin"),
)


def test_help_lists_every_command_with_what_it_does(run):
    result = run("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        (line,) = [line for line in result.stdout.splitlines() if line.startswith(f"  {name} ")]
        assert len(line.split()) > 3


def test_it_lists_no_command_twice_and_none_is_missing():
    assert tuple(main.list_commands(click.Context(main))) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_teaches_by_examples(run, name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"  woqfx {name} " in result.stdout.partition("Examples:")[2]


def test_version(run):
    assert run("--version").stdout.split() == ["woqfx,", "version", woqfx.__version__]


@pytest.mark.parametrize(
    ("name", "message"),
    [("quantise", "there is no command 'quantise'; did you mean 'quantize'?"), ("zzz", "'zzz'")],
    ids=["misspelt", "unknown"],
)
def test_an_unknown_command_is_a_usage_error(run, name, message):
    result = run(name)
    assert result.exit_code == 2
    assert message in result.stderr


def test_help_imports_neither_torch_nor_rich():
    code = (
        "import sys\nfrom woqfx.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def failing(error: BaseException) -> tuple[int, str]:
    """The exit code and the message of a command that ends with `error`."""

    @click.command()
    def command() -> None:
        with reported():
            raise error

    result = click.testing.CliRunner().invoke(command)
    assert result.stdout == ""
    return result.exit_code, result.stderr


def test_an_error_of_woqfx_is_a_message_and_1():
    assert failing(OutputError("the disk is full")) == (1, "error: the disk is full\n")


def test_a_plan_that_cannot_be_is_2_with_every_problem():
    code, message = failing(PlanError(["first", "second"]))
    assert code == 2
    assert message.splitlines()[1:] == ["  - first", "  - second"]


def test_ctrl_c_is_130():
    assert failing(KeyboardInterrupt()) == (130, "woqfx: interrupted\n")


def test_debug_leaves_the_traceback(monkeypatch):
    monkeypatch.setenv("WOQFX_DEBUG", "1")
    with pytest.raises(OutputError), reported():
        raise OutputError("full")
