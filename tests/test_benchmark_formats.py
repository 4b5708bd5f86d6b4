"""The benchmarks of formats: how answers are compared, the tables, and the reading of what others wrote."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from benchmarks.foreign_files import KEPT, read
from benchmarks.foreign_files import page as foreign_page
from benchmarks.formats import CASES, Answer, page


def answer(tokens, logits):
    return Answer(np.array(tokens), np.array(logits, dtype=np.float32))


class TestAnswers:
    def test_a_constant_means_nothing(self):
        first = answer([[1]], [[1.0, 2.0, -3.0]])
        assert first.apart(answer([[1]], [[11.0, 12.0, 7.0]])) == pytest.approx(0, abs=1e-6)

    def test_the_largest_difference_of_the_largest_logit(self):
        first = answer([[1], [1]], [[4.0, -4.0], [1.0, -1.0]])
        assert first.apart(answer([[1], [1]], [[4.0, -4.0], [2.0, -2.0]])) == pytest.approx(0.25)

    def test_tokens_count_until_the_first_that_differs(self):
        first = answer([[1, 2, 3], [4, 5, 6]], [[0.0], [0.0]])
        assert first.alike(answer([[1, 9, 3], [4, 5, 6]], [[0.0], [0.0]])) == 4


def test_rows_of_one_format_and_reader_have_names_of_their_own():
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_page_tells_failures_and_the_rounding_of_inputs():
    said = {"apart": 1e-3, "alike": 48, "of": 48, "reader": "reader 1.0", "processor": "a processor"}
    widened = next(case for case in CASES if case.widened)
    rounding = {"own_rounding": 0.08, "own_alike": 30, "our_rounding": 0.05, "our_alike": 31}
    text = page({CASES[0].name: said, CASES[1].name: {"failed": "no such file"}, widened.name: said | rounding})
    assert "| reader 1.0 | 1.0e-03 | 48 of 48 |" in text
    assert "failed: no such file" in text
    assert "8.0e-02 from its own of the same values as F32 (30 of 48 tokens alike)" in text


class TestForeignFiles:
    @pytest.fixture(params=sorted(path.name for path in KEPT.iterdir()))
    def kept(self, request):
        return min((KEPT / request.param).iterdir())

    def test_what_is_kept_is_alike(self, kept):
        found = read(kept)
        assert found.alike == found.weights == found.packed == 7
        assert f"| {kept.name} |" in foreign_page([found])

    def test_other_scales_are_found(self, kept, tmp_path):
        changed = shutil.copytree(kept, tmp_path / kept.name)
        tensors = load_file(changed / "model.safetensors")
        name = next(name for name in tensors if name.endswith(("scales", "weight_scale")))
        tensors[name] = tensors[name] * 2 if tensors[name].is_floating_point() else tensors[name] + 1
        save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
        assert read(changed).alike == 6
