"""The plugin manager: what is installed, what it provides, and what is wrong with it.

Plugins are found through the entry-point group `woqfx`; the built-ins come the same way. Each is loaded
in a guard of its own: a broken one is reported by name and distribution, and the rest works.

`woqfx.settings` says which are loaded.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from woqfx import hookspecs
from woqfx.errors import CheckpointError, CollisionError, PluginError, SettingError, UnknownNameError
from woqfx.settings import Settings

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

GROUP = "woqfx"

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

#: What a plugin's code may raise without stopping anyone else: `sys.exit` in a plugin must not end the process.
_FAILURES = (Exception, SystemExit)


class PluginWarning(UserWarning):
    """A plugin has a problem; the rest goes on without it."""


@dataclass
class Plugin:
    """One plugin, loaded or not."""

    name: str
    distribution: str = ""
    version: str = ""
    module: Any = None
    #: Why it is not loaded, if it is not: "blocked", or the error.
    absent: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Its name, told apart from the same name in another distribution."""
        return f"{self.distribution}:{self.name}" if self.distribution else self.name

    @property
    def title(self) -> str:
        """How messages call it."""
        owner = f"{self.distribution} {self.version}".strip()
        return f"plugin {self.name!r} of {owner}" if owner else f"plugin {self.name!r}"


class Registry:
    """All plugins of a process, and everything they provide by kind and name."""

    def __init__(self, settings: Settings | None = None, found: Iterable[EntryPoint] | None = None) -> None:
        self.settings = settings or Settings.from_environment()
        self.plugins: list[Plugin] = []
        self._pm = pluggy.PluginManager(GROUP)
        self._pm.add_hookspecs(hookspecs)
        self._provided: dict[str, dict[str, list[tuple[Plugin, Any]]]] = {}
        points = entry_points(group=GROUP) if found is None else found
        for point in sorted(points, key=_entry_order):
            self._consider(point)
        self._report_namesakes()
        for name in self.settings.load:
            if not any(name in (plugin.name, plugin.key) for plugin in self.plugins):
                self._load(Plugin(name), partial(importlib.import_module, name))

    # -- loading ---------------------------------------------------------------------------------

    def _consider(self, point: EntryPoint) -> None:
        plugin = Plugin(point.name, *_distribution_of(point))
        names = {plugin.name, plugin.key}
        if names & self.settings.block:
            plugin.absent = f"blocked by WOQFX_PLUGINS=no:{min(names & self.settings.block)}"
        elif not self.settings.autoload and not names.intersection(self.settings.load):
            plugin.absent = "not named by WOQFX_PLUGINS while WOQFX_DISABLE_PLUGIN_AUTOLOAD is set"
        if plugin.absent:
            self.plugins.append(plugin)
        else:
            self._load(plugin, point.load)

    def _report_namesakes(self) -> None:
        """Two distributions may use one entry-point name: both are loaded, for only the name is in dispute."""
        first: dict[str, Plugin] = {}
        for plugin in self.plugins:
            other = first.setdefault(plugin.name, plugin)
            if other is not plugin and plugin.module is not None and other.module is not None:
                self._report(
                    plugin,
                    f"has the name of {other.title}: both are loaded; WOQFX_PLUGINS tells them apart "
                    f"as {other.key!r} and {plugin.key!r}",
                )

    def _load(self, plugin: Plugin, load: Callable[[], Any]) -> None:
        for problem, cause in self._admit(plugin, load):
            self._report(plugin, problem, cause)

    def _admit(self, plugin: Plugin, load: Callable[[], Any]) -> list[tuple[str, BaseException | None]]:
        """Load a plugin in its guard; returns what is wrong with it, with the cause."""
        self.plugins.append(plugin)
        try:
            loaded = load()
            plugin.module = loaded() if inspect.isclass(loaded) else loaded
            self._pm.register(plugin.module, plugin.key)
        except _FAILURES as error:
            if plugin.module is not None and self._pm.get_plugin(plugin.key) is plugin.module:
                self._pm.unregister(plugin.module)  # pluggy keeps what it accepted before it refused a hook
            plugin.module, plugin.absent = None, _brief(error)
            return [(f"could not be loaded: {plugin.absent}", error)]
        return [(problem, None) for problem in self._hook_problems(plugin)]

    def _hook_problems(self, plugin: Plugin) -> Iterator[str]:
        callers = self._pm.get_hookcallers(plugin.module) or []
        implemented = {caller.name for caller in callers}
        for caller in callers:
            (own,) = (i for i in caller.get_hookimpls() if i.plugin is plugin.module)
            if not caller.has_spec() and not own.optionalhook:
                near = difflib.get_close_matches(caller.name, _hook_names(), 1)
                hint = f"did you mean {near[0]!r}?" if near else f"the hooks are {', '.join(_hook_names())}"
                yield f"implements {caller.name!r}, which is not a hook: {hint}"
            if own.wrapper or own.hookwrapper:
                yield f"implements {caller.name!r} as a wrapper, but woqfx asks each plugin alone: use a plain function"
        bare = [name for name in _hook_names() if name not in implemented and _defines(plugin.module, name)]
        for name in bare:
            yield f"defines {name!r} without the mark of a hook: decorate it with @woqfx.hookimpl"
        if not callers and not bare:
            yield f"implements no hook; the hooks are {', '.join(_hook_names())}"

    def register(self, plugin: Any, name: str) -> None:
        """Add a plugin of this process: any object or module with `@woqfx.hookimpl` functions.

        Raises `PluginError` if its hooks are not right: who registers by hand is there to mend it.
        """
        if any(known.name == name and known.module is not None for known in self.plugins):
            raise PluginError(f"a plugin named {name!r} is registered already")
        entry = Plugin(name)
        for problem, cause in self._admit(entry, lambda: plugin):
            self._remove(entry)
            raise PluginError(f"{entry.title} {problem}") from cause
        self._provided.clear()

    def unregister(self, name: str) -> None:
        """Take a plugin out again, by its name or `distribution:name`."""
        for plugin in [p for p in self.plugins if name in (p.name, p.key)]:
            self._remove(plugin)
        self._provided.clear()

    def _remove(self, plugin: Plugin) -> None:
        if plugin.module is not None:
            self._pm.unregister(plugin.module)
        self.plugins.remove(plugin)

    def _report(self, plugin: Plugin, problem: str, cause: BaseException | None = None) -> None:
        known = problem in plugin.problems
        if not known:
            plugin.problems.append(problem)
        if self.settings.strict:
            raise PluginError(f"{plugin.title} {problem}") from cause
        if not known:
            warnings.warn(f"{plugin.title} {problem}", PluginWarning, stacklevel=2)

    # -- what they provide -----------------------------------------------------------------------

    def provided(self, kind: str) -> Mapping[str, list[tuple[Plugin, Any]]]:
        """Everything of one kind by name, with who provides it; usable names have one provider."""
        if kind not in self._provided:
            table: dict[str, list[tuple[Plugin, Any]]] = {}
            for plugin, thing in self._collect(kind):
                table.setdefault(thing.name, []).append((plugin, thing))
            self._provided[kind] = table
            for name, providers in table.items():
                if len(providers) > 1:
                    self._report(providers[-1][0], "collides: " + _collision(kind, name, providers))
        return self._provided[kind]

    def _collect(self, kind: str) -> Iterator[tuple[Plugin, Any]]:
        from woqfx.contracts import fault_of

        for plugin, implementation in self._implementing(KINDS[kind]):
            things: list[Any] = []
            with self._guard(plugin, KINDS[kind]):
                things = _listed(implementation.function())
            for thing in things:
                fault = fault_of(kind, thing)
                if fault:
                    self._report(plugin, f"provides an unusable {kind}: {fault}")
                else:
                    yield plugin, thing

    def _implementing(self, hook: str) -> Iterator[tuple[Plugin, pluggy.HookImpl]]:
        implementations = getattr(self._pm.hook, hook).get_hookimpls()
        own = {id(i.plugin): i for i in implementations if not (i.wrapper or i.hookwrapper)}
        for plugin in self.plugins:
            if plugin.module is not None and id(plugin.module) in own:
                yield plugin, own[id(plugin.module)]

    @contextmanager
    def _guard(self, plugin: Plugin, hook: str) -> Iterator[None]:
        try:
            yield
        except SettingError:
            raise
        except _FAILURES as error:
            self._report(plugin, f"failed in {hook}: {_brief(error)}", error)

    def names(self, kind: str) -> list[str]:
        """All usable names of a kind, sorted."""
        return sorted(name for name, providers in self.provided(kind).items() if len(providers) == 1)

    def get(self, kind: str, name: str) -> Any:
        """The one thing of this kind and name.

        Raises `UnknownNameError`, with the nearest names and what might have provided it, or
        `CollisionError`, with both providers.
        """
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
        near = difflib.get_close_matches(name, names, 3, 0.5)
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
        with self._guard(self.provider("format", name), f"format {name}"):
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
            with self._guard(self.provider("accelerator", name), f"accelerator {name}"):
                done = ask(self.get("accelerator", name))
                if done is not None:
                    return done
        return None

    def architecture(self, model: nn.Module) -> Architecture:
        """What plugins tell of this model: of each thing, what the first one says that says something."""
        from woqfx.architecture import Architecture

        stacks: tuple[str, ...] = ()
        descriptions: dict[str, object] = {}
        for plugin, implementation in self._implementing("woqfx_architecture"):
            with self._guard(plugin, "woqfx_architecture"):
                told: Any = implementation.function(*(model for _ in implementation.argnames))
                if told is not None:
                    stacks = stacks or told.stacks
                    descriptions = {**told.descriptions, **descriptions}
        return Architecture(stacks, descriptions)

    def emit(self, event: Event) -> None:
        """Tell all plugins. One that raises is reported once and does not stop the run."""
        for plugin, implementation in self._implementing("woqfx_event"):
            with self._guard(plugin, "woqfx_event"):
                implementation.function(*(event for _ in implementation.argnames))

    def hooks_of(self, plugin: Plugin) -> list[str]:
        """The hooks that a plugin implements."""
        if plugin.module is None:
            return []
        return sorted(caller.name for caller in self._pm.get_hookcallers(plugin.module) or [] if caller.has_spec())

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


def _distribution_of(point: EntryPoint) -> tuple[str, str]:
    """Name and version; empty where the distribution's metadata lack them."""
    return (point.dist.name or "", point.dist.version or "") if point.dist else ("", "")


def _entry_order(point: EntryPoint) -> tuple[str, str]:
    return point.name, _distribution_of(point)[0]


def _hook_names() -> list[str]:
    return sorted(name for name in vars(hookspecs) if name.startswith("woqfx_"))


def _defines(plugin: Any, name: str) -> bool:
    return callable(inspect.getattr_static(plugin, name, None))


def _listed(result: Any) -> list[Any]:
    if isinstance(result, str) or not isinstance(result, Iterable):
        raise TypeError(f"it gave {result!r} where a list is expected")
    return list(result)


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _collision(kind: str, name: str, providers: list[tuple[Plugin, Any]]) -> str:
    who = {plugin.key: plugin for plugin, _ in providers}
    if len(who) == 1:
        return f"{kind} {name!r} is provided twice by {providers[0][0].title}: one of them needs another name"
    titles = " and ".join(plugin.title for plugin in who.values())
    blocks = " or ".join(f"WOQFX_PLUGINS=no:{key}" for key in who)
    return f"{kind} {name!r} is provided by {titles}: uninstall one, or block it ({blocks})"
