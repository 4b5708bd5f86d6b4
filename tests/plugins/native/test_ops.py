"""The native weight among torch's own machinery: threads, forks, modes, transforms, odd tensors."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import woqfx
from woqfx.memory import threads
from woqfx.testing.cases import SCHEMES, normal, quantized, same_bytes
from woqfx_native import _core, ops
from woqfx_torch_cpu.native import NativeWeight

N, K = 96, 160


def weight(label: str = "int4_clip-g32", *shape: int, kind: torch.dtype = torch.float32) -> NativeWeight:
    packed = woqfx.registry().backend("torch_cpu").pack(quantized(SCHEMES[label], *(shape or (N, K))), kind)
    assert isinstance(packed, NativeWeight)
    return packed


class Recorder(TorchDispatchMode):
    """Which operators were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_an_observer_sees_the_operator():
    w, x = weight(), normal(3, K)
    with Recorder() as seen:
        y = w.linear(x)
        rows = w.rows(torch.tensor([1]))
    assert [name for name in seen.names if "woqfx" in name] == [
        "woqfx_native.linear.default",
        "woqfx_native.rows.default",
    ]
    assert torch.equal(y, w.linear(x)) and torch.equal(rows, w.rows(torch.tensor([1])))


def test_a_trainable_bias_gets_its_gradient():
    w, x, bias = weight(), normal(3, K), normal(N).requires_grad_()
    w.linear(x, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full((N,), 3.0))
    with torch.no_grad():
        assert torch.equal(w.linear(x, bias), w.linear(x, bias.detach()))


@pytest.mark.parametrize(
    "x",
    [
        normal(K, 5).T,
        normal(5, 2 * K)[:, ::2],
        normal(5, K + 3)[:, 3:],
        normal(1, K).expand(5, K),
        normal(2, 5, K)[:, 1:4],
        normal(7, K)[::3],
        normal(0, K),
        normal(5, K).double(),
        nn.Parameter(normal(5, K), requires_grad=False),
    ],
    ids=["transposed", "every-second", "shifted", "expanded", "slices", "rows", "empty", "double", "parameter"],
)
def test_x_may_lie_in_memory_as_it_likes(x):
    w = weight()
    with torch.no_grad():
        plain = torch.stack([w.linear(row.clone().float()) for row in x.reshape(-1, K)]) if x.numel() else x[:, :N]
        assert torch.equal(w.linear(x), plain.view(*x.shape[:-1], N).to(x.dtype))


@pytest.mark.parametrize(("x", "bias"), [((3, K + 1), (N,)), ((3, K), (N + 1,)), ((3, K), (1,))], ids=str)
def test_sizes_are_checked(x, bias):
    with pytest.raises(ValueError, match=rf"\[{N}, {K}\]"):
        weight().linear(normal(*x), normal(*bias))


def test_a_row_that_does_not_exist_is_refused():
    w = weight()
    for row in (-1, N, 2**40):
        with pytest.raises(woqfx.WoqfxError, match="row"):
            w.rows(torch.tensor([0, row]))


def test_bytes_that_are_no_packed_weight_are_refused():
    buffer = weight().get_buffer("packed")
    shifted = torch.empty(len(buffer) + 64, dtype=torch.uint8)[1 : 1 + len(buffer)].copy_(buffer)
    damaged = buffer.clone()
    damaged[0] ^= 1
    for bad in (buffer[:-1].clone(), damaged, torch.zeros(64, dtype=torch.uint8), shifted):
        with pytest.raises(woqfx.WoqfxError):
            _core.PackedWeight(bad)


def test_the_weight_outlives_what_it_was_made_from():
    x = normal(3, K)
    opened = _core.PackedWeight(weight().get_buffer("packed"))
    torch.empty(1 << 20).fill_(1)
    assert torch.equal(ops.run_linear(opened, x, None, "fp32", 0.0), weight().linear(x))


def test_a_weight_can_be_pickled():
    w, x = weight("nf4-double"), normal(3, K)
    y = w.linear(x)
    file = io.BytesIO()
    torch.save(w, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again.linear(x), y) and same_bytes(again.qtensor(), w.qtensor())


@pytest.mark.parametrize("label", ["int4_clip-asym", "nf4-double", "int8-g24"])
def test_a_state_dict_holds_the_plain_parts(label):
    w, other = weight(label), weight(label)
    plain = w.qtensor().tensors()
    state = w.state_dict()
    assert state.keys() == plain.keys() and all(torch.equal(state[key], part) for key, part in plain.items())
    state = {key: part.clone() for key, part in state.items()}
    state["codes"] ^= 1
    other.load_state_dict(state)
    assert torch.equal(other.qtensor().codes, state["codes"])
    with pytest.raises(RuntimeError, match=r"codes is torch\.int32"):
        other.load_state_dict({**state, "codes": state["codes"].int()})
    with pytest.raises(RuntimeError, match="Missing"):
        other.load_state_dict({"codes": state["codes"]})


def test_several_python_threads_at_once():
    w, x = weight("int4_clip-g32", 512, 512), normal(64, 512)
    expected = w.linear(x)
    right: list[bool] = []

    def work() -> None:
        right.extend(torch.equal(w.linear(x), expected) for _ in range(20))

    workers = [threading.Thread(target=work) for _ in range(4)]
    with threads(2):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
    assert len(right) == 80 and all(right)


def test_a_child_of_fork_computes_the_same():
    w, x = weight("int4_clip-g32", 512, 512), normal(64, 512)
    with threads(2):
        expected = w.linear(x)  # the pool has threads now; the child has none of them
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(w.linear(x), expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert torch.equal(w.linear(x), expected)


COUNT_THREADS = """
import os, torch, woqfx
from woqfx.testing.cases import SCHEMES, normal, quantized
torch.set_num_threads(1)
q = quantized(SCHEMES["nf4-g32"], 512, 512)
before = len(os.listdir("/proc/self/task"))
woqfx.registry().backend("torch_cpu").pack(q, torch.float32).linear(normal(64, 512))
print(1 + len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_the_environment_sizes_the_pool_whatever_torch_is_told(count):
    env = {**os.environ, "WOQFX_NUM_THREADS": str(count)}
    done = subprocess.run([sys.executable, "-c", COUNT_THREADS], env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) == count


@pytest.mark.slow
@pytest.mark.parametrize("bound", ["false", "true"])
def test_a_thread_that_openmp_has_bound_to_one_cpu_may_use_all(bound):
    code = "import torch; from woqfx_native import _core; print(_core.max_threads())"
    env = {name: value for name, value in os.environ.items() if name not in ("WOQFX_NUM_THREADS", "OMP_NUM_THREADS")}
    env["OMP_PROC_BIND"] = bound
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(os.sched_getaffinity(0))


@pytest.mark.slow
def test_a_number_of_threads_that_is_none_is_an_error():
    code = "import torch, woqfx; woqfx.quantize(torch.nn.Sequential(torch.nn.Linear(64, 8)), progress='none')"
    env = {**os.environ, "WOQFX_NUM_THREADS": "many"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "WOQFX_NUM_THREADS is 'many'" in done.stderr


def test_a_copy_does_not_share_memory():
    w, x = weight(), normal(3, K)
    y, twin = w.linear(x), copy.deepcopy(w)
    w.get_buffer("packed").zero_()
    assert torch.equal(twin.linear(x), y)


def test_a_call_costs_little():
    """A token meets hundreds of layers: a tiny product takes no longer than a few of torch's own operations."""
    import time

    w, x = weight("int4_clip-g32", 32, 32), normal(1, 32)

    def shortest(function) -> float:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(50):
                function()
            times.append(time.perf_counter() - start)
        return min(times)

    with torch.inference_mode():
        assert shortest(lambda: w.linear(x)) < 8 * shortest(lambda: torch.add(x, x))
