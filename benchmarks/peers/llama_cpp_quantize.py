"""Quantize a GGUF file with llama.cpp, by default to Q4_0. Runs in the peer's environment, not in woqfx's.

The last line on standard error is a JSON object with the seconds that llama.cpp's own call took, without the start of
Python.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import llama_cpp  # type: ignore[import-not-found]

_BF16 = 30  # GGML_TYPE_BF16 of ggml.h, which the binding does not name


def main() -> None:
    """Quantize what the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--type", default="Q4_0", help="as llama.cpp names it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep-embeddings", action="store_true")
    arguments = parser.parse_args()
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = arguments.threads
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{arguments.type}")
    if arguments.keep_embeddings:
        params.output_tensor_type = params.token_embedding_type = _BF16
    llama_cpp.llama_backend_init()
    start = time.perf_counter()
    failed = llama_cpp.llama_model_quantize(arguments.model.encode(), arguments.out.encode(), params)
    seconds = time.perf_counter() - start
    if failed:
        sys.exit(f"llama_model_quantize returned {failed}")
    print(json.dumps({"call_seconds": seconds}), file=sys.stderr)


if __name__ == "__main__":
    main()
