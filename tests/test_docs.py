"""The documentation is current, and its examples run.

Every fenced block that begins with "```python" is executed, all blocks of a page in order, sharing a namespace, in
an empty folder; "```python no-run" is not.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny_models import save_tokenizer, tiny_model

import woqfx
from woqfx import hookspecs
from woqfx.plugins import registry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("woqfx_"))
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def signature(hook: str) -> str:
    (definition,) = ast.parse(inspect.getsource(getattr(hookspecs, hook))).body
    assert isinstance(definition, ast.FunctionDef) and definition.returns is not None
    return f"def {hook}({ast.unparse(definition.args)}) -> {ast.unparse(definition.returns)}:"


def examples(page: Path) -> list[tuple[int, str]]:
    text = page.read_text()
    return [(text[: match.start(1)].count("\n"), match[1]) for match in FENCE.finditer(text)]


def prepare(folder: Path, makes_out: bool) -> None:
    """What pages for users take as given: a model, chats, and, unless the page makes it, a checkpoint of the model."""
    model = folder / "path" / "to" / "model"
    tiny_model("llama", vocab_size=259, max_position_embeddings=1024).save_pretrained(model)
    save_tokenizer(model)
    chat = [{"role": "user", "content": "What is it? " * 22}, {"role": "assistant", "content": "It is this. " * 22}]
    (folder / "my_chats.jsonl").write_text((json.dumps(chat) + "\n") * 128)
    if not makes_out:
        woqfx.quantize(model, out=folder / "out")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_page_with_its_signature_and_an_example(hook):
    page = ROOT / "docs" / "hooks" / f"{hook}.md"
    assert f"```python no-run\n{signature(hook)}\n```" in page.read_text()
    assert any(f"def {hook}(" in code for _, code in examples(page))
    assert f"[{hook}]({hook}.md)" in (ROOT / "docs" / "hooks" / "README.md").read_text()


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_test(hook):
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    assert any(hook in path.read_text() for path in tests)


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=name_of)
def test_the_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "path/to/model" in page.read_text():
        prepare(tmp_path, makes_out='out="out/"' in page.read_text())
    if "path/to/flan-t5" in page.read_text():
        tiny_model("t5", vocab_size=259).save_pretrained(tmp_path / "path" / "to" / "flan-t5")
    module = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)  # dataclasses look their module up
    registry.cache_clear()
    try:
        for line, code in examples(page):
            exec(compile("\n" * line + code, str(page), "exec"), vars(module))
    finally:
        registry.cache_clear()


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"]
    assert [page for page in pages if f"({page})" not in index] == []


def test_the_architecture_names_every_room():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = [
        path for path in (ROOT / "woqfx").iterdir() if not path.name.startswith((".", "_")) and path.suffix != ".typed"
    ]
    names = [f"`{path.name}/" if path.is_dir() else f"`{path.name}`" for path in rooms]
    assert sorted(name for name in names if name not in page) == []


def test_the_page_of_python_names_is_current():
    make_api = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    assert (ROOT / "docs" / "api.md").read_text() == make_api["page"](), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    targets = LINK.findall(page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []
