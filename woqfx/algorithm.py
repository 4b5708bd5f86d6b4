"""Algorithms: how a weight lands on its grid."""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from woqfx.dtype import DType
from woqfx.errors import SchemeError
from woqfx.nearest import quantize_nearest
from woqfx.qtensor import QTensor
from woqfx.scheme import Scheme


@dataclass(frozen=True)
class NoOptions:
    """The options of an algorithm that has none."""


@dataclass(frozen=True)
class Layer:
    """One weight to quantize: [..., N, K] in the model's own float type, its scheme, and its grid."""

    name: str
    weight: Tensor
    scheme: Scheme
    dtype: DType


class Algorithm(ABC):
    """A recipe for turning weights into codes. It knows tensors: no disk, no device, no progress bar.

    An instance holds the options of one run, and may be asked from several threads at once. The same layer
    and options must give the same bytes, whatever the number of threads.
    """

    #: The name that the command line uses.
    name: ClassVar[str]
    #: A frozen dataclass. Its fields are the command line's flags; `option(...)` gives them their help.
    Options: ClassVar[type[Any]] = NoOptions

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    def round(self, layer: Layer) -> QTensor:
        """Quantize one weight. The default takes the nearest point of the grid for every weight."""
        return quantize_nearest(layer.weight, layer.dtype, layer.scheme, name=layer.name)

    def __repr__(self) -> str:
        return f"<algorithm {self.name}: {self.options}>"


def option(default: Any, help: str) -> Any:
    """A field of `Options` with its help text."""
    return dataclasses.field(default=default, metadata={"help": help})


def read_options(algorithm: type[Algorithm], given: Mapping[str, Any]) -> Any:
    """Build an algorithm's options; names and simple types are checked, and errors list what exists."""
    fields = {field.name: field for field in dataclasses.fields(algorithm.Options)}
    for key, value in given.items():
        if key not in fields:
            known = ", ".join(sorted(fields)) or "none"
            raise SchemeError(f"algorithm {algorithm.name} has no option {key!r}; its options: {known}")
        kind = type(fields[key].default)
        allowed = (int, float) if kind is float else kind
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise SchemeError(f"option {key} of algorithm {algorithm.name} takes {kind.__name__}, not {value!r}")
    return algorithm.Options(**given)
