"""What plugins provide, by kind and name: the one place that everything which varies is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, TypeVar

from woqfx.errors import CheckpointError, CollisionError, UnknownNameError
from woqfx.plugin_loading import GROUP, Plugin, PluginManager
from woqfx.settings import Settings
from woqfx.wording import nearest

if TYPE_CHECKING:
    from torch import nn

    from woqfx.accelerator import Accelerator
    from woqfx.algorithm import Algorithm
    from woqfx.architecture import Architecture
    from woqfx.backend import Backend
    from woqfx.calibration.contract import CalibrationSet
    from woqfx.compute import ComputeDType
    from woqfx.dtype import DType
    from woqfx.events import Event
    from woqfx.foreign.files import ModelFiles
    from woqfx.format import Format

T = TypeVar("T")

#: What can be provided, by the word that messages use: its hook.
KINDS: Mapping[str, str] = {
    "dtype": "woqfx_dtypes",
    "compute dtype": "woqfx_compute_dtypes",
    "algorithm": "woqfx_algorithms",
    "backend": "woqfx_backends",
    "format": "woqfx_formats",
    "calibration set": "woqfx_calibration",
    "accelerator": "woqfx_accelerators",
}


class Registry(PluginManager):
    """All plugins of a process, and everything they provide by kind and name."""

    def __init__(self, settings: Settings | None = None, found: Iterable[EntryPoint] | None = None) -> None:
        self._provided: dict[str, dict[str, list[tuple[Plugin, Any]]]] = {}
        super().__init__(settings, found)

    def register(self, plugin: Any, name: str) -> None:
        """Add a plugin of this process, as `PluginManager.register` does."""
        super().register(plugin, name)
        self._provided.clear()

    def unregister(self, name: str) -> None:
        """Take a plugin out again, by its name or `distribution:name`."""
        super().unregister(name)
        self._provided.clear()

    def provided(self, kind: str) -> Mapping[str, list[tuple[Plugin, Any]]]:
        """Everything of one kind by name, with who provides it; usable names have one provider."""
        if kind not in self._provided:
            table: dict[str, list[tuple[Plugin, Any]]] = {}
            for plugin, thing in self._collect(kind):
                table.setdefault(thing.name, []).append((plugin, thing))
            self._provided[kind] = table
            for name, providers in table.items():
                if len(providers) > 1:
                    self.report(providers[-1][0], "collides: " + _collision(kind, name, providers))
        return self._provided[kind]

    def _collect(self, kind: str) -> Iterator[tuple[Plugin, Any]]:
        from woqfx.contracts import doubts_of, fault_of

        for plugin, implementation in self.implementing(KINDS[kind]):
            things: list[Any] = []
            with self.guard(plugin, KINDS[kind]):
                things = _listed(implementation.function())
            for thing in things:
                fault = fault_of(kind, thing)
                if fault:
                    self.report(plugin, f"provides an unusable {kind}: {fault}")
                else:
                    for doubt in doubts_of(thing):
                        self.report(plugin, f"provides a {kind} that may be misspelt: {doubt}")
                    yield plugin, thing

    def names(self, kind: str) -> list[str]:
        """All usable names of a kind, sorted."""
        return sorted(name for name, providers in self.provided(kind).items() if len(providers) == 1)

    def get(self, kind: str, name: str) -> Any:
        """The one thing of this kind and name.

        Raises `UnknownNameError`, with the nearest names and what might have provided it, or
        `CollisionError`, with both providers.
        """
        if not isinstance(name, str):
            raise UnknownNameError(f"a {kind} is asked for by its name, a string, not by {name!r}")
        providers = self.provided(kind).get(name, [])
        if len(providers) > 1:
            raise CollisionError(_collision(kind, name, providers))
        if not providers:
            raise UnknownNameError(self._unknown(kind, name))
        return providers[0][1]

    def provider(self, kind: str, name: str) -> Plugin:
        """Which plugin provides it."""
        self.get(kind, name)
        return self.provided(kind)[name][0][0]

    def _unknown(self, kind: str, name: str) -> str:
        names = self.names(kind)
        near = nearest(name, names, 3)
        message = f"there is no {kind} {name!r}"
        message += f"; did you mean {' or '.join(near)}?" if near else "."
        message += f" Installed: {', '.join(names) or 'none'}."
        for other in KINDS:
            if other != kind and name in self.provided(other):
                message += f" ({name!r} is a {other}.)"
        absent = [p for p in self.plugins if p.absent or p.problems]
        for plugin in sorted(absent, key=lambda p: (p.name != name, p.name)):
            message += f" It may be in {plugin.title}, which is {plugin.absent or 'faulty: ' + plugin.problems[0]}."
        return message + f" A package provides one through the entry-point group {GROUP!r}, hook {KINDS[kind]!r}."

    def dtype(self, name: str) -> DType:
        """A storage grid by name."""
        found: DType = self.get("dtype", name)
        return found

    def compute_dtype(self, name: str) -> ComputeDType:
        """A compute dtype by name."""
        found: ComputeDType = self.get("compute dtype", name)
        return found

    def algorithm(self, name: str) -> type[Algorithm]:
        """An algorithm's class by name."""
        found: type[Algorithm] = self.get("algorithm", name)
        return found

    def backend(self, name: str) -> Backend:
        """A backend by name."""
        found: Backend = self.get("backend", name)
        return found

    def calibration_set(self, name: str) -> CalibrationSet:
        """Calibration data by name."""
        found: CalibrationSet = self.get("calibration set", name)
        return found

    def format_of(self, files: ModelFiles) -> Format | None:
        """The format of these files; None if no plugin knows it. Raises `CheckpointError` if several do."""
        found = [name for name in self.names("format") if self._detects(name, files)]
        if len(found) > 1:
            raise CheckpointError(
                f"{files.label} is taken for its own by formats {' and '.join(found)}: mend the quantization_config in "
                f"its config.json, or leave out the plugin of one ({self.provider('format', found[0]).title})"
            )
        return self.get("format", found[0]) if found else None

    def _detects(self, name: str, files: ModelFiles) -> bool:
        form: Format = self.get("format", name)
        damaged: CheckpointError | None = None
        with self.guard(self.provider("format", name), f"format {name}"):
            try:
                return form.detect(files)
            except CheckpointError as error:  # of the files, not of the plugin
                damaged = error
        if damaged is not None:
            raise damaged
        return False

    def accelerated(self, ask: Callable[[Accelerator], T | None]) -> T | None:
        """What the first accelerator that takes some work makes of it; one that raises is reported once."""
        for name in self.names("accelerator"):
            with self.guard(self.provider("accelerator", name), f"accelerator {name}"):
                done = ask(self.get("accelerator", name))
                if done is not None:
                    return done
        return None

    def architecture(self, model: nn.Module) -> Architecture:
        """What plugins tell of this model: of each thing, what the first one says that says something."""
        from woqfx.architecture import Architecture

        stacks: tuple[str, ...] = ()
        descriptions: dict[str, object] = {}
        for plugin, implementation in self.implementing("woqfx_architecture"):
            with self.guard(plugin, "woqfx_architecture"):
                told: Any = implementation.function(*(model for _ in implementation.argnames))
                if told is not None:
                    stacks = stacks or told.stacks
                    descriptions = {**told.descriptions, **descriptions}
        return Architecture(stacks, descriptions)

    def emit(self, event: Event) -> None:
        """Tell all plugins. One that raises is reported once and does not stop the run."""
        for plugin, implementation in self.implementing("woqfx_event"):
            with self.guard(plugin, "woqfx_event"):
                implementation.function(*(event for _ in implementation.argnames))

    def provided_by(self, plugin: Plugin) -> dict[str, list[str]]:
        """The names that a plugin provides, by kind."""
        found = {
            kind: sorted(name for name, who in self.provided(kind).items() if any(p is plugin for p, _ in who))
            for kind in KINDS
        }
        return {kind: names for kind, names in found.items() if names}


@cache
def registry() -> Registry:
    """The registry of this process; plugins are loaded at the first call."""
    return Registry()


def _listed(result: Any) -> list[Any]:
    if isinstance(result, str) or not isinstance(result, Iterable):
        raise TypeError(f"it gave {result!r} where a list is expected")
    return list(result)


def _collision(kind: str, name: str, providers: list[tuple[Plugin, Any]]) -> str:
    who = {plugin.key: plugin for plugin, _ in providers}
    if len(who) == 1:
        return f"{kind} {name!r} is provided twice by {providers[0][0].title}: one of them needs another name"
    titles = " and ".join(plugin.title for plugin in who.values())
    blocks = " or ".join(f"WOQFX_PLUGINS=no:{key}" for key in who)
    return f"{kind} {name!r} is provided by {titles}: uninstall one, or block it ({blocks})"
