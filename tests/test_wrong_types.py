"""Arguments of a type that cannot be meant: the error says which, what was given, and what would work."""

from __future__ import annotations

import pytest
from torch import nn

import woqfx
from woqfx import WoqfxError


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32))


WRONG = {
    "model None": (lambda _: woqfx.quantize(None), "a model is a module, a folder, .* and not None"),
    "model of a plan": (lambda _: woqfx.plan(3), "a model is a module, a folder, .* and not 3"),
    "options": (lambda _: woqfx.plan(layers(), options=["mse_range"]), r"a mapping .*, not as \['mse_range'\]"),
    "target_bits": (lambda _: woqfx.plan(layers(), target_bits="4"), "target_bits is '4': give the bits"),
    "backend": (lambda out: woqfx.load(out, backend=None), "a backend is asked for by its name, .* not by None"),
    "backend_options": (lambda out: woqfx.load(out, backend_options=[1]), r"options of backend torch_cpu .* \[1\]"),
    "model to load into": (lambda out: woqfx.load(out, model="m"), "model is 'm': give the module"),
    "format": (lambda out: woqfx.convert(out, out.parent / "b", to=None), "a format is asked for by its name"),
    "data to tune by": (lambda out: woqfx.tune(out, out, out, data="x"), r"'x': give a woqfx.CalibrationRequest\("),
    "tuning": (lambda out: woqfx.tune(out, out, out, options={"rate": 1}), r"give a woqfx.TuningOptions\("),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_meant(call, message, tmp_path):
    woqfx.quantize(layers(), out=tmp_path / "out", progress="none")
    with pytest.raises(WoqfxError, match=message):
        call(tmp_path / "out")
