"""A model's structure without its weights, and the way from there to a running model."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from woqfx.errors import CheckpointError, SourceError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from transformers import PreTrainedConfig, PreTrainedModel


def build_skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """Build the model that `config` describes on the meta device, tied, in evaluation mode.

    The class is the one that `config.architectures` names, if transformers has it and it takes this
    config; otherwise the one that transformers' auto classes choose for the config (a causal language
    model, or for encoder-decoders sequence to sequence, else the bare model). Code from a model folder
    is never run.

    Raises `SourceError` if there is no such class or it refuses the config.
    """
    cls: Any = _model_class(config)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = cls._from_config(copy.deepcopy(config))
    except Exception as error:  # a config from a file can fail anywhere in the model's constructor
        raise SourceError(
            f"{cls.__name__} cannot be built from its config: {error}. Check config.json against the model's files."
        ) from error
    model.train(False)
    return model


def materialize(model: nn.Module) -> None:
    """Finish a skeleton whose parameters and persistent buffers a loader has put in place.

    Ties what the model declares as tied, and computes the buffers that no file holds (rotary
    frequencies, masks) with transformers' own initialisation of the modules that own them, which
    leaves loaded tensors and the global random state alone. A parameter's place may hold a module.

    Raises `CheckpointError`, naming them, if tensors are still without a value.
    """
    _tie(model)
    absent = [name for name, tensor in named_state(model) if tensor.is_meta]
    if absent:
        raise CheckpointError(
            f"{type(model).__name__} has {len(absent)} tensors that were not loaded: {', '.join(absent)}. "
            "The checkpoint is incomplete, or belongs to another model."
        )
    compute_buffers(model)


def compute_buffers(model: nn.Module) -> None:
    """Give the buffers that no file holds (rotary frequencies, masks) their values, as `materialize` does."""
    unset = _initialize_buffers(model, _computed_buffers(model))
    if unset:
        raise CheckpointError(
            f"{type(model).__name__} does not say how to compute its buffers {', '.join(unset)}; "
            "this model needs another version of transformers."
        )


def initial_buffers(skeleton: nn.Module, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """The values that transformers gives to these persistent buffers if a file lacks them.

    Buffers that the model does not initialise are left out. `skeleton` is not changed.
    """
    model = copy.deepcopy(skeleton)
    wanted = list(names)
    unset = _initialize_buffers(model, wanted)
    return {name: model.get_buffer(name) for name in wanted if name not in unset}


def named_state(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers in the order of the module tree; a shared one under each of its names."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield dot + name, parameter
        for name, buffer in _own_buffers(module):
            if name not in module._non_persistent_buffers_set:
                yield dot + name, buffer


def tied_aliases(model: nn.Module) -> dict[str, str]:
    """Each name of a shared tensor but the first, to the first in the order of the module tree."""
    first: dict[int, str] = {}
    names = ((name, first.setdefault(id(tensor), name)) for name, tensor in named_state(model))
    return {name: canonical for name, canonical in names if name != canonical}


def untie_head(model: Any, config: Mapping[str, Any] | None, held: Collection[str]) -> None:
    """Give the output head a weight of its own where files hold one, and `config`, a parsed config.json, says so.

    T5's classes tie the head whatever the config says; transformers unties it when it finds another in the files.
    `held` are the names of the tensors that there are. A head that is not tied stays as it is.
    """
    if config is None or config.get("tie_word_embeddings") is not False or not has_tied_head(model):
        return
    head = model.get_output_embeddings()
    shared = {name for name, tensor in named_state(model) if tensor is head.weight}
    own = {f"{name}.weight" for name, module in model.named_modules() if module is head}
    if own.isdisjoint(held) or (shared - own).isdisjoint(held):
        return
    head.weight = nn.Parameter(torch.empty_like(head.weight), requires_grad=head.weight.requires_grad)
    ties = model.all_tied_weights_keys
    model.all_tied_weights_keys = {alias: name for alias, name in ties.items() if alias not in own}


def has_tied_head(model: Any) -> bool:
    """Whether a model of transformers has an output head that is its input embedding."""
    if not hasattr(model, "get_output_embeddings"):
        return False
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def told_untied(model: Any) -> dict[str, bool]:
    """What config.json must say of a head that has a weight of its own, whatever the model's config says."""
    tied = getattr(model.config, "tie_word_embeddings", False)
    if not tied or model.get_output_embeddings() is None or has_tied_head(model):
        return {}
    return {"tie_word_embeddings": False}


def _own_buffers(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, buffer in module._buffers.items():
        if buffer is not None:
            yield name, buffer


def _model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    import transformers
    from transformers.models.auto import modeling_auto

    named = [str(name) for name in config.architectures or ()]
    for name in named:
        cls = getattr(transformers, name, None)
        if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
            expected = cls.config_class
            if isinstance(expected, type) and isinstance(config, expected):
                return cls
    causal, seq2seq = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING, modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    heads = (seq2seq, causal) if getattr(config, "is_encoder_decoder", False) else (causal, seq2seq)
    for mapping in (*heads, modeling_auto.MODEL_MAPPING):
        cls = mapping.get(type(config), None)
        if isinstance(cls, type):
            return cls
    raise SourceError(
        f"no model class for model_type {config.model_type!r} with architectures {named or 'unset'}: "
        f"transformers {transformers.__version__} has none that takes {type(config).__name__}. Name one in config.json "
        '(for instance "architectures": ["LlamaForCausalLM"]), or load the model yourself and pass the module.'
    )


def _tie(model: nn.Module) -> None:
    """Give every declared name of a tied tensor the one member that was loaded."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for alias, source in getattr(model, "all_tied_weights_keys", {}).items():
        groups[source].append(alias)
    modules = dict(model.named_modules(remove_duplicate=False))
    for source, aliases in groups.items():
        places = []
        for name in (source, *aliases):
            prefix, _, leaf = name.rpartition(".")
            parameter = modules[prefix]._parameters.get(leaf) if prefix in modules else None
            if parameter is not None:
                places.append((modules[prefix], leaf, parameter))
        loaded = next((parameter for _, _, parameter in places if not parameter.is_meta), None)
        for module, leaf, parameter in places:
            if loaded is not None and parameter.is_meta:
                setattr(module, leaf, loaded)


def _computed_buffers(model: nn.Module) -> list[str]:
    """The non-persistent buffers that are still on the meta device."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name, buffer in _own_buffers(module)
        if name in module._non_persistent_buffers_set and buffer.is_meta
    ]


def _initialize_buffers(model: nn.Module, names: list[str]) -> list[str]:
    """Compute these buffers on the CPU, in place; returns those that the model leaves without a value.

    As in `PreTrainedModel.initialize_weights`, a module is initialised by the nearest model around it, and
    tensors that carry `_is_hf_initialized` are left alone. A model may set a buffer when it initialises
    an outer module, so the modules around the owner follow until the buffer has been written to.
    """
    from transformers import PreTrainedModel, initialization

    owners: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        prefix, _, leaf = name.rpartition(".")
        owners[prefix].append(leaf)
    modules = dict(model.named_modules(remove_duplicate=False))
    holder: Any  # modules too: one can stand in a parameter's place
    for holder in (*(tensor for _, tensor in named_state(model)), *model.modules()):
        holder._is_hf_initialized = True
    unset = []
    with (
        torch.inference_mode(False),  # an inference tensor has no version counter
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        initialization.guard_torch_init_functions(),
    ):
        for prefix, leaves in owners.items():
            owner = modules[prefix]
            blank = {}
            for leaf in leaves:
                blank[leaf] = owner._buffers[leaf] = torch.empty_like(owner.get_buffer(leaf), device="cpu")
            around = list(_enclosing(prefix))
            for position, outer in enumerate(around):
                nearest = (modules[name] for name in around[position:])
                initializer = next((m for m in nearest if isinstance(m, PreTrainedModel)), None)
                if initializer is None:
                    break
                initializer._init_weights(modules[outer])  # type: ignore[no-untyped-call]
                blank = {leaf: t for leaf, t in blank.items() if owner._buffers[leaf] is t and t._version == 0}
                if not blank:
                    break
            unset += [f"{prefix}.{leaf}" if prefix else leaf for leaf in blank if blank[leaf].numel()]
    return unset


def _enclosing(name: str) -> Iterator[str]:
    """A module's name and those of the modules around it, up to the root's empty name."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""
