"""What a user sees when something goes wrong: a message, not a traceback."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from woqfx.errors import (
    CalibrationError,
    CalibrationWarning,
    CheckpointWarning,
    PlanError,
    SchemeError,
    UnknownNameError,
    WoqfxError,
)

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_REFUSALS = (CalibrationError, PlanError, SchemeError, UnknownNameError)


class Failure(click.ClickException):
    """An error of woqfx's own as the command line shows it. Exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it on standard error."""
        click.echo(f"{click.style('error:', fg='red', bold=True)} {self.message}", file=file, err=True)


class Refusal(Failure):
    """A request that cannot be met. Exit code 2, as for flags that cannot be meant."""

    exit_code = 2


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors, warnings and Ctrl-C inside this block into clean lines. `WOQFX_DEBUG=1` leaves tracebacks."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            yield
        except WoqfxError as error:
            if os.environ.get("WOQFX_DEBUG", "") not in ("", "0"):
                raise
            kind = Refusal if isinstance(error, _REFUSALS) else Failure
            raise kind(str(error)) from error
        except KeyboardInterrupt:
            warn("interrupted")
            raise click.exceptions.Exit(INTERRUPTED) from None


def warn(message: str) -> None:
    """One line on standard error."""
    click.echo(f"{click.style('woqfx:', fg='yellow')} {message}", err=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: IO[str] | None = None,
    line: str | None = None,
) -> None:
    from woqfx.plugin_loading import PluginWarning

    if issubclass(category, PluginWarning | CalibrationWarning | CheckpointWarning):
        warn(str(message))
    else:
        click.echo(warnings.formatwarning(message, category, filename, lineno, line), file=file, err=True, nl=False)
