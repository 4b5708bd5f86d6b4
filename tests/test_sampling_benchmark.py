"""The benchmark of sampling: both ways give the same tokens, and its page says what was found."""

from __future__ import annotations

import pytest

sampling = pytest.importorskip("benchmarks.sampling")

RESULT = {
    "date": "2026-11-23",
    "processor": "a CPU",
    "features": "avx2",
    "threads": 2,
    "rounds": 3,
    "others": 0.01,
    "figures": {
        "engine": {
            "1": {"greedy": [300.0, 200.0, 100.0], "top-p 0.9": [270.0, 190.0, 95.0]},
            "8": {"greedy": [1000.0, 1000.0, 1000.0], "top-p 0.9": [800.0, 850.0, 990.0]},
        },
        "transformers": {
            "1": {"greedy": [150.0, 100.0, 50.0], "top-p 0.9": [54.0, 38.0, 19.0]},
            "8": {"greedy": [500.0, 500.0, 500.0], "top-p 0.9": [200.0, 200.0, 200.0]},
        },
    },
}


def test_the_page_has_medians_and_the_median_of_ratios():
    page = sampling.markdown(RESULT)
    assert "| 1 | top-p 0.9 | 190 | 95% | 38 | 5.00 times |" in page
    assert "| 8 | greedy | 1000 | 100% | 500 | 2.00 times |" in page
    assert "- One alone, each kind at 90% of greedy at least: met, 95%." in page
    assert "- 8 together, each kind at 90% of greedy at least: **missed**, 85%." in page


@pytest.mark.parametrize("kind", sampling.KINDS)
def test_both_ways_give_the_same_tokens(kind):
    pytest.importorskip("woqfx_llm_runtime._core", reason="woqfx was installed without its native engine")
    from tiny_models import tiny_model

    import woqfx

    tiny = tiny_model("llama", vocab_size=32000, max_position_embeddings=128)
    model = woqfx.quantize(tiny, dtype="int8", backend="llm_runtime", progress="none")
    (made,) = sampling.by_engine(model, 1, sampling.KINDS[kind])
    assert len(made) == sampling.NEW
    assert sampling.by_transformers(model, 1, sampling.KINDS[kind]) == [made]
