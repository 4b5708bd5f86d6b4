"""Tuning a checkpoint as a whole: what changes, what does not, and what is refused."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import tiny_model

import woqfx
from woqfx import CalibrationRequest, TuningOptions, WoqfxError
from woqfx.disk.checkpoint import Checkpoint
from woqfx.errors import CalibrationError, CalibrationWarning, OutputError, PlanError
from woqfx.evaluate import compare
from woqfx.learning.learning import Learning
from woqfx.original import load_original
from woqfx.tuning.tune import tuning_memory

QUICK = TuningOptions(passes=4, rate=0.003)


def tokens(count: int = 32, *, seed: int = 0, length: int = 24) -> torch.Tensor:
    return torch.randint(3, 100, (count, length), generator=torch.Generator().manual_seed(seed))


def data(count: int = 32) -> CalibrationRequest:
    return CalibrationRequest(tokens(count), samples=count, seq_len=24)


def folder_of(path: Path, family: str, **changes: object) -> Path:
    tiny_model(family, **changes).save_pretrained(path)
    return path


def quantized(path: Path, original: Path, **request: object) -> Path:
    woqfx.quantize(str(original), out=path, progress="none", **{"group_size": 16, **request})
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint, and its original."""
    folder = tmp_path_factory.mktemp("llama")
    original = folder_of(folder / "original", "llama")
    return quantized(folder / "quantized", original, dtype="int4_clip"), original


def test_predictions_come_nearer_on_other_text(llama, tmp_path):
    """Measured by `woqfx eval`'s own arithmetic, on tokens that were in none of the data."""
    checkpoint, original = llama
    found = woqfx.tune(checkpoint, original, tmp_path / "tuned", data=data(), options=QUICK)
    assert found.better
    assert (found.sequences, found.held_out) == (28, 4)
    other, reference = tokens(4, seed=9).flatten(), load_original(original)
    with torch.no_grad():
        before, after = (
            compare(woqfx.load(path), reference, other, 24).divergence for path in (checkpoint, tmp_path / "tuned")
        )
    assert after < 0.97 * before


def test_scales_and_vectors_change_and_nothing_else(llama, tmp_path):
    checkpoint, original = llama
    found = woqfx.tune(checkpoint, original, tmp_path / "tuned", data=data(), options=QUICK)
    before, after = Checkpoint(checkpoint), Checkpoint(tmp_path / "tuned")
    assert after.weights == before.weights
    assert after.kept == before.kept
    assert after.errors == before.errors
    for name in before.weights:
        tensors = before.read_weight(name).tensors()
        changed = {
            key for key, part in after.read_weight(name).tensors().items() if not torch.equal(part, tensors[key])
        }
        assert changed == {"scales"}
    for name, info in before.kept.items():
        assert torch.equal(after.read_kept(name), before.read_kept(name)) == (len(info.shape) > 1)
    told = after.request["tuned"]
    assert told["divergence"] == {"before": found.before, "after": found.after}
    assert {name: told[name] for name in ("passes", "rate", "products")} == {
        "passes": 4,
        "rate": 0.003,
        "products": "fp32",
    }
    assert {**after.request, "tuned": None} == {**before.request, "tuned": None}


def test_scales_that_are_quantized_themselves_stay(llama, tmp_path):
    checkpoint = quantized(tmp_path / "quantized", llama[1], dtype="nf4", double_quant=True)
    assert woqfx.tune(checkpoint, llama[1], tmp_path / "tuned", data=data(), options=QUICK).better
    before, after = Checkpoint(checkpoint), Checkpoint(tmp_path / "tuned")
    for name in before.weights:
        tensors = before.read_weight(name).tensors()
        assert all(torch.equal(part, tensors[key]) for key, part in after.read_weight(name).tensors().items())


@pytest.mark.parametrize(
    ("family", "request_of_it"),
    [
        ("gpt2", {"dtype": "nf4"}),
        ("opt", {"dtype": "int4_fullrange", "symmetric": False}),
        ("mixtral", {"dtype": "int4_clip", "double_quant": True}),
        ("t5", {"dtype": "fp4_e2m1"}),
        ("gemma2", {"dtype": "int4_clip", "scale_dtype": "bf16"}),
    ],
    ids=["conv1d-nf4", "biases-asymmetric", "experts-double-quant", "encoder-decoder", "tied-soft-cap"],
)
def test_families_and_schemes(family, request_of_it, tmp_path):
    original = folder_of(tmp_path / "original", family)
    checkpoint = quantized(tmp_path / "quantized", original, **request_of_it)
    found = woqfx.tune(checkpoint, original, tmp_path / "tuned", data=data(), options=QUICK)
    assert found.better
    woqfx.load(tmp_path / "tuned")


def test_other_programs_checkpoints(llama, tmp_path):
    """What GPTQ's format holds is tuned too, and written in woqfx's own."""
    checkpoint, original = llama
    woqfx.convert(checkpoint, tmp_path / "gptq", to="gptq", progress="none")
    found = woqfx.tune(tmp_path / "gptq", original, tmp_path / "tuned", data=data(), options=QUICK)
    assert found.better
    assert Checkpoint(tmp_path / "tuned").weights.keys() == Checkpoint(checkpoint).weights.keys()


def test_bfloat16_products(llama, tmp_path):
    options = TuningOptions(passes=2, rate=0.003, products="bf16")
    assert woqfx.tune(llama[0], llama[1], tmp_path / "tuned", data=data(), options=options).better


def test_vectors_are_written_in_the_type_they_had(tmp_path):
    original = folder_of(tmp_path / "original", "llama", dtype=torch.bfloat16)
    checkpoint = quantized(tmp_path / "quantized", original)
    assert woqfx.tune(checkpoint, original, tmp_path / "tuned", data=data(), options=QUICK).better
    before, after = Checkpoint(checkpoint), Checkpoint(tmp_path / "tuned")
    assert after.kept == before.kept
    name = "model.norm.weight"
    assert after.read_kept(name).dtype == torch.bfloat16
    assert not torch.equal(after.read_kept(name), before.read_kept(name))


def test_a_run_that_diverges_keeps_the_best_that_it_found(llama, tmp_path, monkeypatch):
    errors = iter([0.5, 0.4, math.nan, math.inf] + [0.45] * 99)
    monkeypatch.setattr(Learning, "error", lambda self, calls: next(errors))
    found = woqfx.tune(*llama, tmp_path / "tuned", data=data(), options=QUICK)
    assert (found.before, found.after) == (0.5, 0.4)
    woqfx.load(tmp_path / "tuned")


def test_what_has_nothing_to_learn_is_refused(tmp_path):
    config = transformers.OlmoConfig(  # its norms have no weights
        hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, vocab_size=128, pad_token_id=0
    )
    transformers.OlmoForCausalLM(config).save_pretrained(tmp_path / "original")
    checkpoint = quantized(tmp_path / "quantized", tmp_path / "original", double_quant=True)
    with pytest.raises(PlanError, match=r"has nothing to tune, .* quantize without double_quant"):
        woqfx.tune(checkpoint, tmp_path / "original", tmp_path / "tuned", data=data(2))


def test_what_is_no_better_is_not_written(llama, tmp_path):
    options = TuningOptions(passes=1, rate=10)
    found = woqfx.tune(llama[0], llama[1], tmp_path / "tuned", data=data(8), options=options)
    assert not found.better
    assert not (tmp_path / "tuned").exists()


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_the_number_of_threads_changes_nothing(llama, tmp_path):
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert woqfx.tune(llama[0], llama[1], tmp_path / f"tuned-{threads}", data=data(), options=QUICK).better
    torch.set_num_threads(before)
    assert digests(tmp_path / "tuned-1") == digests(tmp_path / "tuned-2")


def test_another_model_is_refused_before_anything_is_computed(llama, tmp_path):
    other = folder_of(tmp_path / "other", "llama", intermediate_size=128)
    with pytest.raises(PlanError, match=r"mlp\.\w+_proj\.weight is \[.*\] in .*quantized, and \[.*\] in .*other"):
        woqfx.tune(llama[0], other, tmp_path / "tuned", data=data())
    stranger = folder_of(tmp_path / "stranger", "gpt2")
    with pytest.raises(PlanError, match=r"is not in .*stranger: give the model that .*quantized was made from"):
        woqfx.tune(llama[0], stranger, tmp_path / "tuned", data=data())


def test_data_by_which_it_was_quantized_are_told_of_first(llama, tmp_path, monkeypatch):
    def work(*_, **__):
        raise CalibrationError("it began")

    seen = data(8)
    checkpoint = quantized(
        tmp_path / "seen", llama[1], algorithm="awq", calibration=seen.data, samples=8, seq_len=24, dtype="nf4"
    )
    monkeypatch.setattr("woqfx.tuning.tune.learn", work)
    with (
        pytest.warns(CalibrationWarning, match=r"quantized by these very sequences.*--calibration-seed 1"),
        pytest.raises(CalibrationError, match="it began"),
    ):
        woqfx.tune(checkpoint, llama[1], tmp_path / "tuned", data=seen)


def test_too_little_data(llama, tmp_path):
    with pytest.raises(CalibrationError, match="two sequences"):
        woqfx.tune(llama[0], llama[1], tmp_path / "tuned", data=data(1))


def test_a_folder_that_is_taken_is_refused_before_anything_is_computed(llama, tmp_path, monkeypatch):
    def work(*_, **__):
        raise AssertionError("it began")

    monkeypatch.setattr("woqfx.tuning.tune.prepare_calibration", work)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(OutputError, match="holds other files, mine"):
        woqfx.tune(llama[0], llama[1], tmp_path, data=data())
    with pytest.raises(OutputError, match="inside, the model that is read"):
        woqfx.tune(llama[0], llama[1], llama[0], data=data(), overwrite=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"passes": 0}, "passes is 0"), ({"rate": -1}, "rate is -1"), ({"products": "fp8"}, "products is 'fp8'")],
    ids=["no-pass", "backwards", "unknown-products"],
)
def test_options_that_cannot_be_meant(changes, said):
    with pytest.raises(WoqfxError, match=said):
        TuningOptions(**changes)


def test_memory_from_sizes(llama):
    """Both models in float32, and gradients of quantized weights."""
    every = sum(one.numel() for one in load_original(llama[1]).parameters())
    quantized = sum(math.prod(weight.shape) for weight in Checkpoint(llama[0]).weights.values())
    assert tuning_memory(llama[0]) == 4 * (2 * every + quantized)
