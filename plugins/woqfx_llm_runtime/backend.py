"""The backend: whole models on the native engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import dtype as torch_dtype
from torch import nn

from woqfx import CPU, Backend, DType, PackedWeight, QTensor, Roofline, Scheme, StoredModel, Support, option, registry
from woqfx.errors import SchemeError
from woqfx_llm_runtime import NAME
from woqfx_llm_runtime.families import NAMES
from woqfx_llm_runtime.families.fields import UnsupportedModelError
from woqfx_native import support

if TYPE_CHECKING:
    from woqfx_llm_runtime.description import Description


_KV = ("auto", "fp16", "bf16", "fp32", "int8")
_HEADS = ("int8", "keep")


@dataclass(frozen=True)
class Options:
    """What `woqfx.load(..., backend="llm_runtime", backend_options={...})` may set."""

    kv: str = option("auto", "How keys and values are kept: fp16, bf16, fp32, int8, or auto: bf16 if that is quicker.")
    max_memory: int = option(0, "Bytes that keys and values may take; 0 for half of what is free.")
    head: str = option("int8", "What becomes of an output head that was kept: int8 (8 bits in memory) or keep.")
    pack_cache: str = option("", "A folder that keeps weights as the native kernels hold them, to load them faster.")
    verify: bool = option(False, "Compare the model's logits with backend torch_cpu's before it is used.")

    def __post_init__(self) -> None:
        for name, kinds in (("kv", _KV), ("head", _HEADS)):
            if getattr(self, name) not in kinds:
                raise SchemeError(f"option {name} of backend {NAME} is {getattr(self, name)!r}: {' or '.join(kinds)}")
        if self.max_memory < 0:
            raise SchemeError(f"option max_memory of backend {NAME} is {self.max_memory}: give bytes, or 0")


class LLMRuntime(Backend):
    """A whole model as one native engine: no module tree, keys and values of its own, requests that share steps."""

    name = NAME
    Options = Options

    def supports(self, scheme: Scheme, dtype: DType, shape: tuple[int, ...], cpu: CPU) -> Support:
        """See `woqfx.Backend.supports`: what the native kernels run."""
        native = support.support(scheme, dtype, shape, cpu)
        if native.ok:
            return native
        return Support(ok=False, reason=native.reason, remedy="backend torch_cpu computes it in PyTorch")

    def pack(self, q: QTensor, float_dtype: torch_dtype) -> PackedWeight:
        """Nothing runs alone here."""
        raise UnsupportedModelError([f"backend {NAME} runs whole models, not single layers: use backend torch_cpu"])

    def reads_weights(self, options: Any) -> bool:
        """See `woqfx.Backend.reads_weights`: not where they may be in a pack cache."""
        return not options.pack_cache

    def obstacles(self, model: nn.Module) -> Sequence[str]:
        """See `woqfx.Backend.obstacles`: what of this model is not known here."""
        try:
            describe(model)
        except UnsupportedModelError as error:
            return [f"{problem}; backend torch_cpu runs it" for problem in error.problems]
        if find_spec("woqfx_llm_runtime._core") is None:
            return ["woqfx was installed without its native engine: install it again with a C++20 compiler"]
        return []

    def model(self, stored: StoredModel, skeleton: nn.Module, options: Any) -> nn.Module:
        """See `woqfx.Backend.model`."""
        from woqfx_llm_runtime.loading import load
        from woqfx_llm_runtime.lowering import EngineOptions, usual_kv

        kv = usual_kv(stored) if options.kv == "auto" else options.kv
        chosen = EngineOptions(kv, options.max_memory or None, options.head, options.pack_cache)
        return load(stored, skeleton, describe(skeleton), chosen, verify=options.verify)

    def roofline(self, threads: int) -> Roofline:
        """See `woqfx.Backend.roofline`."""
        return registry().backend("torch_cpu").roofline(threads)


def describe(model: nn.Module) -> Description:
    """What a model computes, as a plugin describes it. Raises `UnsupportedModelError`."""
    found: Any = registry().architecture(model).descriptions.get(NAME)
    if found is None:
        raise UnsupportedModelError(
            [
                f"{type(model).__name__} is not one of the models that backend {NAME} knows ({', '.join(NAMES)}), and "
                "no plugin describes it in a woqfx_architecture hook"
            ]
        )
    description: Description = found(model)
    return description
