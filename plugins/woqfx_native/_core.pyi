"""The extension that CMake builds from `csrc/`: csrc/module.cpp, over csrc/api.h."""

from collections.abc import Sequence
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from woqfx.errors import SettingError as WoqfxSettingError
from woqfx.errors import WoqfxError

LAYOUT_VERSION: int

class Error(WoqfxError): ...
class SettingError(WoqfxSettingError): ...

class Compute(Enum):
    fp32 = 0
    bf16 = 1
    int8 = 2

class Float(Enum):
    f32 = 0
    f16 = 1
    bf16 = 2

class Isa(Enum):
    portable = 0
    avx2 = 1
    avx_vnni = 2
    avx512 = 3
    avx512_vnni = 4
    avx512_bf16 = 5
    amx = 6

class PackedWeight:
    """A weight [N, K] in the layout of the kernels. Immutable."""

    def __init__(self, bytes: Tensor) -> None:
        """From the uint8 [size] of another; checked, and read in place."""

    def bytes(self) -> object:
        """All of it as uint8 [size], for `torch.from_dlpack`; without a copy."""

    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...

def weight_memory(size: int) -> object:
    """So many bytes without a value, for `torch.from_dlpack`: in huge pages where there are any."""

def pack(
    parts: Sequence[tuple[Tensor, Tensor, Tensor | None, Tensor | None]],
    k: int,
    group: int,
    bits: int,
    levels: Tensor | None,
    order: Tensor | None,
    threads: int,
) -> PackedWeight:
    """A weight of the rows of all parts: codes uint8 [N, ceil(k * bits / 8)], scales [N, G], zeros uint8 [N, G]
    and offsets [N, G] of the scales' type; levels float32, order int32 [k]."""

def unpack(
    weight: PackedWeight,
    codes: Tensor | None,
    scales: Tensor | None,
    zeros: Tensor | None,
    offsets: Tensor | None,
    order: Tensor | None,
    threads: int,
) -> None:
    """Write what was packed: codes, scales and offsets as float32, zeros, order."""

def linear(
    weight: PackedWeight,
    x: int,
    x_type: Float,
    rows: int,
    stride: int,
    y: int,
    bias: int,
    bias_type: Float,
    compute: Compute,
    outlier_threshold: float,
    threads: int,
    isa: Isa | None = None,
) -> None:
    """Write x [rows, K] @ W.T + bias [N] to y [rows, N], in x's type.

    `x`, `y` and `bias` (0 for none) are addresses, which nothing checks; x's rows are `stride` elements apart.
    """

def gather(weight: PackedWeight, index: Tensor, y: Tensor, threads: int) -> None:
    """Write rows `index` (int64 [count]) of the dequantized weight to y [count, K]."""

def best_isa() -> Isa:
    """What runs on this CPU: WOQFX_ISA, else the best that is supported."""

def supported(isa: Isa) -> bool:
    """Whether this CPU and its operating system have it, and the extension has kernels for it."""

def kernel_name(compute: Compute, isa: Isa) -> str:
    """What runs for a compute dtype on an instruction set."""

def max_threads() -> int:
    """WOQFX_NUM_THREADS, else the CPUs that this process may use."""

def nearest(
    weight: Tensor,
    group: int,
    bits: int,
    full_range: bool,
    levels: Tensor | None,
    storage: Float,
    ratios: list[float],
    importance: Tensor | None,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    threads: int,
    isa: Isa | None,
) -> None:
    """Write the codes uint8 [N, ceil(K * bits / 8)], scales and zeros float32 [N, G] of a weight [N, K]."""

def square_error(
    weight: Tensor,
    group: int,
    bits: int,
    levels: Tensor | None,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    off: Tensor,
    size: Tensor,
    threads: int,
    isa: Isa | None,
) -> None:
    """Write the sums of (w' - w)^2 and of w^2 of each row, float32 [N]."""

def read_seconds(data: NDArray[np.uint8], isa: Isa, threads: int) -> float:
    """Seconds in which this many threads read `data` once."""

def peak_operations(compute: Compute, isa: Isa, threads: int) -> float:
    """Operations a second of a compute dtype on operands in registers; a multiply and an add are two."""
