"""Schemes and rules."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woqfx.errors import SchemeError
from woqfx.scheme import SCALE_DTYPES, Rule, Scheme, read_rules

CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["int8", "nf4", "fp4_e2m1", "a.b-c"]),
        "group_size": st.integers(-1, 1024).filter(bool),
        "symmetric": st.booleans(),
        "scale_dtype": st.sampled_from(list(SCALE_DTYPES)),
        "double_quant": st.booleans(),
        "compute_dtype": st.sampled_from(["fp32", "bf16", "int8"]),
        "outlier_threshold": st.floats(0, 3.4e38),
    },
).filter(bool)
PATTERNS = st.sampled_from(["model.layers.*.mlp.down_proj", "*", r"re:model\.layers\.(0|1)\..*", "a=b*", "re:x=[0-9]+"])
SCHEMES = CHANGES.map(lambda change: Scheme(**{"dtype": "int4_clip", **change}))


class TestScheme:
    @given(SCHEMES)
    def test_json_round_trip(self, scheme):
        assert Scheme.from_json(json.loads(json.dumps(scheme.to_json()))) == scheme

    @given(SCHEMES, st.integers(1, 5000))
    def test_groups_cover_a_row(self, scheme, k):
        width, count = scheme.group_width(k), scheme.group_count(k)
        assert (count - 1) * width < k <= count * width
        assert width == (k if scheme.group_size in (-1, *range(k, 1025)) else scheme.group_size)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("group_size", 0),
            ("group_size", -2),
            ("group_size", True),
            ("group_size", 32.0),
            ("group_size", "32"),
            ("scale_dtype", "fp8"),
            ("scale_dtype", None),
            ("symmetric", 1),
            ("double_quant", "no"),
            ("dtype", 4),
            ("compute_dtype", None),
            ("outlier_threshold", -1.0),
            ("outlier_threshold", float("nan")),
            ("outlier_threshold", float("inf")),
            ("outlier_threshold", True),
            ("outlier_threshold", "6"),
            ("outlier_threshold", 10**39),
        ],
    )
    def test_a_value_that_cannot_be_meant_is_named(self, field, value):
        with pytest.raises(SchemeError, match=f"{field}.*{value}"):
            Scheme(**{"dtype": "nf4", field: value})

    def test_a_threshold_is_written_alike_however_it_was_given(self):
        assert json.dumps(Scheme("int8", outlier_threshold=6).to_json()).endswith('"outlier_threshold": 6.0}')

    @pytest.mark.parametrize("data", [{}, {"dtype": "nf4", "bits": 4}, {"group_size": 32}], ids=str)
    def test_json_of_something_else(self, data):
        with pytest.raises(SchemeError, match="not a scheme"):
            Scheme.from_json(data)


class TestRule:
    @given(PATTERNS, CHANGES | st.none())
    def test_print_and_parse(self, pattern, change):
        rule = Rule(pattern, change)
        assert Rule.parse(str(rule)) == rule

    @pytest.mark.parametrize(
        ("text", "rule"),
        [
            ("lm_head=keep", Rule("lm_head", None)),
            ("*=nf4", Rule("*", {"dtype": "nf4"})),
            ("*.mlp.*=int8,group_size:-1", Rule("*.mlp.*", {"dtype": "int8", "group_size": -1})),
            ("*=int8,outlier_threshold:6.5", Rule("*", {"dtype": "int8", "outlier_threshold": 6.5})),
            ("re:a=b=symmetric:false", Rule("re:a=b", {"symmetric": False})),
        ],
    )
    def test_parse(self, text, rule):
        assert Rule.parse(text) == rule

    @pytest.mark.parametrize("text", ["", "lm_head", "=keep", "lm_head=", "*=bits:4", "re:(=keep"])
    def test_nonsense_is_refused(self, text):
        with pytest.raises(SchemeError, match="rule"):
            Rule.parse(text)

    @pytest.mark.parametrize(
        ("pattern", "name", "matches"),
        [
            ("model.layers.*.mlp.down_proj", "model.layers.11.mlp.down_proj", True),
            ("model.layers.*.mlp.down_proj", "model.layers.11.mlp.up_proj", False),
            ("*DOWN*", "down", False),
            ("down", "mlp.down", False),
            (r"re:.*layers\.[01]\..*", "model.layers.1.mlp", True),
            (r"re:layers\.1", "model.layers.1.mlp", False),
        ],
    )
    def test_matches(self, pattern, name, matches):
        assert Rule(pattern, None).matches(name) is matches

    def test_apply(self):
        scheme = Scheme("int4_clip", group_size=64)
        assert Rule("*", {"dtype": "int8"}).apply(scheme) == Scheme("int8", group_size=64)
        assert Rule("*", None).apply(scheme) is None
        with pytest.raises(SchemeError):
            Rule("*", {"group_size": 0}).apply(scheme)

    def test_read_rules(self):
        expected = (Rule("a", {"dtype": "nf4"}), Rule("b", None), Rule("c", {"dtype": "int8"}), Rule("d", None))
        given_ = [Rule("a", {"dtype": "nf4"}), "b=keep", ("c", "int8"), ("d", "keep")]
        assert read_rules(given_) == expected
        assert read_rules([("d", None), ("c", {"dtype": "int8"})]) == (expected[3], expected[2])
