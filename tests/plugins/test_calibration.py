"""The built-in sets that need no network. Those of the Hub: tests/calibration/test_calibration_hub.py."""

from __future__ import annotations

import sys

import pytest
import torch
from tiny_models import tiny_model

import woqfx
from woqfx import CalibrationError, CalibrationRequest, Subject
from woqfx.calibration import check_calibration, prepare_calibration
from woqfx.original import original_of
from woqfx.source import open_source
from woqfx_calibration import cache, sampling


def own_text(model, **request):
    request = CalibrationRequest("self", **{"samples": 5, "seq_len": 20, **request})
    return torch.cat(prepare_calibration(request, open_source(model)).batches)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "woqfx" / "calibration"


@pytest.fixture
def written(monkeypatch):
    """How often the model was made to write."""
    rounds = []
    write = sampling.write_rows
    monkeypatch.setattr(sampling, "write_rows", lambda *a: rounds.append(len(a[1])) or write(*a))
    return rounds


class TestPythonDocs:
    def test_it_is_every_topic_of_this_pythons_help(self):
        from pydoc_data.topics import topics

        subject = Subject(open_source(tiny_model("llama")))
        found = list(woqfx.registry().calibration_set("python-docs").documents(subject, CalibrationRequest()))
        assert sorted(found) == sorted(topics.values())

    def test_a_python_without_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
        with pytest.raises(
            CalibrationError, match=r"this Python comes without .*; give a file of text, a list of texts"
        ):
            check_calibration(CalibrationRequest(seq_len=16), open_source(tiny_model("llama")))


class TestOwnText:
    def test_rows_of_what_was_asked_for(self):
        rows = own_text(tiny_model("llama"))
        assert rows.shape == (5, 20) and rows.dtype == torch.int64
        assert (rows[:, 0] == 1).all()  # what begins a text
        assert len({tuple(row) for row in rows.tolist()}) == 5

    @pytest.mark.parametrize("family", ["gpt2", "qwen3_moe", "gemma2", "bloom"])
    def test_architectures(self, family):
        assert own_text(tiny_model(family)).shape == (5, 20)

    def test_the_model_decides_what_is_written(self):
        """Of a model whose logits are one bias whatever came before, the tokens follow its softmax."""
        model = tiny_model("gpt2", vocab_size=8, bos_token_id=1, eos_token_id=2)
        with torch.no_grad():
            model.transformer.ln_f.weight.zero_()
            model.transformer.ln_f.bias.fill_(1.0)
            model.lm_head.weight = torch.nn.Parameter(torch.log(torch.arange(1.0, 9)).unsqueeze(1).expand(8, 64) / 64)
        rows = sampling.write_rows(model, torch.ones(64, 1, dtype=torch.int64), 61, 0)[:, 1:]
        found = rows.flatten().bincount(minlength=8) / rows.numel()
        wanted = torch.arange(1.0, 9) / 36
        assert (found - wanted).abs().max() < 4 * (0.25 * 0.75 / rows.numel()) ** 0.5

    def test_an_end_of_text_ends_no_row(self):
        model = tiny_model("gpt2", vocab_size=4, bos_token_id=1, eos_token_id=2)
        rows = sampling.write_rows(model, torch.ones(4, 1, dtype=torch.int64), 60, 0)
        assert (rows[:, :-1] == 2).any() and rows.shape == (4, 60)

    def test_each_seed_has_its_text(self):
        model = tiny_model("llama")
        assert not torch.equal(own_text(model, seed=0), own_text(model, seed=1))

    def test_the_number_of_threads_changes_nothing(self, monkeypatch, folder):
        model, found = tiny_model("llama"), []
        for cores in (1, 2):
            monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
            monkeypatch.setenv("XDG_CACHE_HOME", str(folder / str(cores)))
            found.append(own_text(model, samples=40))
        assert torch.equal(*found)

    def test_nothing_of_the_process_is_touched(self):
        torch.manual_seed(3)
        before, threads = torch.random.get_rng_state(), torch.get_num_threads()
        model = tiny_model("llama").train()
        own_text(model)
        assert torch.equal(before, torch.random.get_rng_state())
        assert torch.get_num_threads() == threads and model.training

    def test_a_folder_and_the_live_model_write_the_same(self, tmp_path, written):
        model = tiny_model("llama")
        model.save_pretrained(tmp_path / "model")
        assert torch.equal(own_text(model), own_text(tmp_path / "model"))
        assert written == [5]  # the cache knows the model by its content

    def test_it_needs_no_tokenizer(self, tmp_path):
        tiny_model("llama").save_pretrained(tmp_path / "model")
        assert own_text(tmp_path / "model").shape == (5, 20)


class TestCache:
    def test_what_was_written_is_recalled(self, written):
        first, second = own_text(tiny_model("llama")), own_text(tiny_model("llama"))
        assert torch.equal(first, second) and written == [5]

    @pytest.mark.parametrize("change", [{"seed": 1}, {"samples": 6}, {"seq_len": 21}], ids=str)
    def test_another_request_is_another_text(self, written, change):
        own_text(tiny_model("llama"))
        own_text(tiny_model("llama"), **change)
        assert len(written) == 2

    def test_another_weight_is_another_model(self, written):
        model = tiny_model("llama")
        own_text(model)
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight[3, 4] += 1e-3
        own_text(model)
        assert len(written) == 2

    @pytest.mark.parametrize("content", [b"", b"{}", b"[[1, 2]]", b"[[0.5]]", b"\xff", b"[1, [2]]"], ids=str)
    def test_a_damaged_file_is_made_again(self, written, folder, content):
        before = own_text(tiny_model("llama"))
        (file,) = folder.iterdir()
        file.write_bytes(content)
        assert torch.equal(own_text(tiny_model("llama")), before) and len(written) == 2

    def test_a_folder_that_cannot_be_written(self, written, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        with pytest.warns(UserWarning, match=r"the model's own text could not be kept in .*: Not a directory"):
            assert own_text(tiny_model("llama")).shape == (5, 20)

    def test_it_is_in_the_users_own_folder_by_default(self, monkeypatch, tmp_path):
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache.cache_folder() == tmp_path / ".cache" / "woqfx" / "calibration"


class TestRepetition:
    def test_a_model_that_repeats_itself_is_refused(self):
        model = tiny_model("llama")
        with torch.no_grad():
            model.lm_head.weight *= 1e5  # one token is always certain
        with pytest.raises(
            CalibrationError, match=r"repeats itself: \d+ rows of 40 are new after 4 rounds; ask for fewer"
        ):
            own_text(model, samples=40, seq_len=60)

    def test_what_is_refused_is_written_anew(self, monkeypatch, written):
        refuse = iter([True, False, True, False, True] + [True] * 9)
        monkeypatch.setattr(sampling.Novelty, "take", lambda *_: next(refuse))
        assert own_text(tiny_model("llama")).shape == (5, 20)
        assert written == [5, 2]

    def test_a_row_is_judged_by_its_runs_of_sixteen(self):
        novelty = sampling.Novelty()
        row = torch.arange(40)
        assert novelty.take(row, 0.5)
        assert not novelty.take(row, 0.5)
        assert novelty.take(torch.cat([row[20:], torch.arange(100, 140)]), 0.5)
        assert not novelty.take(torch.cat([row, torch.arange(200, 210)]), 0.5)
        assert not novelty.take(torch.zeros(40, dtype=torch.int64), 0.5)
        assert novelty.take(torch.tensor([7, 8]), 0.5)  # shorter than a run


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_model_that_does_not_write_is_refused_before_anything_is_read(family, monkeypatch):
    model = tiny_model(family)
    monkeypatch.setattr("woqfx.source.ModuleSource.read", None)
    with pytest.raises(CalibrationError, match=r"is no model that writes from left to right; take python-docs"):
        check_calibration(CalibrationRequest("self", seq_len=16), open_source(model))


def test_any_module_is_refused_too():
    with pytest.raises(CalibrationError, match=r"Sequential \(Sequential\) is no model that writes"):
        check_calibration(CalibrationRequest("self"), open_source(torch.nn.Sequential(torch.nn.Linear(64, 64))))


def test_a_live_model_is_used_as_it_is():
    model = tiny_model("llama")
    assert original_of(open_source(model)) is model
