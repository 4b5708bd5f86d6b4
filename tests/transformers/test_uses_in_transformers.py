"""What people do in transformers and PEFT with a model, done with a quantized one."""

from __future__ import annotations

import pytest
import torch
from folders_of_models import logits
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from tiny_models import save_tokenizer, tiny_inputs, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import woqfx
from woqfx.layers import packed_weights
from woqfx.transformers import WeightOnlyQuantConfig

PROMPT = torch.tensor([[1, 9, 33, 7], [0, 1, 4, 5]])
MASK = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama", vocab_size=259, max_position_embeddings=512).save_pretrained(path)
    save_tokenizer(path)
    return path


@pytest.fixture
def model(folder):
    config = WeightOnlyQuantConfig(weight_dtype="nf4", scale_dtype="fp16")
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)


@pytest.fixture(scope="module")
def dense(folder):
    """The same numbers, dense."""
    return woqfx.dequantize(woqfx.quantize(folder, dtype="nf4"))


@pytest.mark.parametrize(
    "mode",
    [
        {"do_sample": False},
        {"do_sample": True, "top_k": 5, "temperature": 0.7},
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 2, "do_sample": True},
        {"do_sample": False, "use_cache": False},
        {"do_sample": False, "cache_implementation": "static"},
        {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"do_sample": False, "prompt_lookup_num_tokens": 2},
    ],
    ids=lambda mode: " ".join(f"{name}={value}" for name, value in mode.items()),
)
def test_generate_as_the_dense_model_with_the_same_numbers(model, dense, mode):
    one = slice(0, 1) if "prompt_lookup_num_tokens" in mode else slice(0, 2)
    found = []
    for each in (model, dense):
        torch.manual_seed(3)
        found.append(each.generate(PROMPT[one], attention_mask=MASK[one], max_new_tokens=6, **mode))
    assert torch.equal(*found)


def test_streaming(model, folder, capsys):
    from transformers import TextStreamer

    streamer = TextStreamer(AutoTokenizer.from_pretrained(folder), skip_prompt=True)
    model.generate(PROMPT[:1], streamer=streamer, max_new_tokens=4, do_sample=False)
    assert capsys.readouterr().out


@pytest.mark.parametrize("kind", ["object", "folder", "checkpoint"])
def test_pipeline(model, folder, kind, tmp_path):
    if kind == "object":
        made = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    elif kind == "folder":
        config = WeightOnlyQuantConfig(weight_dtype="nf4", scale_dtype="fp16")
        made = pipeline("text-generation", model=str(folder), model_kwargs={"quantization_config": config})
    else:
        model.save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
        made = pipeline("text-generation", model=str(tmp_path))
    assert packed_weights(made.model).keys() == packed_weights(model).keys()
    (answer,) = made("abc", max_new_tokens=3, do_sample=False)
    assert answer["generated_text"].startswith("abc")
    assert torch.equal(logits(made.model), logits(model))


def lora(model, **more):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **more)
    return get_peft_model(model, config)


class TestAdapters:
    def test_gradients_are_those_of_the_dense_model(self, model, dense):
        import copy

        inputs = tiny_inputs(model)
        grads = []
        for base in (model, copy.deepcopy(dense)):
            adapted = lora(base)
            adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
            grads.append({name: p.grad for name, p in adapted.named_parameters() if p.requires_grad})
        assert grads[0].keys() == grads[1].keys()
        assert all("lora_" in name for name in grads[0])
        for name, grad in grads[0].items():
            assert grad.abs().sum() > 0
            torch.testing.assert_close(grad, grads[1][name], atol=1e-5, rtol=1e-3)

    def test_training_lowers_the_loss_and_leaves_the_base_as_it_is(self, model):
        before = {name: weight.qtensor().codes.clone() for name, weight in packed_weights(model).items()}
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        adapted = lora(model).train()
        optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=0.01)
        inputs = tiny_inputs(model)
        losses = []
        for _ in range(8):
            loss = adapted(**inputs, labels=inputs["input_ids"]).loss
            losses.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[-1] < 0.9 * losses[0]
        after = packed_weights(adapted.get_base_model())
        assert len(after) == len(before)
        for weight, codes in zip(after.values(), before.values(), strict=True):
            assert torch.equal(weight.qtensor().codes, codes)

    def test_gradient_checkpointing(self, model):
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
        adapted = lora(model).train()
        inputs = tiny_inputs(model)
        adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
        assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)

    def test_they_are_saved_alone_and_loaded_again(self, model, folder, tmp_path):
        adapted = lora(model).eval()
        expected = logits(adapted)
        adapted.save_pretrained(tmp_path / "adapter")
        assert {path.name for path in (tmp_path / "adapter").iterdir()} >= {"adapter_model.safetensors"}
        assert not (tmp_path / "adapter" / "woqfx.json").exists()
        config = WeightOnlyQuantConfig(weight_dtype="nf4", scale_dtype="fp16")
        base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
        assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path / "adapter").eval()), expected)

    def test_the_way_of_transformers_itself(self, model, tmp_path):
        model.add_adapter(LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
        model.save_pretrained(tmp_path / "adapter")
        assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
        assert not (tmp_path / "adapter" / "woqfx.json").exists()

    def test_merging_needs_a_dense_base(self, model):
        adapted = lora(model).eval()
        expected = logits(adapted)
        with pytest.raises(TypeError, match=r"woqfx\.dequantize"):
            adapted.merge_and_unload()
        woqfx.dequantize(adapted)
        torch.testing.assert_close(logits(adapted.merge_and_unload()), expected, atol=1e-4, rtol=1e-4)
