"""What shall happen to a weight (`Scheme`), and to which weight (`Rule`)."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from woqfx.errors import SchemeError

#: Of who names no dtype: the 4-bit integers that AWQ's, GPTQ's and GGUF's files hold too, on all of their range.
DEFAULT_DTYPE = "int4_fullrange"

#: Storage types of group scales, with their size in bits.
SCALE_DTYPES: Mapping[str, int] = {"fp32": 32, "fp16": 16, "bf16": 16}

#: Double quantization stores a scale in 8 bits, and one fp32 range per 256 scales (QLoRA, arXiv 2305.14314).
DOUBLE_QUANT_BLOCK = 256

_FLOAT32_MAX = 3.4028234663852886e38


@dataclass(frozen=True)
class Scheme:
    """What shall happen to one weight of shape [N, K] (out_features, in_features).

    `group_size` counts consecutive weights along K that share a scale; the last group may be shorter,
    and -1 makes one group of each row. `symmetric=False` adds a zero point per group.
    `double_quant` stores the scales themselves in 8 bits.
    `outlier_threshold` above 0 takes activations of at least that magnitude out of a rounding compute dtype
    and multiplies them in fp32 (LLM.int8(), arXiv 2208.07339, where it is 6).
    """

    dtype: str
    group_size: int = 32
    symmetric: bool = True
    scale_dtype: str = "fp16"
    double_quant: bool = False
    compute_dtype: str = "fp32"
    outlier_threshold: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.group_size, bool) or not isinstance(self.group_size, int):
            raise SchemeError(f"group_size must be a whole number, not {self.group_size!r}")
        if self.group_size != -1 and self.group_size < 1:
            raise SchemeError(f"group_size {self.group_size} makes no groups: use -1 (one per row) or 1 and above")
        for flag in ("symmetric", "double_quant"):
            if not isinstance(getattr(self, flag), bool):
                raise SchemeError(f"{flag} must be true or false, not {getattr(self, flag)!r}")
        for name in ("dtype", "compute_dtype", "scale_dtype"):
            if not isinstance(getattr(self, name), str):
                raise SchemeError(f"{name} must be a name, not {getattr(self, name)!r}")
        if self.scale_dtype not in SCALE_DTYPES:
            raise SchemeError(f"scale_dtype {self.scale_dtype!r} is not one of {', '.join(SCALE_DTYPES)}")
        threshold: Any = self.outlier_threshold
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= _FLOAT32_MAX:
            raise SchemeError(f"outlier_threshold must be a number, 0 (no outliers) or above, not {threshold!r}")
        object.__setattr__(self, "outlier_threshold", float(threshold))  # 6 and 6.0 are written alike

    def group_width(self, k: int) -> int:
        """How many weights a full group of a row of `k` weights holds."""
        return k if self.group_size == -1 else min(self.group_size, k)

    def group_count(self, k: int) -> int:
        """G, the number of groups in a row of `k` weights."""
        return -(-k // self.group_width(k))

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scheme:
        """From a JSON object; `SchemeError` for anything but a scheme."""
        unknown = set(data) - {f.name for f in dataclasses.fields(cls)}
        if unknown or "dtype" not in data:
            raise SchemeError(f"not a scheme: {dict(data)!r}")
        return cls(**data)


@dataclass(frozen=True)
class Rule:
    """Which layers get something else than the scheme asked for.

    `pattern` is a glob over the layer's dotted name (`model.layers.*.mlp.down_proj`), or a regular
    expression after `re:` that must match the whole name. `change` replaces fields of the scheme;
    None keeps the layer as it is. Of several rules that match, the last one wins.
    """

    pattern: str
    change: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        if self.pattern.startswith("re:"):
            try:
                re.compile(self.pattern[3:])
            except re.error as error:
                raise SchemeError(f"rule {self.pattern!r} is not a regular expression: {error}") from None
        fields = {f.name for f in dataclasses.fields(Scheme)}
        for key in self.change or ():
            if key not in fields:
                raise SchemeError(f"rule {self.pattern!r}: a scheme has no {key!r}, but {', '.join(sorted(fields))}")

    def matches(self, name: str) -> bool:
        """Whether it is about the layer of this name."""
        if self.pattern.startswith("re:"):
            return re.fullmatch(self.pattern[3:], name) is not None
        return fnmatch.fnmatchcase(name, self.pattern)

    def apply(self, scheme: Scheme) -> Scheme | None:
        """The scheme of a layer that it is about; None keeps the layer. Raises `SchemeError`."""
        try:
            return None if self.change is None else dataclasses.replace(scheme, **self.change)
        except SchemeError as error:
            raise SchemeError(f"rule {str(self)!r}: {error}") from None

    def __str__(self) -> str:
        if self.change is None:
            return f"{self.pattern}=keep"
        fields = (f"{k}:{str(v).lower() if isinstance(v, bool) else v}" for k, v in self.change.items())
        return f"{self.pattern}=" + ",".join(fields)

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read `PATTERN=keep` or `PATTERN=DTYPE` or `PATTERN=field:value,field:value`."""
        pattern, equals, what = text.rpartition("=")
        if not equals or not pattern or not what:
            raise SchemeError(f"rule {text!r}: write PATTERN=keep, PATTERN=DTYPE or PATTERN=field:value,...")
        if what == "keep":
            return cls(pattern, None)
        change: dict[str, Any] = {}
        for part in what.split(","):
            key, colon, value = part.partition(":")
            change.update({key: _value(value)} if colon else {"dtype": key})
        return cls(pattern, change)


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?", text) else text


RuleLike = Rule | str | tuple[str, Mapping[str, Any] | str | None]
Rules = Iterable[RuleLike] | str | Mapping[str, Mapping[str, Any] | str | None]


def read_rules(rules: Rules) -> tuple[Rule, ...]:
    """Accept rules as objects, as `PATTERN=...` strings, as (pattern, change) pairs, or as a mapping of those.

    In a pair the change is a mapping of scheme fields, the name of a dtype, or "keep" or None. One string is one rule.
    """
    listed: Iterable[Any] = (
        [rules] if isinstance(rules, str) else rules.items() if isinstance(rules, Mapping) else rules
    )
    return tuple(_read_rule(rule) for rule in listed)


def _read_rule(rule: Any) -> Rule:
    if isinstance(rule, Rule):
        return rule
    if isinstance(rule, str):
        return Rule.parse(rule)
    if not isinstance(rule, tuple | list) or len(rule) != 2 or not isinstance(rule[0], str):
        raise SchemeError(f"not a rule: {rule!r}; write 'PATTERN=DTYPE', or a pair of a pattern and a change")
    pattern, change = rule
    if isinstance(change, str):
        change = None if change == "keep" else {"dtype": change}
    return Rule(pattern, change)
