"""Sick plugins: each gives an error that names it and its distribution, and the rest works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from fakedist import install

from woqfx.errors import CollisionError, PluginError, UnknownNameError
from woqfx.plugin_loading import PluginWarning
from woqfx.plugins import KINDS, Registry
from woqfx.settings import Settings

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Sick:
    """A module's source (None: there is no module), and what the report must say beside the plugin's name."""

    source: str | None
    says: str
    points: str = ""
    #: Names that the plugin provides all the same.
    healthy: tuple[str, ...] = ()


def dtype(body: str, base: str = "IntegerGrid", before: str = "") -> str:
    """A module that provides one dtype class with this body."""
    return "\n".join(
        (
            "import torch, woqfx",
            before,
            f"class Sick(woqfx.{base}):",
            *(f"    {line}" for line in body.split("\n")),
            "@woqfx.hookimpl",
            "def woqfx_dtypes():",
            "    return [Sick()]",
            "",
        )
    )


def hook(line: str, name: str = "woqfx_dtypes", arguments: str = "") -> str:
    """A module with one hook."""
    return f"import woqfx\n@woqfx.hookimpl\ndef {name}({arguments}):\n    {line}\n"


def algorithm(options: str) -> str:
    """A module that provides an algorithm with these options."""
    return "\n".join(
        (
            "import woqfx, dataclasses",
            options,
            "class Sick(woqfx.Algorithm):",
            "    name = 'sick'",
            "    Options = Options",
            "    def round(self, layer): return super().round(layer)",
            hook("return [Sick]", "woqfx_algorithms"),
        )
    )


def backend(supports: str) -> str:
    """A module that provides a backend that answers this to `supports`."""
    return "\n".join(
        (
            "import woqfx",
            "class Sick(woqfx.Backend):",
            "    name = 'sick'",
            f"    def supports(self, scheme, dtype, shape, cpu): return {supports}",
            "    def pack(self, q, float_dtype): raise NotImplementedError",
            hook("return [Sick()]", "woqfx_backends"),
        )
    )


def compute(matmul: str) -> str:
    """A module that provides a compute dtype that evaluates this."""
    return "\n".join(
        (
            "import torch, woqfx",
            "class Sick(woqfx.ComputeDType):",
            "    name = 'sick'",
            f"    def matmul(self, x, weight, bias): return {matmul}",
            hook("return [Sick()]", "woqfx_compute_dtypes"),
        )
    )


SICK = {
    # -- that cannot be loaded
    "raises-on-import": Sick("raise RuntimeError('out of cheese')", "could not be loaded: RuntimeError: out of cheese"),
    "exits-on-import": Sick("import sys; sys.exit(2)", "could not be loaded: SystemExit: 2"),
    "syntax-error": Sick("def", "could not be loaded: SyntaxError"),
    "module-missing": Sick(None, "could not be loaded: ModuleNotFoundError: No module named 'sick'"),
    "attribute-missing": Sick("", "could not be loaded: AttributeError", points="sick = sick:plugin"),
    "class-raises": Sick("class P:\n    def __init__(self): 1 / 0", "ZeroDivisionError", points="sick = sick:P"),
    "needs-a-package": Sick(
        "import no_such_package_at_all", "ModuleNotFoundError: No module named 'no_such_package_at_all'"
    ),
    # -- whose hooks are wrong
    "no-hook": Sick("x = 1", "implements no hook; the hooks are woqfx_accelerators"),
    "unmarked-hook": Sick("def woqfx_dtypes(): return []", "defines 'woqfx_dtypes' without the mark"),
    "misspelled-hook": Sick(
        hook("return []", "woqfx_dtype"), "implements 'woqfx_dtype', which is not a hook: did you mean 'woqfx_dtypes'"
    ),
    "misspelled-and-unmarked-hook": Sick(
        hook("return []") + "def woqfx_algorithm(): return []",
        "defines 'woqfx_algorithm', which is not a hook: did you mean 'woqfx_algorithms', with @woqfx.hookimpl",
    ),
    "misspelled-step": Sick(
        "import woqfx\nclass Sick(woqfx.Algorithm):\n    name = 'sick'\n    def quantise_layer(self, layer): pass\n"
        + hook("return [Sick]", "woqfx_algorithms"),
        "provides an unusable algorithm: sick is round to nearest: woqfx calls transform, round and refine, and it has "
        "quantise_layer",
    ),
    "misspelled-attribute": Sick(
        "import woqfx\nclass Good(woqfx.IntegerGrid):\n    name = 'good5'; bits = 5; ful_range = True\n"
        + hook("return [Good()]"),
        "provides a dtype that may be misspelt: good5 has 'ful_range', which woqfx does not know: did you mean "
        "'full_range'",
        healthy=("good5",),
    ),
    "argument-unknown": Sick(
        hook("return []", arguments="model"), r"could not be loaded: PluginValidationError.*\{'model'\}"
    ),
    "wrapper": Sick(
        "import woqfx\n@woqfx.hookimpl(wrapper=True)\ndef woqfx_dtypes():\n    return (yield)", "as a wrapper"
    ),
    # -- whose hooks fail
    "hook-raises": Sick(hook("raise KeyError('x')"), "failed in woqfx_dtypes: KeyError: 'x'"),
    "hook-exits": Sick(hook("raise SystemExit"), "failed in woqfx_dtypes: SystemExit"),
    "generator-raises-late": Sick(hook("yield 1; raise OSError('late')"), "failed in woqfx_dtypes: OSError: late"),
    "gives-none": Sick(hook("pass"), "failed in woqfx_dtypes: TypeError: it gave None where a list is expected"),
    "gives-one-thing": Sick(hook("return 4"), "it gave 4 where a list"),
    "gives-a-string": Sick(hook("return 'x'"), "it gave 'x' where a list"),
    # -- that provide the wrong kind of thing
    "gives-numbers": Sick(hook("return [4]"), "unusable dtype: 4 is not a woqfx.DType"),
    "gives-a-class": Sick(hook("return [woqfx.IntegerGrid]"), "IntegerGrid is a class: a plugin gives an instance"),
    "gives-an-instance": Sick(
        hook("return [woqfx.Algorithm()]", "woqfx_algorithms"), "Algorithm is an instance: a plugin gives the class"
    ),
    "gives-another-kind": Sick(
        hook("return [woqfx.Algorithm]", "woqfx_backends"), "unusable backend: .* is not a woqfx.Backend"
    ),
    "format-nonsense": Sick(hook("return [object()]", "woqfx_formats"), "is not a woqfx.Format"),
    # -- dtypes that no kernel could run
    "dtype-without-name": Sick(dtype("bits = 4"), "unusable dtype: its name None"),
    "dtype-bad-name": Sick(dtype("name = 'My Grid'; bits = 4"), "unusable dtype: its name 'My Grid' is not lower-case"),
    "dtype-path-name": Sick(dtype("name = '../../x'; bits = 4"), r"its name '\.\./\.\./x' is not"),
    "dtype-bits-99": Sick(dtype("name = 'x'; bits = 99"), "x: bits is 99, not 1 to 8"),
    "dtype-bits-float": Sick(dtype("name = 'x'; bits = 4.0"), r"x: bits is 4\.0"),
    "dtype-bits-missing": Sick(dtype("name = 'x'"), "x: AttributeError when it was tried"),
    "dtype-one-bit": Sick(dtype("name = 'x'; bits = 1"), "1 bit has no step"),
    "dtype-17-levels": Sick(
        dtype("name = 'x'; bits = 4; table = range(17)", "Codebook"), "x: 17 levels, where 4 bits hold 2 to 16"
    ),
    "dtype-nan-level": Sick(
        dtype("name = 'x'; bits = 1; table = (0, float('nan'))", "Codebook"), "levels must be finite"
    ),
    "dtype-zero-levels": Sick(dtype("name = 'x'; bits = 1; table = (0, 0)", "Codebook"), "not all 0"),
    "dtype-own-family": Sick(
        "import torch, woqfx\nclass Sick(woqfx.DType):\n"
        "    name = 'x'; bits = 4; has_asymmetric = False; levels = None\n"
        "    def fit(self, groups, *, symmetric, shrink=1.0): pass\n    def encode(self, groups, params): pass\n"
        "    def decode(self, codes, params): pass\n    def integers(self, codes, params): pass\n"
        + hook("return [Sick()]"),
        "neither a woqfx.IntegerGrid nor a woqfx.Codebook",
    ),
    "encode-beyond-bits": Sick(
        dtype(
            "name = 'x'; bits = 2\n"
            "def encode(self, groups, params):\n    return torch.full_like(groups, 9, dtype=torch.uint8)"
        ),
        "x: encode gives code 9, where 2 bits hold 4 codes",
    ),
    "encode-beyond-levels": Sick(
        dtype(
            "name = 'x'; bits = 2; table = (-1, 0, 1)\n"
            "def encode(self, groups, params):\n    return torch.full_like(groups, 3, dtype=torch.uint8)",
            "Codebook",
        ),
        "x: encode gives code 3, where 2 bits hold 3 codes",
    ),
    "encode-floats": Sick(
        dtype("name = 'x'; bits = 2\ndef encode(self, groups, params):\n    return groups"),
        "encode gives torch.float32",
    ),
    "encode-raises": Sick(
        dtype("name = 'x'; bits = 2\ndef encode(self, groups, params):\n    1 / 0"),
        "x: ZeroDivisionError when it was tried",
    ),
    "encode-exits": Sick(
        dtype("name = 'x'; bits = 2\ndef encode(self, groups, params):\n    raise SystemExit"),
        "x: SystemExit when it was tried",
    ),
    "fit-nan": Sick(
        dtype(
            "name = 'x'; bits = 2\ndef fit(self, groups, *, symmetric, shrink=1.0):\n"
            "    return woqfx.GroupParams(groups[..., 0] * float('nan'), None if symmetric else groups[..., 0] * 0)"
        ),
        "x: fit gives scales .*nan",
    ),
    "fit-without-zero": Sick(
        dtype(
            "name = 'x'; bits = 2\ndef fit(self, groups, *, symmetric, shrink=1.0):\n"
            "    return super().fit(groups, symmetric=True, shrink=shrink)"
        ),
        "x: fit gives no zero point where symmetric is False",
    ),
    "decode-its-own-way": Sick(
        dtype("name = 'x'; bits = 2\ndef decode(self, codes, params):\n    return super().decode(codes, params) ** 3"),
        r"x: decode is not \(code - zero\) \* scale",
    ),
    # -- the other kinds
    "compute-wrong-shape": Sick(compute("x"), r"sick: matmul gives torch.bfloat16 \[1, 2, 20\]"),
    "compute-wrong-type": Sick(compute("(x.float() @ weight.dequantize().T)"), "sick: matmul gives torch.float32"),
    "compute-wrong-values": Sick(
        compute("-(x.float() @ weight.dequantize().T).to(x.dtype)"), "sick: matmul is far from"
    ),
    "compute-nan": Sick(compute("torch.full((1, 2, 4), float('nan'), dtype=x.dtype)"), "sick: matmul is far from"),
    "options-no-dataclass": Sick(algorithm("class Options: pass"), "sick: Options must be a frozen dataclass"),
    "options-not-frozen": Sick(
        algorithm("@dataclasses.dataclass\nclass Options:\n    a: int = 1"), "sick: Options must be a frozen"
    ),
    "options-without-default": Sick(
        algorithm("@dataclasses.dataclass(frozen=True)\nclass Options:\n    a: int"), "option a has no default"
    ),
    "options-of-none": Sick(
        algorithm("@dataclasses.dataclass(frozen=True)\nclass Options:\n    a: object = None"),
        "option a is None, not a bool",
    ),
    "backend-answers-true": Sick(backend("True"), "sick: supports gives True, not a woqfx.Support"),
    "backend-raises": Sick(backend("1 / 0"), "sick: ZeroDivisionError when it was tried"),
    # -- whose neighbours are fine
    "one-of-two-is-bad": Sick(
        "import woqfx\nclass Good(woqfx.IntegerGrid):\n    name = 'good5'; bits = 5\n"
        "class Bad(Good):\n    name = 'bad'; bits = 9\n" + hook("return [Bad(), Good()]"),
        "bad: bits is 9",
        healthy=("good5",),
    ),
    "the-same-twice": Sick(
        "import woqfx\nclass Good(woqfx.IntegerGrid):\n    name = 'good5'; bits = 5\n"
        + hook("return [Good(), Good()]"),
        "collides: dtype 'good5' is provided twice by plugin 'sick' of sick 1.0",
    ),
    "takes-a-built-in-s-name": Sick(
        "import woqfx\nclass Usurper(woqfx.IntegerGrid):\n    name = 'nf4'; bits = 4\n" + hook("return [Usurper()]"),
        r"collides: dtype 'nf4' is provided by plugin 'dtypes' of woqfx \S+ and plugin 'sick' of sick 1.0: uninstall",
    ),
}


def ask_for_everything(settings: Settings) -> tuple[Registry, dict[str, list[str]]]:
    """Load all plugins and collect all that they provide."""
    registry = Registry(settings)
    return registry, {kind: registry.names(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def healthy() -> dict[str, set[str]]:
    """What there is without the sick plugin."""
    return {kind: set(names) for kind, names in ask_for_everything(Settings(strict=True))[1].items()}


@pytest.mark.parametrize("sick", SICK.values(), ids=SICK)
def test_it_is_reported_and_the_rest_works(site, healthy, sick):
    install(site, "sick", sick.source, points=sick.points)
    with pytest.warns(PluginWarning, match=rf"plugin 'sick' of sick 1\.0 .*{sick.says}") as caught:
        registry, names = ask_for_everything(Settings())
    assert all("plugin 'sick' of sick 1.0" in str(warning.message) for warning in caught)
    (plugin,) = (p for p in registry.plugins if p.name == "sick")
    assert len(plugin.problems) == len(caught) == 1
    lost = {kind: healthy[kind] - set(names[kind]) for kind in KINDS}
    gained = {kind: set(names[kind]) - healthy[kind] for kind in KINDS}
    assert lost == {kind: {"nf4"} if kind == "dtype" and "nf4" in sick.says else set() for kind in KINDS}
    assert gained == {kind: set(sick.healthy) if kind == "dtype" else set() for kind in KINDS}


@pytest.mark.parametrize("sick", SICK.values(), ids=SICK)
def test_strict_mode_refuses_it(site, sick):
    install(site, "sick", sick.source, points=sick.points)
    with pytest.raises(PluginError, match=rf"plugin 'sick' of sick 1\.0 .*{sick.says}"):
        ask_for_everything(Settings(strict=True))


def test_an_unknown_name_points_at_the_sick_plugin(site):
    install(site, "sick", "import no_such_package_at_all")
    with pytest.warns(PluginWarning):
        registry = Registry(Settings())
    with pytest.raises(UnknownNameError, match=r"may be in plugin 'sick' of sick 1\.0, which is ModuleNotFoundError"):
        registry.dtype("sick3")


def test_a_usurped_name_is_an_error_that_names_both(site):
    install(site, "sick", SICK["takes-a-built-in-s-name"].source)
    with pytest.warns(PluginWarning):
        registry, _ = ask_for_everything(Settings())
    with pytest.raises(CollisionError, match=r"of woqfx \S+ and plugin 'sick' of sick 1\.0"):
        registry.dtype("nf4")
    with pytest.raises(CollisionError):
        registry.provider("dtype", "nf4")


def test_metadata_without_a_name_does_not_stop_anyone(site, healthy):
    install(site, "sick", "raise OSError('disk')", metadata=False)
    with pytest.warns(PluginWarning, match="plugin 'sick'.*OSError: disk"):
        _, names = ask_for_everything(Settings())
    assert {kind: set(n) for kind, n in names.items()} == healthy


def test_an_optional_hook_of_another_version_is_no_mistake(site):
    install(site, "sick", "import woqfx\n@woqfx.hookimpl(optionalhook=True)\ndef woqfx_of_2035(): pass\n")
    (plugin,) = (p for p in Registry(Settings(strict=True)).plugins if p.name == "sick")
    assert plugin.problems == []


def test_an_interrupt_is_not_swallowed(site):
    install(site, "sick", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        Registry(Settings())
