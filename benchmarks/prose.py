"""Technical English prose to measure on: paragraphs of Django's documentation, from its source distribution.

No text is shipped: pip fetches the pinned distribution once, and the paragraphs are taken out of it. Calibration data
is another text, so that nothing is measured on what it was made with.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "5.2.8"


def prose(cache: Path) -> str:
    """Paragraphs of `docs/topics`, files in the order of their names, markup of references taken off."""
    with tarfile.open(_distribution(cache)) as archive:
        members = [m for m in archive.getmembers() if re.search(r"/docs/topics/.*\.txt$", m.name)]
        pages = [_read(archive, member) for member in sorted(members, key=lambda member: member.name)]
    return "\n\n".join(paragraph for page in pages for paragraph in paragraphs(page))


def paragraphs(page: str) -> list[str]:
    """The plain paragraphs of a page of reStructuredText, each on one line."""
    blocks = (block.strip("\n") for block in re.split(r"\n\s*\n", page))
    return [_plain(block) for block in blocks if _is_prose(block)]


def _is_prose(block: str) -> bool:
    """Unindented sentences: no headings, directives, lists, tables or code."""
    starts = not re.match(r"[\s.*#\-=~^`|+_:\d]", block)
    return starts and len(block) > 120 and block.rstrip()[-1] in ".:" and not re.search(r"\n\s|\n([=~\-^])\1\1", block)


def _plain(block: str) -> str:
    """Without roles and targets: :class:`~django.http.HttpRequest` becomes HttpRequest."""
    text = " ".join(block.split())
    text = re.sub(r":[\w:+-]+:`([^`<]*?)\s*<[^`>]*>`", r"\1", text)
    text = re.sub(r":[\w:+-]+:`~[^`]*?([^`.]+)`", r"\1", text)
    text = re.sub(r":[\w:+-]+:`!?([^`]*)`", r"\1", text)
    text = re.sub(r"`([^`<]+?)\s*<[^`>]*>`__?", r"\1", text)
    text = re.sub(r"`+([^`]*)`+_?", r"\1", text)
    return re.sub(r"::$", ":", text).replace("**", "").replace("*", "")


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = archive.extractfile(member)
    assert file is not None
    with file:
        return file.read().decode()


def _distribution(cache: Path) -> Path:
    path = cache / f"django-{VERSION}.tar.gz"
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, f"Django=={VERSION}", "--dest", str(cache)], check=True)
    return path
