"""From a `config.json` that may be hostile to an empty module tree.

transformers takes a config at its word: some keys have it fetch and run code, and numbers in others have it build
lists or layers without end. So the first are left out, and the numbers are bounded by what the files can fill.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from woqfx.errors import CheckpointError, SourceError
from woqfx.skeleton import build_skeleton, named_state
from woqfx.source.files import parse_object
from woqfx.source.metadata import GENERATION_CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# What may have transformers fetch or run code, what names a place of another machine, and what is woqfx's own.
_DROPPED = frozenset(
    {
        "quantization_config",
        "auto_map",
        "trust_remote_code",
        "custom_pipelines",
        "_name_or_path",
        "transformers_weights",
    }
)
_DROPPED_PREFIXES = ("_attn_implementation", "_experts_implementation", "attn_implementation", "experts_implementation")

# Numbers of things (layers, labels) that some Python loop may count up to, and words in names of other large numbers.
_MOST_THINGS = 1 << 20
_MEASURES = frozenset(
    {"base", "chunk", "ctx", "dim", "id", "ids", "index", "len", "length", "max", "params", "pixels", "position"}
    | {"positions", "seed", "size", "steps", "theta", "tokens", "window"}
)
_LARGEST = 1 << 40

#: Sizes without which there is no model, by the names that are common to transformers' configs.
_AT_LEAST_ONE = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads")

_SPARE_MODULES = 10_000
_SPARE_BUFFER_BYTES = 256 << 20


def harmless(value: Any) -> Any:
    """`value`, of parsed JSON, without the keys that may have transformers run or fetch code, at any depth."""
    if isinstance(value, list):
        return [harmless(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {
        key: harmless(inner)
        for key, inner in value.items()
        if key not in _DROPPED and not key.startswith(_DROPPED_PREFIXES)
    }


def build(config: Mapping[str, Any], tensors: int, label: str) -> PreTrainedModel:
    """The module tree that `config` describes, on the meta device, for a checkpoint of so many tensors.

    Raises `CheckpointError`, with the checkpoint's `label`, if transformers knows no such model or if it would be far
    larger than the checkpoint can fill.
    """
    from transformers import AutoConfig

    check_numbers(config, f"{label}: config.json")
    try:
        parsed = AutoConfig.for_model(**config)
    except Exception as error:  # values from a file, checked by any of some hundred config classes
        raise CheckpointError(
            f"{label}: config.json describes no model that transformers knows: {str(error)[:500]}"
        ) from error
    return build_parsed(parsed, tensors, label)


def check_numbers(config: Mapping[str, Any], where: str) -> None:
    """Raise `CheckpointError` for numbers that no model has and some constructor might count up to."""
    if excess := next(_excessive("", config), None):
        raise CheckpointError(f"{where} has {excess}, more than any model has; fetch the checkpoint again")


def build_parsed(config: PreTrainedConfig, tensors: int, label: str) -> PreTrainedModel:
    """The same of a config that transformers has parsed, from numbers that were checked."""
    _check_sizes(config, label)
    try:
        with _at_most(10 * tensors + _SPARE_MODULES):
            model = build_skeleton(config)
    except SourceError as error:
        raise CheckpointError(f"{label}: {str(error)[:500]}") from error
    _check_buffers(model, label)
    return model


def _check_sizes(config: PreTrainedConfig, label: str) -> None:
    """An empty model would be built, and would answer."""
    for part in (config, config.get_text_config()):
        for key in _AT_LEAST_ONE:
            found = getattr(part, key, None)
            if type(found) is int and found < 1:
                raise CheckpointError(
                    f"{label}: its config has {key} {found}, which is no model; the file is damaged: fetch it again"
                )


def _excessive(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner, content in value.items():
            yield from _excessive(inner, content)
    elif isinstance(value, list):
        for content in value:
            yield from _excessive(key, content)
    elif isinstance(value, int) and abs(value) > (_MOST_THINGS if _MEASURES.isdisjoint(key.split("_")) else _LARGEST):
        yield f"{key[:80]!r} = {str(value)[:40]}"


@contextmanager
def _at_most(modules: int) -> Iterator[None]:
    """Stop a constructor, in this thread, that makes more modules than these."""
    here, left = threading.get_ident(), modules

    def count(*_: Any) -> None:
        nonlocal left
        if threading.get_ident() == here:
            left -= 1
            if left < 0:
                raise ValueError(f"it has more than {modules} modules, and the files hold fewer tensors by far")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _check_buffers(model: nn.Module, label: str) -> None:
    """Buffers that no file holds (masks, rotary frequencies) are computed; they are small beside the weights."""
    stored = {id(tensor): tensor.nbytes for _, tensor in named_state(model)}
    computed = sum(buffer.nbytes for buffer in model.buffers() if id(buffer) not in stored)
    if computed > sum(stored.values()) + _SPARE_BUFFER_BYTES:
        raise CheckpointError(
            f"{label}: config.json asks for {computed} bytes of computed buffers, more than the model's weights take; "
            "fetch the checkpoint again"
        )


def adopt_generation(model: nn.Module, files: Mapping[str, bytes], label: str) -> None:
    """Give a language model the generation config that its folder holds, as transformers does on loading."""
    data = files.get(GENERATION_CONFIG)
    if data is None or not hasattr(model, "generation_config"):
        return
    from transformers import GenerationConfig

    try:
        generation: Any = GenerationConfig.from_dict(harmless(parse_object(data, Path(GENERATION_CONFIG))))
    except Exception as error:  # values from a file, checked by transformers
        raise CheckpointError(f"{label}: {GENERATION_CONFIG} is not valid: {str(error)[:500]}") from error
    model.generation_config = generation
