"""Changes to a checkpoint that know its structure: one of them reaches what random bytes never would."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from forgeries import MANIFEST, Forgery

HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 255, 2**31, 2**63, 2**64, 10**40, 0.5, -0.0, 1e308),
    *("", "x", ".", "..", "../x", "/etc/passwd", "nf4", "int8", "fp16", "float32", "weight", "é\u202e", "a" * 300),
    *([], {}, [[]], [0], [-1, 2], {"": {}}, [1] * 50, "plain.weight", "plain.weight.codes", "model.safetensors"),
]


def mutate(forgery: Forgery, chance: Random) -> bool:
    """Change the checkpoint in one to three places. True if the manifest was made to fit, or is what was changed."""
    (kind,) = chance.choices([_manifest, _header, _signed_bytes, _bytes, _length], weights=[4, 4, 1, 1, 1])
    return max([kind(forgery, chance) for _ in range(chance.randint(1, 3))])


def _manifest(forgery: Forgery, chance: Random) -> bool:
    if chance.random() < 0.2:
        _flip(forgery, MANIFEST, chance)
        return True
    try:
        forgery.edit(lambda manifest: edit(manifest, chance))
    except ValueError:  # an earlier change has left it unreadable
        _flip(forgery, MANIFEST, chance)
    return True


def _header(forgery: Forgery, chance: Random) -> bool:
    signed = chance.random() < 0.9
    before = (forgery.path / MANIFEST).read_bytes()
    try:
        forgery.reheader(lambda header: edit(header, chance))
    except (ValueError, KeyError, TypeError, AttributeError):  # unreadable after an earlier change
        _flip(forgery, "model.safetensors", chance)
    if not signed:
        (forgery.path / MANIFEST).write_bytes(before)
    return signed


def _signed_bytes(forgery: Forgery, chance: Random) -> bool:
    _flip(forgery, "model.safetensors", chance)
    forgery.sign("model.safetensors")
    return True


def _bytes(forgery: Forgery, chance: Random) -> bool:
    _flip(forgery, "model.safetensors", chance)
    return False


def _length(forgery: Forgery, chance: Random) -> bool:
    path = forgery.path / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data))] if data and chance.random() < 0.7 else data + bytes(8))
    return False


def _flip(forgery: Forgery, name: str, chance: Random) -> None:
    path = forgery.path / name
    data = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 4) if data else 0):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def edit(tree: Any, chance: Random) -> None:
    """Replace, remove, copy or rename something in a parsed JSON document."""
    places = list(_places(tree))
    if not places:
        return
    holder, key = chance.choice(places)
    value = holder[key]
    other_holder, other_key = chance.choice(places)
    acts: list[Callable[[], Any]] = [
        lambda: holder.__setitem__(key, copy.deepcopy(chance.choice(HOSTILE))),
        lambda: holder.__setitem__(key, copy.deepcopy(other_holder[other_key])),
        lambda: holder.__delitem__(key),
        lambda: _nudge(holder, key, value, chance),
    ]
    if isinstance(holder, dict):
        acts.append(lambda: holder.__setitem__(str(chance.choice(HOSTILE)), holder.pop(key)))
    chance.choice(acts)()
    json.dumps(tree)  # whatever was made of it can be written


def _nudge(holder: Any, key: Any, value: Any, chance: Random) -> None:
    if isinstance(value, bool) or not isinstance(value, int | str):
        holder[key] = [value]
    elif isinstance(value, int):
        holder[key] = value + chance.choice([-1, 1, 8, -8, 2**32])
    else:
        holder[key] = value + chance.choice(["x", ".", "/", "0"])


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])
