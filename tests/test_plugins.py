"""The plugin manager on healthy plugins: finding, choosing, registering, asking. Sick ones: test_bad_plugins.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from fakedist import good_dtype, install

import woqfx
from woqfx.errors import CheckpointError, CollisionError, PluginError, UnknownNameError
from woqfx.events import Committed, Event
from woqfx.plugins import KINDS, PluginWarning, Registry
from woqfx.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

BUILT_IN = {
    "dtype": {"int2", "int3", "int4_clip", "int4_fullrange", "int5", "int6", "int7", "int8"}
    | {"fp4_bnb", "fp4_e2m1", "fp4_e2m1_itrex", "iq4_nl", "nf4"},
    "compute dtype": {"fp32", "bf16", "int8"},
    "algorithm": {"rtn"},
    "backend": {"torch_cpu"},
    "calibration set": {"python-docs", "self", "pile-10k", "wikitext2", "c4", "c4-new", "ptb", "ptb-new"},
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on `sys.path` whose modules are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


class Grid(woqfx.IntegerGrid):
    """A healthy 3-bit grid."""

    name = "grid3"
    bits = 3


class GridPlugin:
    """A plugin of this process."""

    @woqfx.hookimpl
    def woqfx_dtypes(self):
        return [Grid()]


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


def test_a_stranger_is_found_and_named(site):
    install(site, "grids-of-mine", good_dtype("mine2"), version="2.5")
    registry = Registry(Settings())
    (plugin,) = (p for p in registry.plugins if p.name == "grids_of_mine")
    assert (plugin.distribution, plugin.version) == ("grids-of-mine", "2.5")
    assert plugin.title == "plugin 'grids_of_mine' of grids-of-mine 2.5"
    assert registry.dtype("mine2").bits == 2
    assert registry.hooks_of(plugin) == ["woqfx_dtypes"]
    assert registry.provided_by(plugin) == {"dtype": ["mine2"]}


def test_an_entry_point_may_be_a_class_or_an_instance(site):
    source = good_dtype("from_class").replace("\n    ", "\n").replace("def woqfx_dtypes():", "def woqfx_dtypes(self):")
    indented = source.replace("import woqfx\n", "").replace("\n", "\n    ")
    install(
        site, "by-class", f"import woqfx\nclass Plugin:\n{indented}\nplugin = Plugin()\n", points="c = by_class:Plugin"
    )
    assert Registry(Settings()).dtype("from_class").bits == 2
    (site / "by_class-1.0.dist-info" / "entry_points.txt").write_text("[woqfx]\no = by_class:plugin\n")
    assert Registry(Settings()).dtype("from_class").bits == 2


class TestSettings:
    def test_environment(self):
        settings = Settings.from_environment(
            {
                "WOQFX_PLUGINS": " a, no:b ,,dist:c,no:dist:d",
                "WOQFX_DISABLE_PLUGIN_AUTOLOAD": "1",
                "WOQFX_STRICT_PLUGINS": "1",
            }
        )
        assert settings == Settings(False, ("a", "dist:c"), frozenset({"b", "dist:d"}), True)

    @pytest.mark.parametrize("off", [{}, {"WOQFX_DISABLE_PLUGIN_AUTOLOAD": "0", "WOQFX_STRICT_PLUGINS": "0"}])
    def test_defaults(self, off):
        assert Settings.from_environment(off) == Settings(True, (), frozenset(), False)

    def test_a_blocked_plugin_is_not_imported(self, site):
        install(site, "deadly", "raise AssertionError('imported')")
        registry = Registry(Settings(block=frozenset({"deadly"}), strict=True))
        (plugin,) = (p for p in registry.plugins if p.name == "deadly")
        assert plugin.absent == "blocked by WOQFX_PLUGINS=no:deadly"

    def test_any_built_in_can_be_blocked_and_the_rest_works(self):
        registry = Registry(Settings(block=frozenset({"rtn"}), strict=True))
        assert "rtn" not in registry.names("algorithm")
        assert BUILT_IN["dtype"] <= set(registry.names("dtype"))
        with pytest.raises(UnknownNameError, match=r"blocked by WOQFX_PLUGINS=no:rtn"):
            registry.algorithm("rtn")

    def test_without_autoload_only_the_named_are_loaded(self, site):
        install(site, "grids-of-mine", good_dtype("mine2"))
        install(site, "deadly", "raise AssertionError('imported')")
        registry = Registry(Settings(autoload=False, load=("grids_of_mine",), strict=True))
        assert registry.names("dtype") == ["mine2"]
        assert registry.names("algorithm") == []
        with pytest.raises(UnknownNameError, match="WOQFX_DISABLE_PLUGIN_AUTOLOAD"):
            registry.algorithm("rtn")

    def test_a_module_without_metadata_can_be_named(self, site):
        (site / "loose.py").write_text(good_dtype("loose2").replace("\n    ", "\n"))
        registry = Registry(Settings(load=("loose",)))
        assert registry.provider("dtype", "loose2").title == "plugin 'loose'"

    def test_a_block_beats_a_request(self, site):
        install(site, "grids-of-mine", good_dtype("mine2"))
        registry = Registry(Settings(load=("grids_of_mine",), block=frozenset({"grids_of_mine"})))
        assert "mine2" not in registry.names("dtype")

    def test_no_entry_points_at_all(self):
        assert Registry(Settings(), found=[]).plugins == []


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        pytest.param({}, {"mine2", "nf4"}, id="nothing-set"),
        pytest.param({"WOQFX_PLUGINS": "no:grids_of_mine"}, {"nf4"}, id="blocked"),
        pytest.param(
            {"WOQFX_DISABLE_PLUGIN_AUTOLOAD": "1", "WOQFX_PLUGINS": "grids_of_mine"}, {"mine2"}, id="only-mine"
        ),
    ],
)
def test_the_environment_of_a_real_process(tmp_path, variables, names):
    install(tmp_path, "grids-of-mine", good_dtype("mine2"))
    program = "import json; from woqfx.plugins import registry; print(json.dumps(registry().names('dtype')))"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WOQFX_")}
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "PYTHONPATH": str(tmp_path), **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(json.loads(run.stdout)) & {"mine2", "nf4"} == names


class TestInProcess:
    def test_register_and_unregister(self):
        registry = Registry(Settings())
        registry.names("dtype")  # what was looked up before must not be remembered
        registry.register(GridPlugin(), "mine")
        assert registry.dtype("grid3").bits == 3
        registry.unregister("mine")
        with pytest.raises(UnknownNameError):
            registry.dtype("grid3")
        registry.register(GridPlugin(), "mine")
        assert registry.provider("dtype", "grid3").title == "plugin 'mine'"

    def test_a_taken_name_is_refused(self):
        registry = Registry(Settings())
        registry.register(GridPlugin(), "mine")
        with pytest.raises(PluginError, match="'mine' is registered already"):
            registry.register(GridPlugin(), "mine")
        with pytest.raises(PluginError, match="'rtn' is registered already"):
            registry.register(GridPlugin(), "rtn")

    @pytest.mark.parametrize(
        ("plugin", "message"),
        [
            pytest.param(SimpleNamespace(), "implements no hook", id="no-hook"),
            pytest.param(
                SimpleNamespace(a=woqfx.hookimpl(specname="woqfx_dtype")(lambda: iter(()))),
                "did you mean 'woqfx_dtypes'",
                id="misspelled",
            ),
            pytest.param(
                SimpleNamespace(a=woqfx.hookimpl(specname="woqfx_dtypes")(lambda model: [])), "model", id="argument"
            ),
        ],
    )
    def test_a_bad_plugin_is_an_error_and_leaves_nothing(self, plugin, message):
        registry = Registry(Settings())
        with pytest.raises(PluginError, match=message):
            registry.register(plugin, "mine")
        registry.register(GridPlugin(), "mine")
        assert registry.dtype("grid3").bits == 3


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


class TestNamesakes:
    """Two distributions that use one entry-point name."""

    @pytest.fixture
    def two(self, site):
        install(site, "grids-a", good_dtype("from_a"), points="grids = grids_a")
        install(site, "grids-b", good_dtype("from_b"), points="grids = grids_b")

    def test_both_are_loaded_and_reported(self, two):
        with pytest.warns(
            UserWarning, match="grids-b 1.0 has the name of plugin 'grids' of grids-a 1.0.*'grids-a:grids'"
        ):
            registry = Registry(Settings())
        assert {"from_a", "from_b"} <= set(registry.names("dtype"))

    def test_strict_mode_refuses(self, two):
        with pytest.raises(PluginError, match="has the name of"):
            Registry(Settings(strict=True))

    @pytest.mark.parametrize(
        ("blocked", "left"),
        [("grids-a:grids", {"from_b"}), ("grids-b:grids", {"from_a"}), ("grids", set())],
        ids=["one", "other", "both"],
    )
    def test_blocking(self, two, blocked, left):
        registry = Registry(Settings(block=frozenset({blocked}), strict=True))
        assert {"from_a", "from_b"} & set(registry.names("dtype")) == left

    def test_a_built_in_s_entry_point_name_cannot_be_taken(self, site):
        install(site, "usurper", good_dtype("usurped"), points="dtypes = usurper")
        with pytest.warns(UserWarning, match="usurper 1.0 has the name of|has the name of plugin 'dtypes' of usurper"):
            registry = Registry(Settings())
        assert BUILT_IN["dtype"] | {"usurped"} <= set(registry.names("dtype"))


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


class TestImport:
    """`import woqfx` and finding plugins are instant: they load neither torch nor transformers."""

    @staticmethod
    def run(program: str) -> dict:
        lines = (
            "import sys, time; start = time.process_time()",
            program,
            "seconds = time.process_time() - start",
            "heavy = [m for m in ('torch', 'transformers', 'numpy') if m in sys.modules]",
            "import json; print(json.dumps({'seconds': seconds, 'heavy': heavy}))",
        )
        run = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
        return json.loads(run.stdout)

    def test_only_woqfx_testing_needs_pytest(self):
        root = Path(woqfx.__file__).parent
        paths = [path.relative_to(root.parent).with_suffix("") for path in root.rglob("*.py")]
        names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
        core = [name for name in names if not name.startswith("woqfx.testing") and not name.endswith("__main__")]
        imports = "\n".join(f"import {name}" for name in core)
        self.run(f"{imports}\nimport sys\nassert not {{'pytest', 'hypothesis'}} & set(sys.modules)")

    def test_import_woqfx(self):
        runs = [self.run("import woqfx") for _ in range(3)]
        assert all(run["heavy"] == [] for run in runs)
        assert min(run["seconds"] for run in runs) < 0.2

    def test_finding_the_plugins(self):
        runs = [
            self.run("from woqfx.plugins import registry; [registry().hooks_of(p) for p in registry().plugins]")
            for _ in range(3)
        ]
        assert all(run["heavy"] == [] for run in runs)
        assert min(run["seconds"] for run in runs) < 0.4


def test_every_kind_has_its_hook():
    from woqfx import hookspecs

    assert all(callable(getattr(hookspecs, hook)) for hook in KINDS.values())
