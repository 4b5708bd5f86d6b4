"""Loading plugins, each in a guard of its own, and asking them.

Plugins are found through the entry-point group `woqfx`; the built-ins come the same way. A broken one is reported by
name and distribution, and the rest works. `woqfx.settings` says which are loaded.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from woqfx import hookspecs
from woqfx.errors import PluginError, SettingError
from woqfx.settings import Settings
from woqfx.wording import nearest

GROUP = "woqfx"

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


class PluginManager:
    """All plugins of a process, loaded or not."""

    def __init__(self, settings: Settings | None = None, found: Iterable[EntryPoint] | None = None) -> None:
        self.settings = settings or Settings.from_environment()
        self.plugins: list[Plugin] = []
        self._pm = pluggy.PluginManager(GROUP)
        self._pm.add_hookspecs(hookspecs)
        points = entry_points(group=GROUP) if found is None else found
        for point in sorted(points, key=_entry_order):
            self._consider(point)
        self._report_namesakes()
        for name in self.settings.load:
            if not any(name in (plugin.name, plugin.key) for plugin in self.plugins):
                self._load(Plugin(name), partial(importlib.import_module, name))

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
                self.report(
                    plugin,
                    f"has the name of {other.title}: both are loaded; WOQFX_PLUGINS tells them apart "
                    f"as {other.key!r} and {plugin.key!r}",
                )

    def _load(self, plugin: Plugin, load: Callable[[], Any]) -> None:
        for problem, cause in self._admit(plugin, load):
            self.report(plugin, problem, cause)

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
                near = nearest(caller.name, _hook_names())
                hint = f"did you mean {near[0]!r}?" if near else f"the hooks are {', '.join(_hook_names())}"
                yield f"implements {caller.name!r}, which is not a hook: {hint}"
            if own.wrapper or own.hookwrapper:
                yield f"implements {caller.name!r} as a wrapper, but woqfx asks each plugin alone: use a plain function"
        bare = [name for name in _hook_names() if name not in implemented and _defines(plugin.module, name)]
        for name in bare:
            yield f"defines {name!r} without the mark of a hook: decorate it with @woqfx.hookimpl"
        for name in sorted(name for name in dir(plugin.module) if name.startswith("woqfx_")):
            if name not in implemented and name not in _hook_names() and _defines(plugin.module, name):
                for meant in difflib.get_close_matches(name, _hook_names(), 1, cutoff=0.8):
                    yield f"defines {name!r}, which is not a hook: did you mean {meant!r}, with @woqfx.hookimpl?"
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

    def unregister(self, name: str) -> None:
        """Take a plugin out again, by its name or `distribution:name`."""
        for plugin in [p for p in self.plugins if name in (p.name, p.key)]:
            self._remove(plugin)

    def _remove(self, plugin: Plugin) -> None:
        if plugin.module is not None:
            self._pm.unregister(plugin.module)
        self.plugins.remove(plugin)

    def report(self, plugin: Plugin, problem: str, cause: BaseException | None = None) -> None:
        """Warn of a problem, once; raise `PluginError` where settings are strict."""
        known = problem in plugin.problems
        if not known:
            plugin.problems.append(problem)
        if self.settings.strict:
            raise PluginError(f"{plugin.title} {problem}") from cause
        if not known:
            warnings.warn(f"{plugin.title} {problem}", PluginWarning, stacklevel=2)

    def implementing(self, hook: str) -> Iterator[tuple[Plugin, pluggy.HookImpl]]:
        """Who implements a hook, in the order of loading."""
        implementations = getattr(self._pm.hook, hook).get_hookimpls()
        own = {id(i.plugin): i for i in implementations if not (i.wrapper or i.hookwrapper)}
        for plugin in self.plugins:
            if plugin.module is not None and id(plugin.module) in own:
                yield plugin, own[id(plugin.module)]

    @contextmanager
    def guard(self, plugin: Plugin, what: str) -> Iterator[None]:
        """What `plugin` raises inside is reported, but for `SettingError`, and goes no further."""
        try:
            yield
        except SettingError:
            raise
        except _FAILURES as error:
            self.report(plugin, f"failed in {what}: {_brief(error)}", error)

    def hooks_of(self, plugin: Plugin) -> list[str]:
        """The hooks that a plugin implements."""
        if plugin.module is None:
            return []
        return sorted(caller.name for caller in self._pm.get_hookcallers(plugin.module) or [] if caller.has_spec())


def _distribution_of(point: EntryPoint) -> tuple[str, str]:
    """Name and version; empty where the distribution's metadata lack them."""
    return (point.dist.name or "", point.dist.version or "") if point.dist else ("", "")


def _entry_order(point: EntryPoint) -> tuple[str, str]:
    return point.name, _distribution_of(point)[0]


def _hook_names() -> list[str]:
    return sorted(name for name in vars(hookspecs) if name.startswith("woqfx_"))


def _defines(plugin: Any, name: str) -> bool:
    return callable(inspect.getattr_static(plugin, name, None))


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
