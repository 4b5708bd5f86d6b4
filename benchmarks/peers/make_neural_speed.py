"""Quantize a llama with Neural Speed: int4, symmetric, groups of 32, computed in int8, which are its defaults.

    python benchmarks/peers/make_neural_speed.py MODEL OUT      # with the Python of its environment

MODEL is a folder of `benchmarks.make_model`, with 32 layers: Neural Speed knows models by their number of layers. It
finds weights by the name of a shard, wants a sentencepiece model, and converts through a copy in float32 in the folder
where it runs.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3


def _pieces(count: int) -> Iterator[tuple[str, int]]:
    yield from (("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL))
    yield from ((f"t{number}", _NORMAL) for number in range(count - 3))


def _field(number: int, data: bytes) -> bytes:
    """A field of a protocol buffer that has a length."""
    size, length = b"", len(data)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + data


def tokenizer(count: int) -> bytes:
    """A sentencepiece model (sentencepiece_model.proto) of so many pieces, which nobody will ask for text."""
    return b"".join(
        _field(1, _field(1, piece.encode()) + b"\x15" + struct.pack("<f", 0.0) + bytes([3 << 3, kind]))
        for piece, kind in _pieces(count)
    )


def main() -> None:
    """Convert, quantize, and put the result where it was asked for."""
    from neural_speed import Model  # type: ignore[import-not-found]

    source, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    config = json.loads((source / "config.json").read_text())
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # it runs "python"
    with tempfile.TemporaryDirectory(dir=out.parent) as own:
        model = Path(own, "model")
        model.mkdir()
        wanted = {"torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}
        (model / "config.json").write_text(json.dumps({**config, **wanted}))
        (model / "tokenizer.model").write_bytes(tokenizer(config["vocab_size"]))
        (model / "model-00001-of-00001.safetensors").symlink_to(source / "model.safetensors")
        os.chdir(own)
        runtime = Model()
        runtime.init(
            str(model), weight_dtype="int4", alg="sym", group_size=32, scale_dtype="fp32", compute_dtype="int8"
        )
        Path(runtime.bin_file).rename(out)


if __name__ == "__main__":
    main()
