"""What a plan says of a configuration, for tests that compare it."""

from __future__ import annotations

from typing import Any

import woqfx

BLOCKS = [f"model.layers.{number}." for number in range(2)]
ATTENTION = [f"{block}self_attn.{name}_proj" for block in BLOCKS for name in "qkvo"]
MLP = [f"{block}mlp.{name}_proj" for block in BLOCKS for name in ("gate", "up", "down")]


def facts(model, config) -> dict[str, Any]:
    """What a plan says: schemes by layer, the algorithm, its options, and the calibration data."""
    plan = woqfx.plan(model, config=config)
    assert plan.problems == ()
    data = plan.request.calibration
    schemes = {layer.layer.name: layer.scheme for layer in plan.layers if layer.scheme is not None}
    (first, *_) = schemes.values()
    return {
        "schemes": schemes,
        "kept": {layer.layer.name for layer in plan.layers if layer.scheme is None},
        "first": first,
        "algorithm": plan.request.algorithm,
        "options": dict(plan.request.options),
        "data": data,
    }


def keeps(*names: str):
    return lambda found: {name for name in found["kept"] if name.endswith("_proj")} == set(names)
