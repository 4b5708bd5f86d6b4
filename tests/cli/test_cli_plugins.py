"""`woqfx plugins` and `woqfx new-plugin`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import woqfx

DTYPES = [
    *("fp4_bnb", "fp4_e2m1", "fp4_e2m1_itrex", "int2", "int3", "int4_clip", "int4_fullrange", "int5", "int6", "int7"),
    *("int8", "iq4_nl", "nf4"),
]


def test_the_built_ins(run):
    plugins = {plugin["name"]: plugin for plugin in json.loads(run("plugins", "--json").stdout)["plugins"]}
    dtypes = plugins["dtypes"]
    assert (dtypes["distribution"], dtypes["version"]) == ("woqfx", woqfx.__version__)
    assert dtypes["hooks"] == ["woqfx_dtypes"]
    assert dtypes["provides"] == {"dtype": DTYPES}
    shown = run("plugins").stdout
    assert f"dtype: {', '.join(DTYPES)}" in " ".join(shown.split())


def test_problems_are_shown(run):
    class Plugin:
        @woqfx.hookimpl
        def woqfx_dtypes(self):
            return ["nothing"]

    woqfx.register(Plugin(), "odd")
    try:
        result = run("plugins")
        (odd,) = [p for p in json.loads(run("plugins", "--json").stdout)["plugins"] if p["name"] == "odd"]
    finally:
        woqfx.unregister("odd")
    assert "provides an unusable dtype" in odd["problems"][0]
    assert f"plugin 'odd': {odd['problems'][0]}" in result.stdout.replace("\n", " ")


def woqfx_process(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", "from woqfx.cli import main; main()", *arguments],
        capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def test_a_plugin_that_is_missing_is_one_clean_line():
    done = woqfx_process("plugins", WOQFX_PLUGINS="no_such_module,no:rtn")
    assert done.returncode == 0
    assert done.stderr.startswith("woqfx: plugin 'no_such_module' could not be loaded: ModuleNotFoundError")
    assert len(done.stderr.splitlines()) == 1
    assert "blocked by WOQFX_PLUGINS=no:rtn" in done.stdout


def test_strict_makes_it_an_error():
    done = woqfx_process("plugins", WOQFX_PLUGINS="no_such_module", WOQFX_STRICT_PLUGINS="1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: plugin 'no_such_module'")


def test_new_plugin(run, tmp_path):
    result = run("new-plugin", "dtype", "int3", "--folder", tmp_path / "new")
    assert result.exit_code == 0
    assert (tmp_path / "new" / "pyproject.toml").is_file()
    assert f"pip install -e {tmp_path / 'new'}" in result.stdout


def test_new_plugin_of_an_unknown_kind(run, tmp_path):
    result = run("new-plugin", "colour", "blue", "--folder", tmp_path / "new")
    assert result.exit_code == 1
    assert "colour" in result.stderr
