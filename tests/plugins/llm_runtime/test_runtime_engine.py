"""The native engine computes what transformers computes with the same weights, for every family and scheme."""

from __future__ import annotations

import itertools

import pytest
import torch
from engine_models import checkpoint_of, dense_twin, on_engine, random_tokens
from runtime_models import CASES, given

import woqfx
from woqfx.errors import CheckpointError, PlanError, SchemeError
from woqfx.evaluate import compare

pytest.importorskip("woqfx_llm_runtime._core", reason="woqfx was installed without its native engine")

DTYPES = ("int8", "int4_clip", "int4_fullrange", "nf4", "fp4_e2m1")


def logits(model, input_ids, **more):
    with torch.no_grad():
        return model(input_ids=input_ids, **more).logits


@pytest.mark.parametrize("case", CASES)
def test_logits_of_every_family(case, tmp_path):
    """Everything is quantized that can be, the head and the embedding too."""
    family, changes = CASES[case]
    folder = checkpoint_of(tmp_path / "out", family, changes, rules=["*=int8"])
    ours, theirs = on_engine(folder), dense_twin(folder, family, changes)
    for length in (1, 9, 40):
        inputs = given(theirs, random_tokens(2, length))
        torch.testing.assert_close(
            logits(ours, **inputs), logits(theirs, **inputs, use_cache=False), rtol=2e-4, atol=2e-4
        )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3", "mixtral"])
def test_weights_that_were_kept(family, tmp_path):
    """The second layer's weights stay as they were, whichever way they lie."""
    folder = checkpoint_of(tmp_path / "out", family, rules=["re:.*\\.1\\..*=keep"])
    tokens = random_tokens(1, 12)
    torch.testing.assert_close(
        logits(on_engine(folder), tokens), logits(dense_twin(folder, family), tokens), rtol=2e-4, atol=2e-4
    )


@pytest.fixture(scope="module")
def schemes(tmp_path_factory):
    """The checkpoint of each (dtype, compute dtype), made when it is first asked for."""
    made = {}

    def ask(dtype, compute, **more):
        key = (dtype, compute, *more.items())
        if key not in made:
            folder = tmp_path_factory.mktemp("schemes") / "out"
            made[key] = checkpoint_of(folder, "llama", dtype=dtype, compute_dtype=compute, **more)
        return made[key]

    return ask


@pytest.mark.parametrize(("dtype", "compute"), [*itertools.product(DTYPES, ("fp32", "bf16", "int8"))])
def test_every_dtype_in_every_compute_dtype(schemes, dtype, compute):
    """As backend torch_cpu computes it, up to the rounding of what comes in between."""
    folder = schemes(dtype, compute)
    tokens = random_tokens(2, 20)
    ours, theirs = (logits(model, tokens).double().log_softmax(-1) for model in (on_engine(folder), woqfx.load(folder)))
    divergence = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    assert divergence < {"fp32": 1e-8, "bf16": 1e-4, "int8": 1e-4}[compute]


@pytest.mark.parametrize(
    "more",
    [
        {"symmetric": False},
        {"double_quant": True},
        {"group_size": -1},
        {"group_size": 24},
        {"scale_dtype": "bf16"},
        {"algorithm": "gptq", "options": {"desc_act": True}},
    ],
    ids=["asymmetric", "double", "per channel", "ragged", "bf16 scales", "gptq with an order"],
)
def test_schemes_of_the_plan(tmp_path, more):
    data = {"calibration": list(random_tokens(8, 32)), "samples": 8, "seq_len": 32} if "algorithm" in more else {}
    folder = checkpoint_of(tmp_path / "out", "llama", dtype="int4_clip", **more, **data)
    tokens = random_tokens(2, 20)
    torch.testing.assert_close(
        logits(on_engine(folder), tokens), logits(dense_twin(folder, "llama"), tokens), rtol=2e-4, atol=2e-4
    )


@pytest.mark.parametrize("compute", ["fp32", "bf16", "int8"])
def test_a_rows_logits_depend_on_nothing_but_the_row(schemes, compute):
    """Not on the batch, on the padding, or on how the prompt was cut: bit for bit."""
    model = on_engine(schemes("nf4", compute))
    tokens = random_tokens(3, 23)
    alone = logits(model, tokens[:1])
    assert torch.equal(logits(model, tokens)[:1], alone)
    mask = torch.ones(3, 30, dtype=torch.int64)
    mask[0, :7] = 0
    padded = torch.cat([torch.zeros(1, 7, dtype=torch.int64), tokens[:1]], 1).repeat(3, 1)
    assert torch.equal(logits(model, padded, attention_mask=mask)[:1, 7:], alone)
    for cut in (1, 5, 16):
        cache, parts = None, []
        for part in tokens[:1].split(cut, dim=1):
            with torch.no_grad():
                step = model(input_ids=part, past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            parts.append(step.logits)
        assert torch.equal(torch.cat(parts, 1), alone)


@pytest.mark.parametrize("kv", ["fp16", "int8"])
def test_smaller_keys_and_values_cost_little(schemes, kv):
    tokens = random_tokens(1, 60)[0]
    exact, smaller = (on_engine(schemes("int8", "fp32"), kv=one) for one in ("fp32", kv))
    assert smaller.engine.kv_bytes_per_token < exact.engine.kv_bytes_per_token
    assert compare(smaller, exact, tokens, 60).divergence < {"fp16": 1e-6, "int8": 1e-3}[kv]


def test_the_head_in_eight_bits_is_said_and_costs_little(tmp_path):
    folder = checkpoint_of(tmp_path / "out", "llama", dtype="int8")
    exact, smaller = on_engine(folder), woqfx.load(folder, backend="llm_runtime")
    assert smaller.engine.weight_bytes < exact.engine.weight_bytes
    assert compare(smaller, exact, random_tokens(1, 60)[0], 60).divergence < 1e-3


def test_quantizing_straight_to_the_runtime(tmp_path):
    from tiny_models import tiny_model

    module = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    options = {"backend": "llm_runtime", "progress": "none"}
    live = woqfx.quantize(module, dtype="nf4", **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    tiny_model("llama").save_pretrained(tmp_path / "model")
    in_memory = woqfx.quantize(tmp_path / "model", dtype="nf4", **options)
    written = woqfx.quantize(tmp_path / "model", dtype="nf4", out=tmp_path / "out", **options)
    tokens = random_tokens(1, 9)
    assert torch.equal(logits(in_memory, tokens), logits(written, tokens))
    assert torch.equal(logits(live, tokens), logits(written, tokens))
    assert written.generation_config.eos_token_id == 2
    with pytest.raises(woqfx.WoqfxError, match="copy the checkpoint"):
        woqfx.save(live, tmp_path / "again")


def test_verify_accepts_what_is_right_and_refuses_what_is_not(schemes, monkeypatch):
    folder = schemes("int4_clip", "int8")
    assert on_engine(folder, verify=True, head="int8")
    from woqfx_llm_runtime import families

    right = families._KNOWN["LlamaForCausalLM"]

    def wrong(fields, model):
        import dataclasses

        return dataclasses.replace(right(fields, model), logit_scale=0.3)

    monkeypatch.setitem(families._KNOWN, "LlamaForCausalLM", wrong)
    with pytest.raises(woqfx.WoqfxError, match=r"predictions differ .* use torch_cpu, and report it"):
        on_engine(folder, verify=True)


def test_a_model_of_no_known_family_is_refused_by_the_plan_and_by_load(tmp_path):
    from tiny_models import tiny_model

    folder = checkpoint_of(tmp_path / "out", "bloom")
    with pytest.raises(PlanError, match=r"BloomForCausalLM is not one of the models .* backend torch_cpu runs it"):
        woqfx.load(folder, backend="llm_runtime")
    plan = woqfx.plan(tiny_model("bloom"), backend="llm_runtime")
    assert any("BloomForCausalLM" in problem for problem in plan.problems)
    with pytest.raises(PlanError, match="hidden_act 'mish'"):
        woqfx.plan(tiny_model("llama", hidden_act="mish"), backend="llm_runtime").check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv": "fp8"}, "option kv of backend llm_runtime is 'fp8': auto or fp16 or bf16 or fp32 or int8"),
        ({"head": "nf4"}, "option head"),
        ({"max_memory": -1}, "option max_memory"),
        (
            {"speed": 11},
            "backend llm_runtime has no option 'speed'; its options: head, kv, max_memory, pack_cache, verify",
        ),
        ({"verify": 1}, "option verify of backend llm_runtime takes bool"),
    ],
    ids=["kv", "head", "memory", "unknown", "type"],
)
def test_options_that_cannot_be_meant(schemes, options, message):
    with pytest.raises(SchemeError, match=message):
        on_engine(schemes("int8", "fp32"), **options)


def test_a_stranger_describes_a_model_of_ones_own(tmp_path):
    """Without C++: a llama under another name, whose MLP is plain."""
    import dataclasses

    from tiny_models import tiny_model

    from woqfx_llm_runtime.families import family_of

    model = tiny_model("llama")
    known = family_of(model)
    model.__class__ = type("Stranger", (type(model),), {})

    class Plugin:
        @woqfx.hookimpl
        def woqfx_architecture(self, model):
            if type(model).__name__ != "Stranger":
                return None
            return woqfx.Architecture(descriptions={"llm_runtime": lambda model: describe(model)})

    def describe(model):
        described = known(model)
        layers = tuple(
            dataclasses.replace(layer, mlp=dataclasses.replace(layer.mlp, activation="relu"))
            for layer in described.layers
        )
        return dataclasses.replace(described, layers=layers)

    woqfx.register(Plugin(), "stranger")
    try:
        options = {"backend_options": {"kv": "fp32", "head": "keep"}, "progress": "none", "backend": "llm_runtime"}
        ours = woqfx.quantize(model, dtype="int8", **options)
    finally:
        woqfx.unregister("stranger")
    twin = woqfx.quantize(tiny_model("llama", hidden_act="relu"), dtype="int8", progress="none")
    tokens = random_tokens(1, 9)
    torch.testing.assert_close(logits(ours, tokens), logits(twin, tokens), rtol=2e-4, atol=2e-4)


def test_a_tensor_that_no_description_names_is_refused(schemes, monkeypatch):
    import dataclasses

    from woqfx_llm_runtime import families

    right = families._KNOWN["LlamaForCausalLM"]

    def forgetful(fields, model):
        described = right(fields, model)
        return dataclasses.replace(described, layers=described.layers[:1])

    monkeypatch.setitem(families._KNOWN, "LlamaForCausalLM", forgetful)
    with pytest.raises(CheckpointError, match="that the description of its architecture does not name"):
        on_engine(schemes("int8", "fp32"))
