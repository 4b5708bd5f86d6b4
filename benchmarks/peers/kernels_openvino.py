"""OpenVINO's linear layers with compressed weights: a compiled model for each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]
from numpy.typing import NDArray
from openvino import opset13 as opset

from benchmarks.peers.kernel_worker import Call, Floats, Kernel, Packed, Problem, serve

_PRECISION = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


def kernels(threads: int) -> Sequence[Kernel]:
    """4 and 8 bits in each precision. Compute dtype int8 is its dynamic quantization, in groups as the weight's."""
    computes = {"int4": ("fp32", "bf16", "int8"), "nf4": ("fp32", "bf16"), "int8": ("fp32", "bf16", "int8")}
    return [
        Kernel("OpenVINO", dtype, compute, partial(_pack, dtype, compute, threads))
        for dtype, choice in computes.items()
        for compute in choice
    ]


def _pack(dtype: str, compute: str, threads: int, problem: Problem) -> Packed:
    codes, scales = {"int4": problem.int4, "int8": problem.int8, "nf4": problem.nf4}[dtype]
    halves = scales[..., None].astype(np.float16)
    shape = openvino.Shape([problem.n, problem.k // problem.group, problem.group])
    if dtype == "int8":
        data: NDArray[Any] = codes
        constant = openvino.Tensor(codes.reshape(shape))
    else:
        flat = codes.reshape(-1)
        data = ((flat[0::2] & 15) | (flat[1::2] & 15) << 4).astype(np.uint8)
        kind = openvino.Type.i4 if dtype == "int4" else openvino.Type.nf4
        constant = openvino.Tensor(data, shape, kind)
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": _PRECISION[compute],
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": problem.group if compute == "int8" else 0,
        "PERFORMANCE_HINT": "LATENCY",
    }

    def copy() -> Any:
        model = _model(problem, constant, halves)
        compiled = openvino.Core().compile_model(model, "CPU", config)
        # The compiled model may read constants where they are: they have to live as long.
        return partial(_bind, compiled, (model, data, halves, constant))

    return Packed(data.nbytes + halves.nbytes, copy)


def _model(problem: Problem, constant: Any, scales: NDArray[np.float16]) -> Any:
    x = opset.parameter([-1, problem.k], openvino.Type.f32, name="x")
    weight = opset.multiply(opset.convert(opset.constant(constant), "f16"), opset.constant(scales))
    flat = opset.reshape(weight, np.array([problem.n, problem.k], np.int64), special_zero=False)
    y = opset.matmul(x, opset.convert(flat, "f32"), transpose_a=False, transpose_b=True)
    return openvino.Model([opset.result(y)], [x], "linear")


def _bind(compiled: Any, constants: Any, x: Floats) -> Call:
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

    def call() -> Any:
        request.infer()
        return request.get_output_tensor().data

    return call


if __name__ == "__main__":
    serve(kernels)
