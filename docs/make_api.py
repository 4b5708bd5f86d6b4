"""Writes api.md from the public names of woqfx: signatures and docstrings, as they are.

    python docs/make_api.py [--check]

With --check nothing is written; the exit code is 1 if the page is not current.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import woqfx
from woqfx import errors

PAGE = Path(__file__).parent / "api.md"
WIDTH = 110

INTRODUCTION = """\
# The Python names

All that `from woqfx import ...` gives, and `woqfx.errors`; `make docs` writes this page from the program itself. What
is not here is woqfx's own affair, and may change. There are examples in [quick start](quickstart.md),
[a dtype in 20 lines](tutorial-dtype.md) and [the hooks](hooks/README.md).
"""

#: A chapter is about the modules whose names begin so; the last one takes what is left.
CHAPTERS = {
    "What users call": (
        "woqfx.api.",
        "woqfx.dequantizing.",
        "woqfx.transcoding.",
        "woqfx.tuning.",
        "woqfx.transformers.",
        "woqfx.planned.",
    ),
    "What shall happen to a weight": ("woqfx.scheme.", "woqfx.layers.", "woqfx.qtensor."),
    "For dtypes and compute dtypes": (
        "woqfx.dtype.",
        "woqfx.compute.",
        "woqfx.groups.",
        "woqfx.packing.",
        "woqfx.doublequant.",
    ),
    "For algorithms": (
        "woqfx.algorithm.",
        "woqfx.blocks.",
        "woqfx.nearest.",
        "woqfx.clipping.",
        "woqfx.learning.",
        "woqfx.options.",
    ),
    "For calibration sets": ("woqfx.calibration.",),
    "For backends": ("woqfx.backend.", "woqfx.cpu.", "woqfx.accelerator.", "woqfx.loading.", "woqfx.roofline."),
    "For formats": ("woqfx.format.", "woqfx.foreign.", "woqfx.disk.", "woqfx.source."),
    "Plugins, and the rest": ("",),
}


def page() -> str:
    """The page's content."""
    chapters: dict[str, list[str]] = {title: [] for title in CHAPTERS}
    for name in sorted(woqfx.__all__, key=str.lower):
        thing = getattr(woqfx, name)
        if callable(thing) and not _is_error(thing):
            chapters[_chapter(thing.__module__)].append("\n".join(_entry(name, thing)))
    lines = [INTRODUCTION]
    for title, entries in chapters.items():
        lines += [f"## {title}", "", *entries]
    return "\n".join([*lines, *_errors()])


def _is_error(thing: Any) -> bool:
    return inspect.isclass(thing) and issubclass(thing, Exception)


def _chapter(module: str) -> str:
    return next(title for title, homes in CHAPTERS.items() if f"{module}.".startswith(homes))


def _entry(name: str, thing: Any) -> Iterator[str]:
    yield f"### {name}"
    yield ""
    yield "```python no-run"
    yield _wrapped(f"{'class' if inspect.isclass(thing) else 'def'} {name}", thing)
    yield "```"
    yield ""
    yield inspect.cleandoc(thing.__doc__ or "").strip()
    yield ""
    members = list(_members(thing)) if inspect.isclass(thing) else []
    if members:
        yield from (*members, "")


def _members(kind: type[Any]) -> Iterator[str]:
    """Public methods and properties, each with what it says first."""
    for name, member in sorted(inspect.getmembers(kind)):
        plain = inspect.getattr_static(kind, name)
        if name.startswith("_") or not (callable(member) or hasattr(plain, "__get__")) or not _own(kind, name):
            continue
        text = inspect.getdoc(plain) or ""
        if not text or inspect.isclass(member):
            continue
        call = _signature(member) if callable(member) else ""
        yield f"- `{name}{call}`: {_first_sentence(text)}"


def _own(kind: type[Any], name: str) -> bool:
    """Whether a class of woqfx's defines it, rather than one of torch's or Python's."""
    return any(name in vars(base) and base.__module__.startswith("woqfx") for base in kind.__mro__)


def _signature(thing: Any) -> str:
    """As written: annotations without quotation marks."""
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return "(...)"
    shown = [
        one.replace(annotation=_Raw.of(one.annotation), default=_plain_default(one.default))
        for one in signature.parameters.values()
        if one.name not in ("self", "cls")
    ]
    result = signature.return_annotation
    hidden = inspect.isclass(thing) or result is inspect.Signature.empty
    given = inspect.Signature.empty if hidden else _Raw.of(result)
    return str(signature.replace(parameters=shown, return_annotation=given))


def _wrapped(head: str, thing: Any) -> str:
    """A signature as it would stand in a program: a parameter a line, if they do not fit into one."""
    whole = f"{head}{_signature(thing)}"
    if len(whole) <= WIDTH or whole.endswith("(...)"):
        return whole
    inside, close, result = whole.removeprefix(f"{head}(").rpartition(")")
    depth, parts = 0, [""]
    for letter in inside:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return "\n".join([f"{head}(", *(f"    {part.strip()}," for part in parts), f"{close}{result}"])


class _Raw:
    """What shows itself as a given text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    @classmethod
    def of(cls, annotation: Any) -> Any:
        return cls(annotation) if isinstance(annotation, str) else annotation


def _plain_default(default: Any) -> Any:
    """The default as someone would write it: a factory's object has an address, which differs each time."""
    return _Raw("...") if " at 0x" in repr(default) or "factory" in repr(default) else default


def _first_sentence(text: str) -> str:
    sentence, _, _ = " ".join(text.split()).partition(". ")
    return sentence.rstrip(".") + "."


def _errors() -> Iterator[str]:
    yield from ("## Errors", "", "All of them are a `woqfx.WoqfxError`; they are in `woqfx.errors`.", "")
    yield from ("| error | means |", "|---|---|")
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, errors.WoqfxError):
            yield f"| `{name}` | {_first_sentence(kind.__doc__ or '')} |"
    yield ""


def main() -> None:
    """Write the page, or compare it."""
    made = page()
    if "--check" not in sys.argv:
        PAGE.write_text(made)
    elif PAGE.read_text() != made:
        raise SystemExit(f"{PAGE} is not current: run `make docs`")


if __name__ == "__main__":
    main()
