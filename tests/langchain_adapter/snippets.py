"""The code blocks of the documents that woqfx was asked for from, made ready to run.

Nothing in a block is changed but its import lines, the model, and, for a model without an encoder, the task.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCUMENTS = sorted((Path(__file__).parent / "requirements").glob("*.txt"))
MODEL = "google/flan-t5-large"

_FENCE = re.compile(r"^```(?:python|py)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_IMPORTS = {
    "from intel_extension_for_transformers.transformers import WeightOnlyQuantConfig": (
        "from woqfx import WeightOnlyQuantConfig"
    ),
    "from intel_extension_for_transformers.transformers import AutoModelForSeq2SeqLM": (
        "from transformers import AutoModelForSeq2SeqLM"
    ),
    "from langchain_community.llms.weight_only_quantization import WeightOnlyQuantPipeline": (
        "from woqfx.langchain import WeightOnlyQuantPipeline"
    ),
    "from langchain_community.llms.huggingface_pipeline import HuggingFacePipeline": "",  # which no block uses
    "from transformers import AutoTokenizer, pipeline": (
        "from transformers import AutoTokenizer; from woqfx.langchain import pipeline"
    ),
}


@dataclass(frozen=True)
class Snippet:
    """A code block of a document: its first line there, and its text."""

    document: Path
    line: int
    text: str

    @property
    def name(self) -> str:
        return f"{self.document.name}:{self.line}"

    @property
    def kind(self) -> str:
        """What it is: "code", "install" (a shell command), or "signature" (of a class or method)."""
        if self.text.startswith("%pip"):
            return "install"
        return "signature" if self.text.startswith("(") else "code"

    def code(self, model: str, *, encoder: bool) -> str:
        """The block, ready to run with a model."""
        lines = [_IMPORTS.get(line, line) for line in self.text.splitlines()]
        text = "\n".join(lines).replace(MODEL, model)
        if encoder:
            return text
        return text.replace("text2text-generation", "text-generation").replace("ForSeq2SeqLM", "ForCausalLM")

    def parameters(self) -> list[str]:
        """The names in a signature."""
        inside = self.text.partition("(")[2].rpartition(")")[0]
        spaced = re.sub(r"<[^>]*>", "None", inside)
        names = re.findall(r"(?:^|\s)\**(\w+)(?=: |\s*=|\s|$)", re.sub(r": \w+", ": t", re.sub(r"= \S+", "", spaced)))
        return [name for name in names if name not in ("t", "kwargs")]


def snippets(document: Path) -> list[Snippet]:
    """All code blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    return [Snippet(document, text[: match.start(1)].count("\n") + 1, match[1]) for match in _FENCE.finditer(text)]


def run(
    blocks: list[Snippet], model: str, *, encoder: bool, namespace: dict[str, Any]
) -> Iterator[tuple[Snippet, str]]:
    """Run code blocks of one document in order; yields each with what it printed."""
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.code(model, encoder=encoder), block.name, "exec"), namespace)
        yield block, printed.getvalue()
