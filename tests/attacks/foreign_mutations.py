"""Changes to a checkpoint of any format that know its structure: json, safetensors, GGUF."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from foreign import CONFIG, WEIGHTS, change_header, change_tensors
from mutations import edit

#: Lengths, counts and offsets that a reader must not believe.
_NUMBERS = [0, 1, 7, 31, 33, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1]


def mutate_folder(folder: Path, chance: Random) -> None:
    """Change a folder of safetensors in one or two places."""
    acts: list[Callable[[Path, Random], None]] = [_settings, _config, _header, _values, _flip_weights, _length]
    for act in chance.choices(acts, weights=[5, 1, 5, 4, 1, 1], k=chance.randint(1, 2)):
        try:
            act(folder, chance)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):  # unreadable after an earlier change
            _flip(folder / WEIGHTS, chance)
        except Exception:  # safetensors' own errors, of no common class
            _flip(folder / CONFIG, chance)


def mutate_gguf(path: Path, chance: Random) -> None:
    """Change a GGUF file in one or two places: a number in its header, any byte, its length."""
    data = bytearray(path.read_bytes())
    header = min(len(data), 8192)
    for _ in range(chance.randint(1, 2)):
        kind = chance.random()
        if kind < 0.5 and header > 8:
            size = chance.choice([4, 8])
            at = chance.randrange(4, header - size)
            data[at : at + size] = (chance.choice(_NUMBERS) & (2 ** (8 * size) - 1)).to_bytes(size, "little")
        elif kind < 0.75:
            data[chance.randrange(header)] ^= 1 << chance.randrange(8)
        elif kind < 0.9:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        else:
            del data[chance.randrange(1, len(data)) :]
            header = min(len(data), header)
    path.write_bytes(bytes(data))


def _settings(folder: Path, chance: Random) -> None:
    """What the config says of the quantization."""
    config = json.loads((folder / CONFIG).read_text())
    edit(config["quantization_config"], chance)
    (folder / CONFIG).write_text(json.dumps(config))


def _config(folder: Path, chance: Random) -> None:
    config = json.loads((folder / CONFIG).read_text())
    edit(config, chance)
    (folder / CONFIG).write_text(json.dumps(config))


def _header(folder: Path, chance: Random) -> None:
    change_header(folder / WEIGHTS, lambda header: edit(header, chance))


def _values(folder: Path, chance: Random) -> None:
    """A number of a tensor becomes one that no writer writes, or a tensor another one, or of another type or shape."""

    def change(tensors: dict[str, Any]) -> None:
        name = chance.choice(sorted(tensors))
        kind = chance.random()
        tensor = tensors[name]
        if kind < 0.6 and tensor.numel():
            values = ["nan", "inf", "-inf", 0, -1, 65504] if tensor.is_floating_point() else [0, -1, 1, 127, 2**31 - 1]
            value = float(chance.choice(values))
            limits = torch.finfo(tensor.dtype) if tensor.is_floating_point() else torch.iinfo(tensor.dtype)
            if not tensor.is_floating_point():
                value = max(limits.min, min(limits.max, int(value)))
            tensor.view(-1)[chance.randrange(tensor.numel())] = value
        elif kind < 0.7:
            tensors[name] = tensors[chance.choice(sorted(tensors))].clone()
        elif kind < 0.8:
            tensors[name] = tensor.flatten()[: max(1, tensor.numel() // 2)].clone()
        elif kind < 0.9:
            tensors[name] = tensor.view(torch.uint8).clone() if tensor.dim() else tensor
        else:
            tensors[f"{name}.{chance.choice(['x', 'qweight', 'bias'])}"] = tensors.pop(name)

    change_tensors(folder, change)


def _flip_weights(folder: Path, chance: Random) -> None:
    _flip(folder / WEIGHTS, chance)


def _length(folder: Path, chance: Random) -> None:
    path = folder / WEIGHTS
    data = path.read_bytes()
    if chance.random() < 0.3 and len(data) > 8:
        path.write_bytes(struct.pack("<Q", chance.choice(_NUMBERS)) + data[8:])
    else:
        path.write_bytes(data[: chance.randrange(len(data))] if data and chance.random() < 0.7 else data + bytes(8))


def _flip(path: Path, chance: Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 4) if data else 0):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data))
