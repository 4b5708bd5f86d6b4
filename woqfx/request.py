"""What was asked for, as one object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from woqfx.calibration import CalibrationRequest
from woqfx.errors import SchemeError
from woqfx.scheme import Rule, Rules, Scheme, read_rules

#: What a block sees of those before it: what they give once they are quantized, or what they gave before.
Propagate = Literal["quantized", "float"]


@dataclass(frozen=True)
class Request:
    """What was asked for, before it is known whether it can be done.

    `algorithm` is a name, or several with "+" between. `calibration`, None for the default, and `propagate` are for
    algorithms that look at data; a plan for another one drops them.
    """

    scheme: Scheme
    algorithm: str = "rtn"
    backend: str = "torch_cpu"
    rules: tuple[Rule, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    calibration: CalibrationRequest | None = None
    propagate: Propagate = "quantized"

    def __post_init__(self) -> None:
        if self.propagate not in get_args(Propagate):
            raise SchemeError(f"propagate {self.propagate!r} is not one of {', '.join(get_args(Propagate))}")

    @classmethod
    def read(
        cls,
        *,
        algorithm: str = "rtn",
        backend: str = "torch_cpu",
        rules: Rules = (),
        options: Mapping[str, Any] | None = None,
        calibration: CalibrationRequest | None = None,
        propagate: Propagate = "quantized",
        **scheme: Any,
    ) -> Request:
        """From the arguments of `woqfx.quantize` and `woqfx.plan`; `scheme` are the fields of a `Scheme`."""
        if not isinstance(options, Mapping | None):
            raise SchemeError(f"options are given as a mapping from names to values, not as {options!r}")
        return cls(
            Scheme(**scheme),
            algorithm,
            backend,
            read_rules(rules),
            dict(options or {}),
            calibration,
            propagate,
        )

    def to_json(self) -> dict[str, Any]:
        """For manifests and journals."""
        return {
            "algorithm": self.algorithm,
            "options": dict(self.options),
            "scheme": self.scheme.to_json(),
            "rules": [str(rule) for rule in self.rules],
            **(
                {"calibration": self.calibration.to_json(), "propagate": self.propagate}
                if self.calibration is not None
                else {}
            ),
        }
