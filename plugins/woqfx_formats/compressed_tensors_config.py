"""What a config says of weights that compressed-tensors packed: groups of modules, and how theirs are quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from woqfx.errors import CheckpointError

_LONGEST = 1000  # letters of a pattern
_SECONDS = 1.0  # for one pattern and one name
_STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group")


@dataclass(frozen=True)
class WeightArgs:
    """How weights are quantized: `group_size` along K is -1 for a scale per row, `block` is (rows, columns)."""

    bits: int
    kind: str
    symmetric: bool
    strategy: str
    group_size: int
    block: tuple[int, int] | None

    @classmethod
    def parse(cls, found: Any, where: str) -> WeightArgs:
        """From the object `weights` of a group. Raises `CheckpointError`."""
        if not isinstance(found, dict):
            raise CheckpointError(f"{where} has no weights that are quantized")
        bits, kind = found.get("num_bits", 8), found.get("type", "int")
        group_size: Any = found.get("group_size")
        block: Any = found.get("block_structure")
        strategy = found.get("strategy") or ("group" if group_size not in (None, -1) else "channel")
        if type(bits) is not int or not 1 <= bits <= 8 or kind not in ("int", "float"):
            raise CheckpointError(f"{where}: num_bits {bits!r:.40}, type {kind!r:.40} are no type of weights")
        if strategy not in _STRATEGIES:
            raise CheckpointError(f"{where}: strategy {strategy!r:.40} is not one of {', '.join(_STRATEGIES)}")
        if strategy in ("group", "tensor_group") and not _is_size(group_size):
            raise CheckpointError(f"{where}: group_size {group_size!r:.40} is not a positive number")
        if strategy == "block" and not (isinstance(block, list) and len(block) == 2 and all(map(_is_size, block))):
            raise CheckpointError(f"{where}: block_structure {block!r:.80} is not two positive numbers")
        return cls(
            bits,
            kind,
            bool(found.get("symmetric", True)),
            strategy,
            group_size if strategy in ("group", "tensor_group") else -1,
            (block[0], block[1]) if strategy == "block" else None,
        )


@dataclass(frozen=True)
class Group:
    """Modules that are quantized alike. `inputs` and `outputs` are how the config rounds activations, None if not."""

    targets: tuple[str, ...]
    weights: WeightArgs
    inputs: Mapping[str, Any] | None
    outputs: Mapping[str, Any] | None

    @property
    def rounds_tokens(self) -> bool:
        """Whether inputs are rounded to 8-bit integers, each token by its own scale: woqfx's compute dtype int8.

        That rounds by groups, which are whole rows where weights have a scale per row.
        """
        asked = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        inputs = self.inputs or {}
        return self.weights.group_size == -1 and all(inputs.get(key) == value for key, value in asked.items())


def read_groups(quantization: Mapping[str, Any], label: str) -> tuple[Group, ...]:
    """The groups of a config. Raises `CheckpointError`."""
    sparsity = quantization.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        raise CheckpointError(
            f"{label} is sparse (sparsity_config: {sparsity['format']!r:.80}), which woqfx does not read; decompress "
            "it with compressed-tensors first"
        )
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(f"{label}: quantization_config has no config_groups, which say how weights are packed")
    return tuple(_group(group, f"{label}: config group {name!r:.80}") for name, group in groups.items())


def _group(found: Any, where: str) -> Group:
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} is not an object")
    targets = found.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise CheckpointError(f"{where}: its targets are not a list of names")
    rounded = [found.get(key) for key in ("input_activations", "output_activations")]
    if not all(one is None or isinstance(one, dict) for one in rounded):
        raise CheckpointError(f"{where}: its input_activations or output_activations are not an object")
    return Group(tuple(targets), WeightArgs.parse(found.get("weights"), where), rounded[0], rounded[1])


def not_done(groups: Sequence[Group], quantization: Mapping[str, Any]) -> list[str]:
    """What a config asks to be rounded beside weights, where woqfx computes with the numbers as they are."""
    found = [f"inputs of layers to {_described(one.inputs)}" for one in groups if one.inputs and not one.rounds_tokens]
    found += [f"outputs of layers to {_described(one.outputs)}" for one in groups if one.outputs]
    cache = quantization.get("kv_cache_scheme")
    if isinstance(cache, dict):
        found.append(f"keys and values to {_described(cache)} (kv_cache_scheme)")
    return list(dict.fromkeys(found))


def _described(activations: Mapping[str, Any]) -> str:
    kind = {"int": "integers", "float": "floats"}.get(str(activations.get("type", "int")), "numbers")
    when = {False: "static", True: "dynamic", "local": "local"}.get(activations.get("dynamic", False), "other")
    return f"{activations.get('num_bits', 8)!s:.9}-bit {kind} ({activations.get('strategy') or 'tensor'!s:.40}, {when})"


def group_of(module: str, groups: Sequence[Group], label: str) -> Group:
    """The group of a module: one that names it, or whose pattern it matches, or else one for its class.

    Of a single group every packed module is one. Raises `CheckpointError` if there is none.
    """
    if len(groups) == 1:
        return groups[0]
    for matches in (_named, _matched, _classed):
        for group in groups:
            if any(matches(module, target, label) for target in group.targets):
                return group
    raise CheckpointError(f"{label}: {module[:200]} is packed, but no config group has it as a target")


def _named(module: str, target: str, _: str) -> bool:
    return module == target


def _matched(module: str, target: str, label: str) -> bool:
    if not target.startswith("re:"):
        return False
    if len(target) > _LONGEST:
        raise CheckpointError(f"{label}: target {target[:80]!r}... of a config group is too long")
    try:
        return regex.match(target[3:], module, timeout=_SECONDS) is not None
    except (regex.error, TimeoutError) as error:
        what = f"target {target[:200]!r} of a config group"
        raise CheckpointError(f"{label}: {what} cannot be matched: {error}") from None


def _classed(module: str, target: str, _: str) -> bool:
    """Targets without a dot are names of classes; embeddings are the only ones beside kinds of `Linear`."""
    is_embedding = "embed" in module.rpartition(".")[2]
    return "." not in target and not target.startswith("re:") and ("Embedding" in target) == is_embedding


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31
