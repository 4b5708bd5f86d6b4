"""Taking a model's insides out while transformers goes through its loading."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from woqfx.skeleton import named_state

_INSIDES = ("_modules", "_parameters", "_buffers")


class Hollow:
    """The module tree of `model`, on the meta device, taken out of it.

    A model without tensors lacks none, so transformers' loader, which would load what is quantized densely and
    initialise at random what it does not find, reads nothing. `put_back` gives the tree back, tied, to be filled by
    woqfx's own loader.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        #: The type that each tensor shall have, by name.
        self.dtypes = _dtypes(model)
        self._insides = {name: vars(model)[name] for name in _INSIDES}
        self._tied = model.all_tied_weights_keys
        vars(model).update({name: {} for name in _INSIDES})
        model.all_tied_weights_keys = {}
        model._keys_to_ignore_on_load_unexpected = {""}  # every tensor of the files, for the loader's report
        vars(model)["_is_hf_initialized"] = True  # a flag that transformers' initialisation looks for

    def put_back(self, model: PreTrainedModel) -> None:
        """Make the model whole again, in evaluation mode: it was told so while its modules were away."""
        vars(model).update(self._insides)
        model.all_tied_weights_keys = self._tied
        for flag in ("_keys_to_ignore_on_load_unexpected", "_is_hf_initialized", "_weight_conversions"):
            vars(model).pop(flag, None)
        model.tie_weights()
        model.train(model.training)


def _dtypes(model: PreTrainedModel) -> dict[str, torch.dtype]:
    """As transformers decides it: the type that was asked for, but float32 for modules that need it."""
    from transformers.core_model_loading import build_glob_alternation

    plan: dict[str, Any] = model._get_dtype_plan(model.dtype)
    strict = build_glob_alternation(list(plan))[0] if plan else None
    return {
        name: torch.float32 if strict is not None and strict.search(name) else tensor.dtype
        for name, tensor in named_state(model)
        if tensor.is_floating_point()
    }
