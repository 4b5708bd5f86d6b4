"""The extension that CMake builds from `csrc/`: csrc/module.cpp. `lowering.py` builds engines with it."""

from collections.abc import Sequence
from enum import Enum
from typing import TypeAlias

import numpy as np
from torch import Tensor

from woqfx.errors import WoqfxError

#: On the CPU, its rows one after the other.
Array: TypeAlias = Tensor | np.ndarray

class Error(WoqfxError):
    """What was asked for is impossible, or a model does not fit together."""

class OutOfMemory(Error):  # noqa: N818 - as csrc/kv.h has it
    """Keys and values would need more than `max_memory`: nothing was computed, all slots are as they were."""

class Cancelled(Error):  # noqa: N818 - as csrc/step.h has it
    """`cancel` was called while a step ran: all its slots are as they were before the step."""

class KVType(Enum):
    f32 = 0
    f16 = 1
    bf16 = 2
    int8 = 3

class Compute(Enum):
    fp32 = 0
    bf16 = 1
    int8 = 2

class Activation(Enum):
    silu = 0
    gelu = 1
    gelu_tanh = 2
    quick_gelu = 3
    relu = 4
    relu2 = 5

class Weight:
    """A matrix [n, k] to multiply by."""

    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...

class Table:
    """Rows to look up."""

def packed(bytes: Tensor, compute: Compute, outlier_threshold: float) -> Weight:
    """From the bytes of a weight that woqfx_native packed: checked, and read in place."""

def dense(matrix: Tensor) -> Weight:
    """From a matrix [n, k] of float32, float16 or bfloat16, which is copied."""

def table(matrix: Tensor) -> Table:
    """Of a matrix of float32, float16 or bfloat16, which is read in place."""

def packed_table(bytes: Tensor) -> Table:
    """Of a weight that woqfx_native packed, which is read in place."""

# The terms of `description.py` with their weights in place; what is not set is absent, 0, or 1 where it is a factor.

class Projection:
    def __init__(self, parts: Sequence[Weight] = ..., bias: Sequence[float] = ...) -> None: ...

class Norm:
    centered: bool
    eps: float
    weight: list[float]
    bias: list[float]

class Rope:
    frequencies: list[float]
    long_frequencies: list[float]
    factor: float
    interleaved: bool
    beyond: int
    base: float
    growth: float

class RelativeBias:
    def __init__(self, heads: int, reach: int, values: Sequence[float]) -> None:
        """`values` [heads][2 * reach + 1], of distances from -reach on."""

class CrossAttention:
    query: Projection
    memory: Projection
    output: Projection
    heads: int
    kv_heads: int
    head_dim: int
    scale: float

class Attention:
    inputs: Projection
    output: Projection
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float
    rope: int
    bias: int
    causal: bool
    window: int
    query_norm: Norm | None
    key_norm: Norm | None
    norm_all_heads: bool

class MLP:
    gated: bool
    inputs: Projection
    output: Projection
    activation: Activation

class Experts:
    router: Projection
    experts: list[MLP]
    top_k: int
    normalize: bool
    shared: MLP | None
    shared_gate: Projection | None

class Layer:
    attention: Attention
    cross: CrossAttention | None
    mlp: MLP | None
    experts: Experts | None
    input_norm: Norm | None
    attention_output_norm: Norm | None
    cross_norm: Norm | None
    mlp_norm: Norm | None
    mlp_output_norm: Norm | None
    parallel: bool
    residual_scale: float

class Encoder:
    layers: list[Layer]
    final_norm: Norm | None

class Model:
    hidden: int
    vocabulary: int
    context: int
    embedding: Table | None
    positions: Table | None
    position_offset: int
    embedding_scale: float
    embedding_norm: Norm | None
    final_norm: Norm | None
    ropes: list[Rope]
    biases: list[RelativeBias]
    encoder: Encoder | None
    layers: list[Layer]
    head: Projection
    logit_scale: float
    logit_softcap: float

class Engine:
    """A model that is ready to run. Methods may be called from any thread; one step runs at a time, others wait.

    A sequence's keys and values live in a slot. What a step computes for one sequence depends neither on the others in
    the step, nor on how its tokens were cut into steps, nor on the number of threads: bit for bit.
    """

    def __init__(self, model: Model, kv: KVType, max_memory: int, threads: int) -> None:
        """Raises `Error`, which names the layer, for a model whose sizes do not fit each other."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def context(self) -> int:
        """The largest number of tokens in a sequence."""

    @property
    def weight_bytes(self) -> int:
        """What weights take in memory."""

    @property
    def bytes_per_token(self) -> int:
        """What is read of the weights for one token of one sequence: embedding rows and experts not taken are not."""

    @property
    def kv_bytes(self) -> int:
        """What all slots' keys and values take now; pages that slots share count once."""

    @property
    def kv_bytes_per_token(self) -> int:
        """What a token's keys and values take."""

    @property
    def max_memory(self) -> int:
        """The most that `kv_bytes` may be."""

    @property
    def slots(self) -> list[int]:
        """The slots that exist."""

    def create(self) -> int:
        """A new slot, empty."""

    def free(self, slot: int) -> None:
        """Let a slot go."""

    def copy(self, slot: int, length: int) -> int:
        """A new slot with the first `length` tokens of another, whose memory it shares: a common prefix, a beam."""

    def trim(self, slot: int, length: int) -> None:
        """Keep the first `length` tokens."""

    def length(self, slot: int) -> int:
        """How many tokens a slot holds: the position of the next."""

    def encode(self, slots: Sequence[int], counts: Sequence[int], tokens: Array) -> None:
        """Give sources to new slots of a model with an encoder: `counts[i]` of `tokens` int64 [sum(counts)] each.

        What cross attention looks at is computed here, once; copies of a slot share it. Sources are computed whole, as
        many at a time as make a step, and stored in pages that count in `kv_bytes`. The GIL is released. Raises as
        `forward` does; after an error all slots are as they were.
        """

    def source_length(self, slot: int) -> int:
        """How many tokens a slot's source has; 0 if there is none."""

    def forward(
        self, slots: Sequence[int], counts: Sequence[int], wanted: Sequence[int], tokens: Array, logits: Array
    ) -> None:
        """One step: the next `counts[i]` tokens of the sequence in `slots[i]`, which are appended to it.

        `tokens` int64 [sum(counts)] are those of all sequences, one after the other; a slot may stand there once.
        Write to `logits` float32 [sum(wanted), vocab_size] those of the last `wanted[i]` tokens of each sequence. Long
        prompts are cut into chunks inside. The GIL is released. Raises `Error` for a token outside the vocabulary, a
        sequence longer than `context`, a slot that does not exist; `OutOfMemory`; `Cancelled`. After an error all
        slots are as they were.
        """

    def likeliest(self, logits: Array) -> list[int]:
        """The largest of each row of `logits` float32 [n, vocab_size]: the first of equals, and a NaN before any."""

    def draw(
        self,
        draws: Sequence[tuple[tuple[float, int, float, float], Sequence[Array | None], Array | None, Array | None]],
    ) -> list[list[int]]:
        """For each draw, a token for each of its rows, as transformers' filters and `torch.multinomial` give it.

        A draw is (temperature, top_k, top_p, min_p), where 1, 0, 1, 0 do nothing; rows of logits float32 [vocab_size],
        or None for one whose random numbers are passed over; and either the state of a `torch.Generator`, uint8, which
        goes on, or random numbers of an exponential distribution, float32 [rows, vocab_size]. Where rounding might
        decide, all tokens of the draw are -1, and its state stays. The GIL is released. Raises `Error` for other
        shapes.
        """

    def cancel(self) -> None:
        """End the step that is running, if any, with `Cancelled`. From any thread."""

def available_isa() -> str:
    """The instruction set that engines run on."""
