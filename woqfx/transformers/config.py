"""Configuration classes for `from_pretrained(quantization_config=...)` and `woqfx.quantize(config=...)`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from transformers.utils.quantization_config import QuantizationConfigMixin

from woqfx.errors import ConfigError
from woqfx.vocabularies import itrex, own
from woqfx.vocabularies.reading import arguments_in, arguments_of
from woqfx.vocabularies.vocabulary import Vocabulary, brief


class _TableConfig(QuantizationConfigMixin):
    """A class whose parameters are those of a vocabulary: their names, order, defaults and meaning.

    They are attributes. All are checked at construction, and again when they are used: `ConfigError` lists everything
    that cannot be done. Nothing is rewritten.
    """

    quant_method: Any = "woqfx"
    vocabulary: ClassVar[Vocabulary]
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls) -> None:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(one.name, kind, default=one.default) for one in cls.vocabulary.parameters]
        cls.__signature__ = inspect.Signature(parameters)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        known = self.__signature__.parameters
        if unknown := [name for name in kwargs if name not in known]:
            there_are = f"there are {', '.join(sorted(known))}"
            raise ConfigError(type(self).__name__, [f"{name}: no such parameter; {there_are}" for name in unknown])
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        self.__dict__.update(bound.arguments)
        self.arguments()

    def arguments(self) -> dict[str, Any]:
        """The arguments of `woqfx.quantize` that it stands for. Raises `ConfigError`."""
        return arguments_in(self.vocabulary, self.__dict__)

    def to_dict(self) -> dict[str, Any]:
        """All parameters, as JSON has them: of objects (a tokenizer, a data loader) a few words only."""
        return {"quant_method": "woqfx", "config": type(self).__name__} | {
            name: _as_json(value) for name, value in self.__dict__.items()
        }

    def to_diff_dict(self) -> dict[str, Any]:
        """The parameters that are not at their defaults."""
        default = {name: _as_json(one.default) for name, one in self.__signature__.parameters.items()}
        return {name: value for name, value in self.to_dict().items() if name not in default or value != default[name]}

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """From what `to_dict` gives. A `ConfigError` says which objects have to be given anew."""
        given = {name: value for name, value in {**config_dict, **kwargs}.items() if name != "quant_method"}
        if (name := given.pop("config", cls.__name__)) != cls.__name__:
            raise ConfigError(cls.__name__, [f"the dictionary is of a {name}"])
        made = cls(**given)
        return (made, {}) if return_unused_kwargs else made

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))

    def __repr__(self) -> str:
        said = (f"{name}={brief(value)}" for name, value in self.to_diff_dict().items() if name in self.__dict__)
        return f"{type(self).__name__}({', '.join(said)})"


def _as_json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted(_as_json(inner) for inner in value)
    text = str(value)
    name = getattr(value, "name_or_path", None)
    return text.removeprefix("torch.") if text.startswith("torch.") else name or f"a {type(value).__name__}"


class WeightOnlyQuantConfig(_TableConfig):
    """The original's configuration, with its parameters, names, values and defaults.

    `weight_dtype` is int8, int4_fullrange, int4_clip, nf4, fp4_e2m1 or any other dtype of `woqfx plugins`;
    `compute_dtype` fp32, bf16 or int8; `scheme` sym or asym; `algorithm` RTN, AWQ, TEQ or GPTQ. Combinations that the
    original refused (nf4 with int8 arithmetic, modules to skip, double quantization) work.
    """

    vocabulary = itrex.WEIGHT_ONLY


class RtnConfig(_TableConfig):
    """Rounding to nearest, as the original's version 1.4 says it."""

    vocabulary = itrex.RTN_14


class AwqConfig(_TableConfig):
    """AWQ, as the original's version 1.4 says it; transformers' class of this name is accepted too."""

    vocabulary = itrex.AWQ_14


class TeqConfig(_TableConfig):
    """TEQ, as the original's version 1.4 says it."""

    vocabulary = itrex.TEQ_14


class GPTQConfig(_TableConfig):
    """GPTQ, as the original's version 1.4 says it; transformers' class of this name is accepted too."""

    vocabulary = itrex.GPTQ_14


class AutoRoundConfig(_TableConfig):
    """Learned rounding, as the original's version 1.4 says it: the algorithm `best`."""

    vocabulary = itrex.AUTOROUND_14


class WoqfxConfig(_TableConfig):
    """The arguments of `woqfx.quantize`, under their own names; those that are left out have its defaults."""

    vocabulary = own.WOQFX

    @classmethod
    def of(cls, config: Any) -> WoqfxConfig:
        """What a configuration of another library, an object or a dictionary, asks for. Raises `ConfigError`."""
        return cls(**arguments_of(config))


_CLASSES = {cls.__name__: cls for cls in _TableConfig.__subclasses__()}


class CheckpointConfig(QuantizationConfigMixin):
    """What the config.json of a woqfx checkpoint says of its making; it asks for nothing."""

    quant_method: Any = "woqfx"

    def __init__(self, **recorded: Any) -> None:
        self.__dict__.update(recorded)

    def to_dict(self) -> dict[str, Any]:
        """As it was recorded."""
        return {"quant_method": "woqfx", **self.__dict__}

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """From a dictionary with the `quant_method` "woqfx": of a checkpoint, of a class above, or of arguments."""
        recorded = {name: value for name, value in config_dict.items() if name != "quant_method"}
        if "manifest" in recorded:
            made: Any = cls(**recorded)
        else:
            name = str(recorded.pop("config", WoqfxConfig.__name__))
            if name not in _CLASSES:
                raise ConfigError(name, [f"there is no such class; there are {', '.join(_CLASSES)}"])
            made = _CLASSES[name].from_dict(recorded, **kwargs)
        return (made, {}) if return_unused_kwargs else made
