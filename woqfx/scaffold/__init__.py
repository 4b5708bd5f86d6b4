"""New plugins: a whole distribution that works and passes its tests, to begin from."""

from __future__ import annotations

import importlib.util
import keyword
import re
from importlib.resources import files
from pathlib import Path, PurePosixPath
from string import Template
from typing import TYPE_CHECKING

from woqfx.errors import OutputError, PluginError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

#: What a skeleton can be made for.
KINDS = ("dtype", "algorithm", "backend")

_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
_SUFFIX = ".tmpl"


def new_plugin(kind: str, name: str, folder: str | Path) -> Path:
    """Write the distribution `woqfx-NAME` into `folder`, which must not exist yet; returns the folder.

    It holds `pyproject.toml` with an entry point of the group `woqfx`, the package, a README, and tests that
    subclass the suite of `woqfx.testing` for its kind. `name` is what users will ask for (`dtype="NAME"`).

    Raises `PluginError` for a kind or a name that cannot be, `OutputError` if the folder cannot be made.
    """
    words = _words(kind, name)
    templates = files(__name__) / "templates"
    rendered = {
        path: Template(text).substitute(words)
        for part in ("common", kind)
        for path, text in _read(templates / part, PurePosixPath())
    }
    folder = Path(folder)
    try:
        folder.mkdir(parents=True)
        for path, text in rendered.items():
            target = folder / Template(str(path)).substitute(words)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    except FileExistsError:
        raise OutputError(f"{folder} exists already: name a folder that does not") from None
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error}") from error
    return folder


def _words(kind: str, name: str) -> dict[str, str]:
    if kind not in KINDS:
        raise PluginError(f"there is no skeleton for a {kind!r}, but for: {', '.join(KINDS)}")
    if not _NAME.fullmatch(name):
        raise PluginError(f"{name!r} is no name for a plugin: use lower-case words and digits, joined by '-' or '_'")
    parts = re.split("[_-]", name)
    words = {
        "name": name,
        "distribution": "-".join(("woqfx", *parts)),
        "package": "_".join(("woqfx", *parts)),
        "Class": "".join(part.capitalize() for part in parts),
    }
    if keyword.iskeyword(words["Class"]):
        raise PluginError(f"{name!r} would need a class {words['Class']}, which Python keeps for itself")
    if importlib.util.find_spec(words["package"]) is not None:
        raise PluginError(f"a package {words['package']} is installed already: choose another name than {name!r}")
    return words


def _read(folder: Traversable, at: PurePosixPath) -> list[tuple[PurePosixPath, str]]:
    found: list[tuple[PurePosixPath, str]] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            found += _read(entry, at / entry.name.replace("package", "$package"))
        elif entry.name.endswith(_SUFFIX):
            found.append((at / entry.name.removesuffix(_SUFFIX), entry.read_text(encoding="utf-8")))
    return found
