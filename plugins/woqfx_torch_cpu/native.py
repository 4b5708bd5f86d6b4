"""A packed weight that the native kernels multiply by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from woqfx import DType, PackedWeight, QTensor, StoredWeight
from woqfx_native import _core, ops, packed

#: The parts of double-quantized scales, which the kernels' layout holds only expanded.
_SCALE_CODES = ("scale_codes", "scale_ranges", "scale_offset")


class NativeWeight(PackedWeight):
    """The bytes of the kernels' layout as one buffer, `packed`: uint8 [size], or [E, size] for a stack.

    There is no second copy: plain codes, for checkpoints and state dicts, are unpacked when they are asked for.
    """

    def __init__(self, q: QTensor, float_dtype: torch.dtype, kernel: str) -> None:
        super().__init__(q, float_dtype, kernel)
        #: What the scheme does not say of the parts; see `QTensor.specs`.
        self._extras = {"ordered": q.order is not None, "offsets": q.offsets is not None}
        self.register_buffer("packed", packed.pack(q))
        if q.scheme.double_quant:
            parts = q.tensors()
            for suffix in _SCALE_CODES:
                self.register_buffer(suffix, parts[suffix])
        self._opened: tuple[Tensor, _core.PackedWeight] | None = None

    @classmethod
    def of_bytes(cls, grid: DType, stored: StoredWeight, packed: Tensor, kernel: str) -> NativeWeight:
        """From bytes that `woqfx_native.packed.pack` made of a weight without double-quantized scales."""
        one = cls.__new__(cls)
        nn.Module.__init__(one)
        one.grid, one.scheme, one.shape, one.dtype = grid, stored.scheme, torch.Size(stored.shape), stored.float_dtype
        one._extras = {"ordered": stored.ordered, "offsets": stored.offsets}
        one.kernel, one._opened = kernel, None
        one.register_buffer("packed", packed)
        return one

    def _open(self) -> _core.PackedWeight:
        """The kernels' view of the buffer, kept for as long as the buffer is the same."""
        buffer = self._buffers["packed"]
        opened = self._opened
        if opened is None or opened[0] is not buffer:
            assert buffer is not None
            self._opened = opened = (buffer, _core.PackedWeight(buffer))
        return opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def qtensor(self) -> QTensor:
        """See `woqfx.PackedWeight.qtensor`."""
        return QTensor.of_parts(self.grid, self.scheme, tuple(self.shape), self._plain())

    def _plain(self) -> dict[str, Tensor]:
        shape = tuple(self.shape)
        buffer = self.get_buffer("packed")
        if buffer.is_meta:
            specs = QTensor.specs(self.grid, self.scheme, shape, **self._extras)
            return {suffix: torch.empty(size, dtype=kind, device="meta") for suffix, (kind, size) in specs.items()}
        plain = packed.unpack(buffer, self.grid, self.scheme, shape, **self._extras)
        if self.scheme.double_quant:
            plain |= {suffix: self.get_buffer(suffix) for suffix in _SCALE_CODES}
        return plain

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `woqfx.PackedWeight.linear`."""
        scheme = self.scheme
        if ops.seen_by_torch(x, bias):
            buffer = self.get_buffer("packed")
            result: Tensor = torch.ops.woqfx_native.linear(
                x, buffer, bias, self.shape[-2], scheme.compute_dtype, scheme.outlier_threshold
            )
            return result
        return ops.run_linear(self._open(), x, bias, scheme.compute_dtype, scheme.outlier_threshold)

    def rows(self, index: Tensor) -> Tensor:
        """See `woqfx.PackedWeight.rows`."""
        if ops.seen_by_torch(index):
            result: Tensor = torch.ops.woqfx_native.rows(index, self.get_buffer("packed"), self.shape[-1], self.dtype)
            return result
        return ops.run_rows(self._open(), index, self.dtype)

    def expert(self, index: int) -> PackedWeight:
        """See `woqfx.PackedWeight.expert`: its buffer is a part of the stack's."""
        scheme = self.scheme
        if scheme.double_quant:  # blocks of 256 scales cross experts
            scheme = replace(scheme, double_quant=False, scale_dtype="fp32")
        stored = StoredWeight(scheme, tuple(self.shape[1:]), self.dtype, **self._extras)
        return NativeWeight.of_bytes(self.grid, stored, self.get_buffer("packed")[index], self.kernel)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """State dicts hold the plain parts, as checkpoints do."""
        destination.update({prefix + suffix: part for suffix, part in self._plain().items()})

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        shape = tuple(self.shape)
        given = {key.removeprefix(prefix): part for key, part in state_dict.items() if key.startswith(prefix)}
        specs = QTensor.specs(self.grid, self.scheme, shape, **self._extras)
        missing_keys += [prefix + suffix for suffix in specs if suffix not in given]
        unexpected_keys += [prefix + suffix for suffix in given if suffix not in specs]
        if specs.keys() - given.keys():
            return
        for suffix, (kind, size) in specs.items():
            if (given[suffix].dtype, tuple(given[suffix].shape)) != (kind, size):
                found = f"{given[suffix].dtype} {list(given[suffix].shape)}"
                error_msgs.append(f"{prefix}{suffix} is {found}, where the weight has {kind} {list(size)}")
                return
        q = QTensor.of_parts(self.grid, self.scheme, shape, {suffix: given[suffix] for suffix in specs})
        self._buffers["packed"] = packed.pack(q)
        if self.scheme.double_quant:
            self._buffers.update({suffix: given[suffix].clone() for suffix in _SCALE_CODES})
