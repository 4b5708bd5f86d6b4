"""Quantize a folder with Intel Neural Compressor; write what it made as float weights. Runs in its environment.

    python inc_quantize.py MODEL TOKENS OUT --algorithm awq

TOKENS is a safetensors file with `calibration` int64 [samples, length]. The grid is the peer's own symmetric one, group
32, output head kept; everything else is as the peer has it.
"""

from __future__ import annotations

import argparse

import torch
from neural_compressor.torch.quantization import (  # type: ignore[import-not-found]
    AWQConfig,
    GPTQConfig,
    RTNConfig,
    TEQConfig,
    convert,
    prepare,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

_CONFIGS = {"rtn": RTNConfig, "awq": AWQConfig, "gptq": GPTQConfig, "teq": TEQConfig}


def main() -> None:
    """Quantize what the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("tokens")
    parser.add_argument("out")
    parser.add_argument("--algorithm", choices=sorted(_CONFIGS), required=True)
    arguments = parser.parse_args()
    rows = load_file(arguments.tokens)["calibration"]
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    kind = _CONFIGS[arguments.algorithm]
    config = kind(bits=4, group_size=32, use_sym=True)
    config.set_local("lm_head", kind(dtype="fp32"))
    example = rows[:1]
    prepared = prepare(model, config, example_inputs=example)
    if arguments.algorithm != "rtn":
        for row in rows:
            prepared(row.unsqueeze(0))
    quantized = convert(prepared)
    original = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    weights = _floats(quantized)
    linears = {name for name, module in original.named_modules() if isinstance(module, torch.nn.Linear)} - {"lm_head"}
    if lacking := sorted(name for name in linears if f"{name}.weight" not in weights):
        raise SystemExit(f"not quantized, or in a form that is not known: {', '.join(lacking)}")
    original.load_state_dict(weights, strict=False)
    original.save_pretrained(arguments.out)


def _floats(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All that is quantized in float, by its names in the original, and what else may have changed, as norms."""
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    for name, module in model.named_modules():
        if hasattr(module, "recover"):
            recovered = module.recover()
            weight = getattr(recovered, "weight", recovered)
            place, _, last = name.rpartition(".")
            if last == "linear":  # of a module that multiplies its inputs first
                weight, name = weight * model.get_submodule(place).input_scale, place
            state[f"{name}.weight"] = weight
    return state


if __name__ == "__main__":
    main()
