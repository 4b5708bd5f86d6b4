"""Sets from the Hugging Face Hub, without a network: `load_dataset` is stood in for, tables are made here."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

import woqfx
from woqfx import CalibrationError, CalibrationRequest, HubSet, Subject
from woqfx.calibration import check_calibration, prepare_calibration
from woqfx.calibration.prepare import find_set

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
ROWS = [{"text": "some words", "n": n, "messages": CHAT} for n in range(50)]


@pytest.fixture
def hub(monkeypatch):
    """A hub whose answer is set by the test; it remembers what was asked."""

    class Hub(SimpleNamespace):
        def load_dataset(self, path, **arguments):
            self.asked = (path, arguments)
            return self.answer()

    found = Hub(answer=lambda: iter([{"text": "some text"}] * 1000))
    monkeypatch.setitem(sys.modules, "datasets", found)
    return found


def documents(source, of, **request):
    return list(of.documents(Subject(source), CalibrationRequest(**request)))


NAMED = {
    "pile-10k": ("NeelNanda/pile-10k", {}),
    "wikitext2": ("Salesforce/wikitext", {"name": "wikitext-2-raw-v1"}),
    "c4": ("allenai/c4", {"data_files": {"train": "en/c4-train.00000-of-01024.json.gz"}}),
    "c4-new": ("allenai/c4", {"data_files": {"train": "en/c4-train.00000-of-01024.json.gz"}}),
    "ptb": ("ptb-text-only/ptb_text_only", {"name": "penn_treebank", "revision": "refs/convert/parquet"}),
    "ptb-new": ("ptb-text-only/ptb_text_only", {"name": "penn_treebank", "revision": "refs/convert/parquet"}),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_sets_ask_for_what_the_papers_used(hub, source, name):
    column = "sentence" if name.startswith("ptb") else "text"
    hub.answer = lambda: iter([{column: "some words of a text"}] * 1000)
    assert prepare_calibration(CalibrationRequest(name, samples=4, seq_len=16), source).tokens == 64
    path, arguments = NAMED[name]
    assert hub.asked == (path, {"split": "train", "streaming": True, **arguments})


@pytest.mark.parametrize(
    ("name", "rows", "text"),
    [
        ("wikitext2", ["", " = Robert = \n", "", " He is an actor . \n"], " = Robert = \n He is an actor . \n"),
        ("ptb", ["no it was n't", "black monday"], "no it was n't\n\nblack monday"),
        ("ptb-new", ["no it was n't", "black monday"], "no it was n't black monday"),
    ],
)
def test_lines_and_sentences_are_one_text(hub, source, name, rows, text):
    column = "sentence" if name.startswith("ptb") else "text"
    hub.answer = lambda: iter([{column: row} for row in rows])
    assert documents(source, woqfx.registry().calibration_set(name)) == [text]


def test_any_set_by_its_name_on_the_hub(hub, source):
    hub.answer = lambda: iter([{"id": 1, "messages": CHAT}])
    assert documents(source, find_set(CalibrationRequest("organisation/some.set-2")), split="test[:5%]") == [CHAT]
    assert hub.asked == ("organisation/some.set-2", {"split": "test[:5%]", "streaming": True})


def test_a_column_that_is_asked_for(hub, source):
    hub.answer = lambda: iter([{"text": "no", "body": "yes"}])
    assert documents(source, HubSet("a", "b/c", column="text"), column="body") == ["yes"]


def test_a_column_that_is_not_there(hub, source):
    hub.answer = lambda: iter([{"title": "a"}])
    with pytest.raises(CalibrationError, match=r"item 1 has no column 'body', but 'title'; name the column"):
        documents(source, HubSet("a", "b/c"), column="body")


def test_no_more_is_fetched_than_is_looked_at(hub, source, monkeypatch):
    monkeypatch.setattr("woqfx.calibration.rows.MAX_CHARACTERS", 1000)

    def endless():
        for number in range(10_000):
            assert number <= 100
            yield {"text": "ten chars!"}

    hub.answer = endless
    assert prepare_calibration(CalibrationRequest("pile-10k", samples=4, seq_len=16), source).tokens == 64


@pytest.mark.parametrize("when", ["at once", "on the way"])
@pytest.mark.parametrize(
    "error", [ConnectionError("no route\nto host"), ValueError('unknown split "x"'), KeyError("a")]
)
def test_a_hub_that_cannot_be_reached(hub, source, when, error):
    def refuse():
        if when == "on the way":
            yield {"text": "some text"}
        raise error

    hub.answer = refuse
    with pytest.raises(CalibrationError) as caught:
        prepare_calibration(CalibrationRequest("wikitext2", samples=4, seq_len=16), source)
    message = str(caught.value)
    assert "wikitext2: the Hugging Face Hub did not give Salesforce/wikitext (split train)" in message
    assert type(error).__name__ in message and "\n" not in message
    assert "What needs no network: python-docs (English), self" in message


def test_without_the_library(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for ask in (check_calibration, prepare_calibration):
        with pytest.raises(CalibrationError, match=r"not installed: pip install 'woqfx\[datasets\]'. What needs no"):
            ask(CalibrationRequest("c4", seq_len=16), source)


class TestTheRealLibrary:
    """`datasets` itself, on data that are made here."""

    @pytest.fixture
    def datasets(self):
        return pytest.importorskip("datasets")

    def test_a_dataset(self, datasets, source):
        found = datasets.Dataset.from_list(ROWS)
        assert documents(source, find_set(CalibrationRequest(found))) == ["some words"] * 50
        assert documents(source, find_set(CalibrationRequest(found)), column="messages") == [CHAT] * 50
        assert prepare_calibration(CalibrationRequest(found, samples=8, seq_len=16), source).sequences == 8

    def test_one_of_tensors(self, datasets, source):
        rows = [{"input_ids": [1, 5, 6, 0], "attention_mask": [1, 1, 1, 0]}] * 3
        found = datasets.Dataset.from_list(rows).with_format("torch")
        batches = prepare_calibration(CalibrationRequest(found, samples=3, seq_len=16), source).batches
        assert [batch.tolist() for batch in batches] == [[[1, 5, 6]] * 3]

    def test_an_iterable_one(self, datasets, source):
        found = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
        assert prepare_calibration(CalibrationRequest(found, samples=8, seq_len=16), source).sequences == 8

    def test_one_of_splits(self, datasets, source):
        found = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
        with pytest.raises(CalibrationError, match=r"it has the splits train; name one"):
            documents(source, find_set(CalibrationRequest(found)))
        request = CalibrationRequest(found, split="train", samples=8, seq_len=16)
        assert prepare_calibration(request, source).sequences == 8

    def test_a_column_that_is_not_there(self, datasets, source):
        found = datasets.Dataset.from_list([{"title": "a"}])
        with pytest.raises(CalibrationError, match=r"item 1 has no column of text, .* but 'title'"):
            prepare_calibration(CalibrationRequest(found, seq_len=16), source)

    def test_load_dataset_takes_the_arguments(self, datasets, source, tmp_path):
        (tmp_path / "part.jsonl").write_text('{"text": "from disk"}\n' * 3)
        here = HubSet("here", "json", arguments={"data_files": str(tmp_path / "part.jsonl")})
        assert documents(source, here) == ["from disk"] * 3
