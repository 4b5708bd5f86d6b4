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
    "path": (lambda _: woqfx.load(None), "path is None: give the path of a folder or file"),
    "a model as a path": (lambda _: woqfx.load(layers()), r"path is .*: give the path of a folder or file"),
    "out of a run": (lambda _: woqfx.quantize(layers(), out=3), "out is 3: give the path"),
    "out to save to": (lambda out: woqfx.save(woqfx.load(out, model=layers()), None), "out is None: give the path"),
    "model to convert": (lambda out: woqfx.convert(None, out), "model is None: give the path"),
    "out to convert to": (lambda out: woqfx.convert(out, None), "out is None: give the path"),
    "model to tune": (lambda out: woqfx.tune(None, out, out), "model is None: give the path"),
    "out to tune to": (lambda out: woqfx.tune(out, out, None), "out is None: give the path"),
    "original": (lambda out: woqfx.tune(out, None, out), "a model is a module, a folder, .* and not None"),
    "data to tune by": (lambda out: woqfx.tune(out, out, out, data="x"), r"'x': give a woqfx.CalibrationRequest\("),
    "tuning": (lambda out: woqfx.tune(out, out, out, options={"rate": 1}), r"give a woqfx.TuningOptions\("),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_meant(call, message, tmp_path):
    woqfx.quantize(layers(), out=tmp_path / "out", progress="none")
    with pytest.raises(WoqfxError, match=message):
        call(tmp_path / "out")
