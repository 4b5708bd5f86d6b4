"""Which weights the native kernels run, and what runs them on which CPU."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from woqfx import CPU, Codebook, DType, IntegerGrid, Scheme, Support, this_cpu

#: The longest group of several in a row; one group of a whole row may have any length.
_LONGEST_GROUP = 1 << 16

#: What Linux calls the features that an instruction set needs beside those of the ones above it; csrc/cpu.cpp.
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "avx2": ("avx2", "fma", "f16c"),
    "avx_vnni": ("avx2", "fma", "f16c", "avx_vnni"),
    "avx512": ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "avx512_vnni": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
    "avx512_bf16": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"),
    "amx": ("avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
}


def support(scheme: Scheme, dtype: DType, shape: tuple[int, ...], cpu: CPU) -> Support:
    """Whether a native kernel runs a weight [N, K] or [E, N, K] on `cpu`, which one, or why none does.

    Raises `WoqfxError` if WOQFX_ISA asks for what this CPU lacks.
    """
    found = absent() or obstacle(scheme, dtype, shape)
    if found:
        return Support(ok=False, reason=found, remedy="the reference, which computes with PyTorch")
    from woqfx_native import _core

    isa = _core.best_isa() if cpu == this_cpu() else _core.Isa[isa_of(cpu)]
    kernel = _core.kernel_name(_core.Compute[scheme.compute_dtype], isa)
    return Support(ok=True, kernel=f"native {kernel}", reason="multiplies by the codes as they are packed for it")


def absent() -> str:
    """Why there are no native kernels in this installation; empty if there are."""
    if find_spec("woqfx_native._core") is not None:
        return ""
    return "woqfx was installed without its native kernels (they need a C++ compiler: install it again with one)"


def obstacle(scheme: Scheme, dtype: DType, shape: tuple[int, ...]) -> str:
    """Why the kernels cannot run a weight; empty if they can.

    They take a grid as data: one with more than 16 levels, or that decodes in a way of its own, is none of theirs.
    """
    if scheme.compute_dtype not in ("fp32", "bf16", "int8"):
        return f"there are no native kernels for compute dtype {scheme.compute_dtype}"
    family = IntegerGrid if dtype.levels is None else Codebook
    if type(dtype).decode is not family.decode or type(dtype).integers is not family.integers:
        return f"{dtype.name} decodes its codes in a way of its own, and native kernels take grids as data"
    if dtype.levels is not None and (len(dtype.levels) > 16 or dtype.bits > 4):
        return (
            f"{dtype.name} has {len(dtype.levels)} levels in {dtype.bits} bits; native kernels look up 16 in 4 at most"
        )
    if len(shape) not in (2, 3):
        return f"there are no native kernels for weights of {len(shape)} dimensions"
    k = shape[-1]
    if scheme.group_count(k) > 1 and scheme.group_width(k) > _LONGEST_GROUP:
        return f"native kernels take groups of up to {_LONGEST_GROUP}, not {scheme.group_width(k)}"
    return ""


def isa_of(cpu: CPU) -> str:
    """The best instruction set of a CPU, by the features that its operating system lists."""
    found = [isa for isa, needs in _NEEDS.items() if cpu.machine == "x86_64" and cpu.has(*needs)]
    return found[-1] if found else "portable"
