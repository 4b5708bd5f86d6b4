"""The parts of the quality benchmark: the prose, the table, the measure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.prose import paragraphs
from benchmarks.quality import JOBS, page

PAGE = """
=====
Title
=====

Every view of the site is a function, or a :class:`~django.views.View` with methods, which takes a request and gives a
response; see :doc:`the tutorial </intro/tutorial01>` and ``settings.py`` for *more* of that::

    def view(request):
        return HttpResponse("An indented block of code is not prose, however long it may be, and so it is left out.")

.. note::

    An indented note, long enough to be taken for a paragraph if indentation did not tell that it is something else.

* A list, long enough to be taken for a paragraph if its first character did not tell that it is something else here.

Too short.
"""


def test_prose_is_plain_paragraphs_without_markup():
    assert paragraphs(PAGE) == [
        "Every view of the site is a function, or a View with methods, which takes a request and gives a response; "
        "see the tutorial and settings.py for more of that:"
    ]


def test_every_row_has_a_name_of_its_own():
    names = [job.name for job in JOBS]
    assert len(set(names)) == len(names)


def test_the_table_has_results_and_failures_in_the_order_of_jobs():
    found = {"perplexity": 30.0, "float": 25.0, "divergence": 0.1, "seconds": 9.6, "processor_seconds": 15.2}
    found |= {"peak_bytes": 1.25e9, "threads": 2, "tokens": 8192, "processor": "A CPU", "load": 5.0}
    results = {JOBS[1].name: {"failed": "no absorb map"}, JOBS[0].name: found}
    lines = page(results).splitlines()
    assert lines[2] == "A CPU, threads: 2; 8192 tokens, perplexity 25.00 in float32."
    assert "not quiet**: load up to 3.0" in lines[4]
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert rows[0] == f"| {JOBS[0].name} | 4.5 | 30.00 | 1.2000 | 0.1000 | 10 s | 15 s | 1.25 GB |"
    assert rows[1].startswith(f"| {JOBS[1].name} | | failed: no absorb map |")


def test_the_program_that_starts_the_others_stays_small():
    """Linux counts what a child shared with its parent as the child's memory."""
    code = "import sys, benchmarks.quality; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
