"""Running a model block by block, conducted by its own forward.

The model is a copy of the source's module tree, in float32, that holds no weights of blocks. To learn how a block is
called, the model is run on a batch of tokens: blocks that are finished play back what they gave, and the block in
question keeps its arguments and stops the run. So it is called with exactly what the model passes: masks for its kind
of layer, rotary embeddings, position biases, an encoder's hidden states. Weights outside the blocks are read when a
module that owns them is first used.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from woqfx.blocks.block import Call
from woqfx.blocks.finding import BlockInfo
from woqfx.blocks.performance import Performance
from woqfx.blocks.trees import leaves
from woqfx.errors import SourceError
from woqfx.skeleton import compute_buffers, named_state
from woqfx.source import Source


class _Reached(BaseException):
    """The run of the model has come to the block. No `Exception`, so that no model catches it."""

    def __init__(self, block: str, call: Call) -> None:
        self.block, self.call = block, call


class Conductor:
    """The source's model in float32. Its blocks' modules hold no weights: they are run with those of the caller."""

    def __init__(self, source: Source, blocks: Sequence[BlockInfo]) -> None:
        self._source = source
        self._model = hollow_copy(source)
        names = [block.name for block in blocks]
        #: The modules of the blocks, with their own forward.
        self.modules: Mapping[str, nn.Module] = {name: copy.copy(self._model.get_submodule(name)) for name in names}
        self._turn: Callable[[str, Call], Any] = _nobodys_turn
        for name in names:
            self._model.get_submodule(name).forward = partial(self._called, name)
        inside = {id(m) for module in self.modules.values() for m in module.modules()}
        inside |= {id(self._model.get_submodule(name)) for name in names}
        self._loaded: dict[str, Tensor] = {}
        self._released: list[nn.Embedding] = []
        self._outside: set[int] = set()
        for prefix, module in self._model.named_modules():
            if id(module) not in inside:
                self._outside.add(id(module))
                module.register_forward_pre_hook(partial(self._load, f"{prefix}." if prefix else ""))

    def capture(self, block: str, tokens: Tensor, batch: int, performance: Performance) -> Call | None:
        """How the model calls this block for tokens int64 [B, T]; None if it is not reached.

        Raises `SourceError` if the model does not run, or uses what blocks other than the last one gave.
        """

        def turn(name: str, call: Call) -> Any:
            if name in performance:
                return performance.play(name, batch, (call.args, dict(call.kwargs)))
            raise _Reached(name, call)

        self._turn = turn
        try:
            call = self._reach(block, tokens)
            if call is not None and self._released and _holds_nan(call):
                self._restore()
                call = self._reach(block, tokens)
        finally:
            self._turn = _nobodys_turn
        if call is not None and _holds_nan(call):
            raise SourceError(
                f"{block} takes what another than the block before it gave, or the model computes NaN: no algorithm "
                "that looks at data can go through this model block by block; use rtn"
            )
        return call

    def _reach(self, block: str, tokens: Tensor) -> Call | None:
        try:
            with torch.no_grad():
                self._model(**model_inputs(self._model, tokens))
        except _Reached as reached:
            return reached.call if reached.block == block else None
        except Exception as error:  # a model's forward is anyone's code
            raise SourceError(
                f"{self._source.label} does not run in float32 up to {block}: {type(error).__name__}: {error}; "
                "algorithm rtn needs no run"
            ) from error
        return None

    def release(self) -> None:
        """Let go of embeddings: most models use them before the first block alone. One that does not gets them again.

        Meanwhile they give NaN, which the arguments of a block would show.
        """
        for module in self._model.modules():
            if isinstance(module, nn.Embedding) and id(module) in self._outside and not module.weight.is_meta:
                nothing = torch.full((), torch.nan).expand(module.weight.shape)
                module.weight = nn.Parameter(nothing, requires_grad=False)
                self._released.append(module)
        self._loaded.clear()

    def _restore(self) -> None:
        for module in self._released:
            module.weight = nn.Parameter(module.weight.to("meta"), requires_grad=False)
        self._released = []

    def _called(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self._turn(name, Call(args, kwargs))

    def _load(self, prefix: str, module: nn.Module, _arguments: Any) -> None:
        """Give a module outside the blocks its own parameters and buffers, once."""
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[key] = nn.Parameter(self._read(prefix + key), requires_grad=False)
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[key] = self._read(prefix + key)

    def _read(self, name: str) -> Tensor:
        stored = self._source.aliases.get(name, name)
        if stored not in self._loaded:
            self._loaded[stored] = as_float(self._source.read(stored))
        return self._loaded[stored]


def model_inputs(model: Any, tokens: Tensor) -> dict[str, Any]:
    """The arguments of a model for tokens int64 [B, T]: an encoder-decoder is to give back what it is given."""
    inputs: dict[str, Any] = {"input_ids": tokens}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=tokens)
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs["use_cache"] = False
    return inputs


def as_float(tensor: Tensor) -> Tensor:
    """A tensor of any float type as float32; others as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor


def hollow_copy(source: Source) -> nn.Module:
    """The source's module tree in float32 with its parameters and persistent buffers on the meta device."""
    skeleton = source.skeleton
    hollow: dict[int, Any] = {}
    for _, tensor in named_state(skeleton):
        kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
        empty = torch.empty(tensor.shape, dtype=kind, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        hollow[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_parameter else empty
    model = copy.deepcopy(skeleton, hollow)
    model.train(False)
    config: Any = getattr(model, "config", None)
    if config is not None:
        config.use_cache = False
        # The other ways to run experts take the whole stack as one tensor, in which no expert's inputs are seen.
        config._experts_implementation = "eager"
    compute_buffers(model)
    return model


def _nobodys_turn(name: str, _: Call) -> Any:
    raise AssertionError(f"{name} was called outside a run")


def _holds_nan(call: Call) -> bool:
    tensors = leaves((call.args, call.kwargs))
    return any(bool(tensor.isnan().any()) for tensor in tensors if tensor.is_floating_point())
