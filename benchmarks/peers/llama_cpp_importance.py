"""Quantize a GGUF file with llama.cpp and an importance matrix; embeddings stay as they are. Runs in the peer's own
environment.

    python llama_cpp_importance.py MODEL IMPORTANCE OUT --type Q4_K_M

IMPORTANCE is a .npz file with, for each tensor by llama.cpp's name, the mean square of each of its inputs: float32 [K].
"""

from __future__ import annotations

import argparse
import ctypes
import sys

import llama_cpp  # type: ignore[import-not-found]
import numpy as np

_F32 = 0  # GGML_TYPE_F32 of ggml.h, which the binding does not name


def main() -> None:
    """Quantize what the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("importance")
    parser.add_argument("out")
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with np.load(arguments.importance) as file:
        importance = {name: np.ascontiguousarray(file[name], np.float32) for name in file.files}
    # The list ends with an entry without a name.
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = arguments.threads
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{arguments.type}")
    params.imatrix = entries
    params.output_tensor_type = params.token_embedding_type = _F32
    llama_cpp.llama_backend_init()
    if failed := llama_cpp.llama_model_quantize(arguments.model.encode(), arguments.out.encode(), params):
        sys.exit(f"llama_model_quantize returned {failed}")


if __name__ == "__main__":
    main()
