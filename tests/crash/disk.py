"""A model of what a disk holds after a power cut.

A file's bytes are certain up to its last sync, a folder's names up to that folder's last sync. The rest may or may not
have reached the disk: `Disk.after_power_cut` writes what could be found there. Pessimistic where file systems differ:
a name may be safe while its bytes are not, and one of two folders may have seen a rename.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Loss = Literal["all", "tails zeroed", "tails halved", "some"]
LOSSES: tuple[Loss, ...] = ("all", "tails zeroed", "tails halved", "some")


@dataclass(eq=False)
class _File:
    safe: bytes = b""


@dataclass(eq=False)
class _Folder:
    now: dict[str, _File | _Folder] = field(default_factory=dict)
    safe: dict[str, _File | _Folder] = field(default_factory=dict)


_Names = dict[int, dict[str, _File | _Folder]]


class Disk:
    """Follows the steps of a process (`watch`) below the folder `root`, all of which is safe at the start."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tree = _scan(root)
        self._moves: list[tuple[_File | _Folder, _Folder, _Folder, str]] = []
        self._open: dict[int, Path] = {}

    def watch(self, step: str, result: Any, arguments: tuple[Any, ...]) -> None:
        """A step was taken."""
        if step == "open":
            path = Path(arguments[0])
            self._open[result()] = path
            if path.is_relative_to(self._root) and path.is_file():
                folder = self._folder(path.parent)
                folder.now.setdefault(path.name, _File())
        elif step in ("fsync", "fdatasync"):
            self._sync(arguments[0])
        elif step == "replace":
            source, target = Path(arguments[0]), Path(arguments[1])
            before, after = self._folder(source.parent), self._folder(target.parent)
            after.now[target.name] = before.now.pop(source.name)
            self._moves.append((after.now[target.name], before, after, target.name))
        elif step in ("unlink", "rmdir"):
            path = Path(arguments[0])
            del self._folder(path.parent).now[path.name]
        elif step == "mkdir":
            path = Path(arguments[0])
            self._folder(path.parent).now[path.name] = _Folder()

    def _sync(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115 - the journal's descriptor is not opened by path
        if path.is_dir():
            folder = self._folder(path)
            folder.safe = dict(folder.now)
        else:
            file = self._folder(path.parent).now[path.name]
            assert isinstance(file, _File)
            file.safe = path.read_bytes()

    def _folder(self, path: Path) -> _Folder:
        node: _File | _Folder = self._tree
        for part in path.relative_to(self._root).parts:
            assert isinstance(node, _Folder)
            node = node.now[part]
        assert isinstance(node, _Folder)
        return node

    def after_power_cut(self, image: Path, loss: Loss, seed: int) -> None:
        """Write into the folder `image` what the disk could hold if the power failed now."""
        chance = random.Random(seed)
        names = {id(folder): _names(folder, loss, chance) for folder in _folders(self._tree)}
        for node, before, after, name in self._moves:
            if id(after) in names and not any(node in names.get(id(folder), {}).values() for folder in (before, after)):
                names[id(after)][name] = node
        self._place(self._tree, image, names, loss, chance)

    def _place(self, folder: _Folder, image: Path, names: _Names, loss: Loss, chance: random.Random) -> None:
        image.mkdir(exist_ok=True)
        for name, node in names[id(folder)].items():
            if isinstance(node, _Folder):
                self._place(node, image / name, names, loss, chance)
            else:
                (image / name).write_bytes(_survives(node.safe, self._current(node), loss, chance))

    def _current(self, file: _File) -> bytes:
        """The bytes of a file now, under whatever name it has; what was removed counts as it was last safe."""

        def search(folder: _Folder, path: Path) -> bytes | None:
            for name, node in folder.now.items():
                if node is file:
                    return (path / name).read_bytes()
                if isinstance(node, _Folder) and (found := search(node, path / name)) is not None:
                    return found
            return None

        found = search(self._tree, self._root)
        return file.safe if found is None else found


def _folders(folder: _Folder) -> list[_Folder]:
    """A folder and all that are or were below it."""
    below = {id(node): node for node in (*folder.now.values(), *folder.safe.values()) if isinstance(node, _Folder)}
    return [folder, *(inner for node in below.values() for inner in _folders(node))]


def _names(folder: _Folder, loss: Loss, chance: random.Random) -> dict[str, _File | _Folder]:
    lost = loss == "all" or (loss == "some" and chance.random() < 0.5)
    return dict(folder.safe if lost else folder.now)


def _survives(safe: bytes, current: bytes, loss: Loss, chance: random.Random) -> bytes:
    if loss == "some":
        loss = chance.choice(LOSSES[:3])
    if loss == "all":
        return safe
    if not current.startswith(safe):  # cut off or written anew since
        return bytes(len(current)) if loss == "tails zeroed" else safe
    tail = len(current) - len(safe)
    return safe + bytes(tail) if loss == "tails zeroed" else current[: len(safe) + tail // 2]


def _scan(root: Path) -> _Folder:
    nodes: dict[str, _File | _Folder] = {
        path.name: _scan(path) if path.is_dir() else _File(path.read_bytes()) for path in root.iterdir()
    }
    return _Folder(dict(nodes), dict(nodes))
