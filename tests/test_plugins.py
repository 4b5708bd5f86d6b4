"""The plugin manager on healthy plugins: finding, choosing, registering, asking. Sick ones: test_bad_plugins.py."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from fakedist import good_dtype, install

import woqfx
from woqfx.errors import CheckpointError, CollisionError, UnknownNameError
from woqfx.events import Committed, Event
from woqfx.plugin_loading import PluginWarning
from woqfx.plugins import KINDS, Registry
from woqfx.settings import Settings

if TYPE_CHECKING:
    pass

BUILT_IN = {
    "dtype": {"int2", "int3", "int4_clip", "int4_fullrange", "int5", "int6", "int7", "int8"}
    | {"fp4_bnb", "fp4_e2m1", "fp4_e2m1_itrex", "iq4_nl", "nf4"},
    "compute dtype": {"fp32", "bf16", "int8"},
    "algorithm": {"rtn"},
    "backend": {"torch_cpu"},
    "calibration set": {"python-docs", "self", "pile-10k", "wikitext2", "c4", "c4-new", "ptb", "ptb-new"},
}


@dataclass(eq=False)
class Listener:
    """A plugin that keeps events."""

    heard: list[Event]

    @woqfx.hookimpl
    def woqfx_event(self, event):
        self.heard.append(event)


@pytest.mark.parametrize(("kind", "names"), BUILT_IN.items())
def test_built_ins_come_from_the_distribution_woqfx(kind, names):
    registry = Registry(Settings())
    assert names <= set(registry.names(kind))
    for name in names:
        provider = registry.provider(kind, name)
        assert provider.distribution == "woqfx"
        assert registry.get(kind, name).name == name
        assert name in registry.provided_by(provider)[kind]


def test_built_ins_are_free_of_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry = Registry(Settings(strict=True))
        assert all(registry.names(kind) for kind in BUILT_IN)


class TestLookUp:
    def test_a_format_knows_its_folder_and_a_broken_one_is_passed_over(self, tmp_path):
        from woqfx import ModelFiles

        def plugin(*names):
            class Layout(woqfx.Format):
                def __init__(self, name):
                    self.name = name

                def detect(self, files):
                    if self.name == "aardvark":
                        raise RuntimeError("cannot look")
                    return (files.path / self.name).exists()

                def open(self, files):
                    raise NotImplementedError

            return SimpleNamespace(f=woqfx.hookimpl(specname="woqfx_formats")(lambda: [Layout(name) for name in names]))

        registry = Registry(Settings())
        registry.register(plugin("zebra", "aardvark", "yak"), "layouts")
        (tmp_path / "zebra").touch()
        with pytest.warns(PluginWarning, match="'layouts' failed in format aardvark: RuntimeError: cannot look"):
            assert registry.format_of(ModelFiles(tmp_path)).name == "zebra"
        (tmp_path / "yak").touch()
        with pytest.raises(CheckpointError, match="taken for its own by formats yak and zebra"):
            registry.format_of(ModelFiles(tmp_path))
        (tmp_path / "zebra").unlink()
        (tmp_path / "yak").unlink()
        assert registry.format_of(ModelFiles(tmp_path)) is None

    def test_an_unknown_name_gives_the_nearest(self):
        with pytest.raises(UnknownNameError, match=r"no dtype 'int4_clp'; did you mean int4_clip.*Installed: .*nf4"):
            Registry(Settings()).dtype("int4_clp")

    def test_names_that_go_on_like_it_come_first(self):
        with pytest.raises(UnknownNameError, match=r"no dtype 'int4'; did you mean int4_clip or int4_fullrange\?"):
            Registry(Settings()).dtype("int4")

    def test_an_unknown_name_says_what_would_provide_it(self):
        with pytest.raises(UnknownNameError, match="entry-point group 'woqfx', hook 'woqfx_backends'"):
            Registry(Settings()).backend("cuda")

    def test_a_name_of_another_kind_is_pointed_out(self):
        with pytest.raises(UnknownNameError, match=r"\('nf4' is a dtype\.\)"):
            Registry(Settings()).algorithm("nf4")

    def test_a_collision_names_both_and_costs_only_that_name(self, site):
        install(site, "grids-a", good_dtype("twice"), version="1.1")
        install(site, "grids-b", good_dtype("twice"), version="1.2")
        registry = Registry(Settings())
        with pytest.warns(UserWarning, match="grids-a 1.1 and .*grids-b 1.2"):
            names = registry.names("dtype")
        assert "twice" not in names and BUILT_IN["dtype"] <= set(names)
        with pytest.raises(
            CollisionError, match=r"grids-a 1\.1 and .*grids-b 1\.2.*no:grids-a:grids_a or .*no:grids-b:grids_b"
        ):
            registry.dtype("twice")
        blocked = Registry(Settings(block=frozenset({"grids-a:grids_a"}), strict=True))
        assert blocked.provider("dtype", "twice").distribution == "grids-b"


class TestEvents:
    def test_all_listeners_hear(self):
        registry, event = Registry(Settings()), Committed("run", 1, 2)
        listeners = [Listener([]), Listener([])]
        for i, listener in enumerate(listeners):
            registry.register(listener, f"listener{i}")
        registry.emit(event)
        assert [listener.heard for listener in listeners] == [[event], [event]]

    def test_a_listener_may_leave_the_event_out(self):
        class Counter:
            count = 0

            @woqfx.hookimpl
            def woqfx_event(self):
                self.count += 1

        registry, counter = Registry(Settings()), Counter()
        registry.register(counter, "counter")
        registry.emit(Committed("run", 1, 2))
        assert counter.count == 1

    @pytest.mark.parametrize("failure", [RuntimeError("boom"), SystemExit(3)], ids=["error", "exit"])
    def test_one_that_raises_is_reported_once(self, failure):
        class Faulty:
            @woqfx.hookimpl
            def woqfx_event(self, event):
                raise failure

        registry, listener = Registry(Settings()), Listener([])
        registry.register(Faulty(), "faulty")
        registry.register(listener, "listener")
        with pytest.warns(UserWarning, match="plugin 'faulty' failed in woqfx_event") as caught:
            registry.emit(Committed("run", 1, 2))
            registry.emit(Committed("run", 2, 2))
        assert len(caught) == 1 and len(listener.heard) == 2


def test_every_kind_has_its_hook():
    from woqfx import hookspecs

    assert all(callable(getattr(hookspecs, hook)) for hook in KINDS.values())
