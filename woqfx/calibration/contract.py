"""What a named set of calibration data is, and what it may ask of the model that it is for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from woqfx.calibration.request import CalibrationRequest
    from woqfx.calibration.subject import Subject

#: The messages of a conversation: each with a `role` and its `content`.
Chat: TypeAlias = Sequence[Mapping[str, Any]]
#: A text, a conversation, or the token ids int64 [T] of one sequence without padding.
Document: TypeAlias = "str | Chat | Tensor"


class CalibrationSet(ABC):
    """Calibration data by name.

    Texts and conversations are shuffled, put into tokens and packed into rows by woqfx. Sequences of token ids are
    taken as they are, in their order.
    """

    #: The name that the command line uses.
    name: str

    @abstractmethod
    def documents(self, subject: Subject, request: CalibrationRequest) -> Iterable[Document]:
        """The data, in an order that depends on nothing but the request. Raises `CalibrationError`.

        Lazily where there may be much of it: no more is taken than is needed.
        """

    def check(self, subject: Subject, request: CalibrationRequest) -> None:  # noqa: B027
        """Raise `CalibrationError` for what can be known to fail at no cost: plans ask. By default nothing is."""
