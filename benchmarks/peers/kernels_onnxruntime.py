"""ONNX Runtime's MatMulNBits (integers) and MatMulBnb4 (nf4), a session for each weight."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-not-found]
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper  # type: ignore[import-not-found]

from benchmarks.peers.kernel_worker import Call, Floats, Kernel, Packed, Problem, serve

_FP32, _INT8 = 1, 4  # accuracy_level: what activations may be rounded to
_NF4 = 1  # quant_type


def kernels(threads: int) -> Sequence[Kernel]:
    """The kernels that exist for CPUs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    name = "ONNX Runtime"
    return [
        Kernel(name, "int4", "fp32", partial(_integers, options, 4, _FP32)),
        Kernel(name, "int4", "int8", partial(_integers, options, 4, _INT8)),
        Kernel(name, "int8", "int8", partial(_integers, options, 8, _INT8)),
        Kernel(name, "nf4", "fp32", partial(_nf4, options)),
    ]


def _integers(options: Any, bits: int, accuracy: int, problem: Problem) -> Packed:
    codes, scales = problem.int4 if bits == 4 else problem.int8
    unsigned = (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    blocks = unsigned.reshape(problem.n, -1, problem.group)
    parts: dict[str, NDArray[Any]]
    parts = {"codes": _low_first(blocks) if bits == 4 else blocks, "scales": scales.reshape(-1)}
    attributes = {"bits": bits, "block_size": problem.group, "accuracy_level": accuracy}
    return _packed(options, problem, "MatMulNBits", parts, attributes)


def _nf4(options: Any, problem: Problem) -> Packed:
    codes, scales = problem.nf4
    flat = codes.reshape(-1)  # as bitsandbytes has it: the first of two in the high bits
    parts: dict[str, NDArray[Any]] = {"codes": flat[0::2] << 4 | flat[1::2], "scales": scales.reshape(-1)}
    return _packed(options, problem, "MatMulBnb4", parts, {"block_size": problem.group, "quant_type": _NF4})


def _low_first(codes: NDArray[np.uint8]) -> NDArray[Any]:
    return codes[..., 0::2] | codes[..., 1::2] << 4


def _packed(
    options: Any, problem: Problem, operator: str, parts: dict[str, NDArray[Any]], attributes: dict[str, int]
) -> Packed:
    node = helper.make_node(
        operator, ["x", *parts], ["y"], domain="com.microsoft", K=problem.k, N=problem.n, **attributes
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", problem.k])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", problem.n])
    constants = [numpy_helper.from_array(np.ascontiguousarray(part), key) for key, part in parts.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "linear", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return Packed(sum(part.nbytes for part in parts.values()), lambda: _session(model, options))


def _session(model: bytes, options: Any) -> Any:
    return partial(_bind, onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]))


def _bind(session: Any, x: Floats) -> Call:
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y", "cpu")

    def call() -> Any:
        session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    return call


if __name__ == "__main__":
    serve(kernels)
