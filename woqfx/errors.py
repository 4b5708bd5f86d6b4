"""Every error that woqfx raises on purpose.

A message names the layer or file, the value that was found, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence


class WoqfxError(Exception):
    """The root: catching it catches all of woqfx's own errors."""


class SettingError(WoqfxError):
    """An environment variable asks for what cannot be had. It stops the program: no plugin is at fault."""


class PluginError(WoqfxError):
    """A plugin could not be loaded, provided something unusable, or misbehaved."""


class CollisionError(PluginError):
    """Two plugins provide the same name; the message names both distributions."""


class UnknownNameError(WoqfxError, LookupError):
    """No loaded plugin provides this name."""


class SchemeError(WoqfxError, ValueError):
    """A scheme, rule or option holds a value that cannot be meant."""


class PlanError(WoqfxError):
    """The request cannot be carried out; `problems` lists every reason at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        super().__init__(f"the plan has {count}:\n" + "\n".join(f"  - {p}" for p in problems))


class ConfigError(WoqfxError, ValueError):
    """A configuration object asks for what cannot be meant or done; `problems` lists every reason at once."""

    def __init__(self, title: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{title}:\n" + "\n".join(f"  - {problem}" for problem in problems))


class SourceError(WoqfxError):
    """The model to read is missing, damaged, or of a kind that woqfx does not know."""


class WeightError(SourceError):
    """A weight holds values that cannot be quantized (NaN, infinity, beyond the scale's range)."""


class CalibrationError(WoqfxError):
    """The calibration data that were asked for cannot be had, or are too few."""


class OutputError(WoqfxError):
    """The output folder cannot be written, or holds something that must not be overwritten."""


class CheckpointError(WoqfxError):
    """A checkpoint is damaged, incomplete or hostile."""


class CheckpointWarning(UserWarning):
    """A checkpoint asks for something beside its weights that is not done here; the message says what is done."""


class CalibrationWarning(UserWarning):
    """Calibration data that will do, and say less than other data would; the message says which."""


class UnfinishedError(CheckpointError):
    """The folder holds a run that has not finished; the message says how to go on."""


class SettingsError(WoqfxError, ValueError):
    """A generation was asked for in a way that cannot be meant, or that this model cannot do."""


class GenerationError(WoqfxError):
    """A generation could not be carried out, or gave what cannot be used."""
