"""`save_pretrained` of a quantized model: transformers' signature, woqfx's checkpoint."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from woqfx.disk.shards import SHARD_BYTES
from woqfx.errors import WoqfxError
from woqfx.provenance import Provenance
from woqfx.saving import save
from woqfx.source.metadata import GENERATION_CONFIG, SIDECARS

_REMEDIES = {
    "state_dict": "a quantized model is written as it is; change the model",
    "variant": "a woqfx checkpoint has no variants; choose another folder",
    "push_to_hub": "call model.push_to_hub(name), which saves and uploads",
    "distributed_checkpoint": "woqfx writes from one process",
}


def remember(model: nn.Module, origin: Provenance) -> None:
    """Have `model` remember its making; `save_pretrained`, where there is one, then writes woqfx's checkpoints."""
    origin.attach(model)
    if hasattr(model, "save_pretrained"):
        setattr(model, "save_pretrained", partial(save_pretrained, model))  # noqa: B010 - no attribute of a Module


def forget(model: nn.Module) -> None:
    """Have `model` forget it, and save as others do: it is no quantized one any more."""
    Provenance.detach(model)
    vars(model).pop("save_pretrained", None)


def save_pretrained(
    model: nn.Module,
    save_directory: str | Path,
    is_main_process: bool = True,
    max_shard_size: int | str = SHARD_BYTES,
    **others: Any,
) -> None:
    """Write a quantized model of transformers as a checkpoint, in place of one that is there.

    As with transformers, a tokenizer is not written: `tokenizer.save_pretrained` into the same folder, before or after,
    does that. With adapters on it (`model.add_adapter`), they alone are written, by transformers itself.

    Raises `WoqfxError` for arguments that cannot be honoured, `OutputError` if the folder holds other things.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        transformers_own: Any = type(model)
        transformers_own.save_pretrained(model, save_directory, is_main_process=is_main_process, **others)
        return
    for name, remedy in _REMEDIES.items():
        if others.get(name):
            raise WoqfxError(f"save_pretrained({name}=...) of a quantized model: {remedy}")
    if is_main_process:
        save(
            model,
            Path(save_directory),
            overwrite=True,
            shard_bytes=_bytes(max_shard_size),
            left_out=frozenset(SIDECARS),
            beside=frozenset((*SIDECARS, "README.md", GENERATION_CONFIG)),
        )


def _bytes(size: int | str) -> int:
    """`"5GB"` as a number."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B", str(size).strip().upper())
    if isinstance(size, int) or found is None:
        if type(size) is not int or size < 1:
            raise WoqfxError(f"max_shard_size is {size!r}: give a number of bytes, or a text as '5GB'")
        return size
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2] or " "))
