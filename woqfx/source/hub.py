"""Models by their name on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from woqfx.errors import SourceError
from woqfx.source.metadata import SIDECARS

# Nothing else is fetched: no pickle, no code, no second copy of the weights in another format.
_PATTERNS = [
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", *SIDECARS),
    # Of quantized models: what AutoAWQ, AutoGPTQ and ITREX write beside config.json, and AutoGPTQ's name for weights.
    *("quantize_config.json", "quant_config.json", "quantization_config.json", "gptq_model*.safetensors"),
]
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_NAME = re.compile(rf"(?P<repository>{_PART}/{_PART})(?::(?P<revision>[^\s:]+))?")


def resolve(name: str | Path) -> Path:
    """The path that `name` stands for: itself if it exists, else the local copy of a model on the Hub.

    A Hub model is `organisation/name`, or `organisation/name:revision` with a branch, tag or commit. Its config,
    safetensors and tokenizer are fetched into the Hub's usual cache; `HF_HUB_OFFLINE=1` uses the cache alone.
    Raises `SourceError` if there is neither such a path nor such a model.
    """
    path = Path(name)
    if path.exists():
        return path
    if path.suffix == ".gguf":
        raise SourceError(f"there is no file {str(path)!r}: check the path")
    match = _NAME.fullmatch(str(name))
    if match is None:
        raise SourceError(f"there is no file or folder {str(path)!r}, and it is no Hub name (organisation/name)")
    import huggingface_hub

    repository, revision = match["repository"], match["revision"]
    try:
        found = huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=_PATTERNS)
    except Exception as error:  # the network, the disk, the Hub's own errors: of many unrelated classes
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise SourceError(
            f"there is no folder {str(path)!r} here, and the Hugging Face Hub did not give {match[0]}: {reason}. Check "
            "the spelling and the network; a private or gated model needs a login (hf auth login); without a network, "
            "give a folder"
        ) from error
    return Path(found)


def complete(snapshot: Path, name: str) -> None:
    """Fetch what a folder in the Hub's cache lacks of a model, if it lacks the file `name`; other folders stay.

    transformers fetches only files that it knows. Raises `SourceError`.
    """
    repository = snapshot.parent.parent.name
    if (snapshot / name).exists() or snapshot.parent.name != "snapshots" or not repository.startswith("models--"):
        return
    import huggingface_hub

    known = repository.removeprefix("models--").replace("--", "/")
    try:
        huggingface_hub.snapshot_download(
            known, revision=snapshot.name, cache_dir=snapshot.parents[2], allow_patterns=[*_PATTERNS, "woqfx*.json"]
        )
    except Exception as error:  # as above
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise SourceError(
            f"the Hugging Face Hub did not give {name} of {known}: {reason}; check the network"
        ) from error


def cached_snapshot(name: str | None, commit: str | None) -> Path | None:
    """The folder in the Hub's cache that a model of this name was loaded from, None if there is none. No network."""
    import huggingface_hub

    if not name or _NAME.fullmatch(name) is None:
        return None
    found = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=commit)
    return Path(found).parent if isinstance(found, str) else None
