"""Loading plugins: found, chosen, named twice, registered, imported late. Sick ones: test_bad_plugins.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from fakedist import good_dtype, install

import woqfx
from woqfx.errors import PluginError, UnknownNameError
from woqfx.plugins import Registry
from woqfx.settings import Settings

if TYPE_CHECKING:
    pass


SOME_DTYPES = {"int4_clip", "int8", "nf4"}


class Grid(woqfx.IntegerGrid):
    """A healthy 3-bit grid."""

    name = "grid3"
    bits = 3


class GridPlugin:
    """A plugin of this process."""

    @woqfx.hookimpl
    def woqfx_dtypes(self):
        return [Grid()]


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
        assert set(registry.names("dtype")) >= SOME_DTYPES
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
        assert set(registry.names("dtype")) >= SOME_DTYPES | {"usurped"}


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
