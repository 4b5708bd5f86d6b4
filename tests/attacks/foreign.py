"""Good checkpoints of other programs' formats to attack, and how to change a tensor, a header or a config of one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "formats"))

from blocks import INT8_CONFIG, NVFP4_CONFIG, int8_encode, nvfp4_encode
from folders_of_models import saved, write
from foreign_folders import AWQ_CONFIG, Encode, awq_encode, gptq_config, gptq_encode, quantized_folder

from woqfx.disk.checkpoint import Checkpoint
from woqfx.foreign import packed
from woqfx.loading import open_checkpoint
from woqfx.transcoding import transcode

WEIGHTS = "model.safetensors"
CONFIG = "config.json"

#: A layer of the models below.
LAYER = "model.layers.0.self_attn.q_proj"


def _made(config: dict[str, Any], encode: Encode) -> Callable[[Path], Path]:
    return lambda folder: quantized_folder(folder / "model", config, encode, num_hidden_layers=1)[0]


def _exported(to: str, **scheme: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        rules = ["model.embed_tokens=keep"]
        dense = saved("llama", folder, num_hidden_layers=1)
        ours = write(dense, folder / "ours", rules=rules, **scheme)
        for _ in transcode(Checkpoint(ours), folder / "model", to):
            pass
        return next(iter((folder / "model").glob("*.gguf")), folder / "model")

    return make


#: Each format, and each layout of a format that has code of its own.
FORMATS: dict[str, Callable[[Path], Path]] = {
    "awq": _made(AWQ_CONFIG, awq_encode()),
    "gptq": _made(gptq_config(desc_act=True), gptq_encode(act_order=True)),
    "gptq-asym": _made(gptq_config(bits=3, sym=False), gptq_encode(3, symmetric=False)),
    "auto-round": _made(
        {"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_awq"},
        awq_encode(),
    ),
    "itrex": _made(
        {"quant_method": "rtn", "bits": 4, "group_size": 32, "weight_dtype": "int4_clip", "compute_dtype": "int8"},
        gptq_encode(),
    ),
    "compressed-tensors": _exported("compressed-tensors", dtype="int4_clip", symmetric=False),
    "compressed-tensors-int3": _exported("compressed-tensors", dtype="int3", group_size=-1),
    "bitsandbytes": _exported("bitsandbytes", dtype="nf4", group_size=32, scale_dtype="fp32"),
    "bitsandbytes-int8": _made(INT8_CONFIG, int8_encode),
    "compressed-tensors-nvfp4": _made(NVFP4_CONFIG, nvfp4_encode),
    "gguf": _exported("gguf", dtype="int4_fullrange"),
}


def read_all(path: Path) -> dict[str, tuple[int, ...]]:
    """Open a checkpoint and read all of it: the shape of every tensor."""
    stored = open_checkpoint(path)
    found = {name: tuple(stored.read_weight(name).dequantize().shape) for name in stored.weights}
    return found | {name: tuple(stored.read_kept(name).shape) for name in stored.kept}


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Write the weights of a folder again, changed."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write the config of a folder again, changed."""
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def change_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write the header of a safetensors file again, changed; its tensors' bytes stay."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@contextmanager
def one_skeleton_per_config() -> Iterator[None]:
    """Build the model of one config once, which is what takes the time; a checkpoint does not change it."""
    real, made = packed.build, dict[str, Any]()

    def build(config: Any, tensors: int, label: str) -> Any:
        key = json.dumps([config, tensors], sort_keys=True, default=str)
        if key not in made:
            made[key] = real(config, tensors, label)
        return made[key]

    packed.build = build
    try:
        yield
    finally:
        packed.build = real
