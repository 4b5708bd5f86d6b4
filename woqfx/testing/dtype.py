"""The laws of storage grids."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from woqfx.contracts import fault_of
from woqfx.dtype import DType, GroupParams
from woqfx.nearest import quantize_nearest
from woqfx.scheme import Scheme
from woqfx.testing.cases import normal

# Subclasses share the tests, and hypothesis wants to be told that this is meant.
_laws = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.differing_executors])

#: Steps are float32: a value this near to a threshold, relative to its group, may fall to either side.
_ROUNDING = 1e-6


def _spread(seed: int, count: int, width: int, size: int) -> Tensor:
    return torch.ldexp(normal(count, width, seed=seed), torch.tensor(size))


def _table(rows: list[list[float]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows])


#: Groups [n, g]: normal numbers of any size, and adversarial ones: zeros, ties, one giant among dwarfs.
_FLOATS = st.one_of(st.just(0.0), st.integers(-30, 30).map(lambda n: n / 2), st.floats(-(2.0**40), 2.0**40, width=32))
_GROUPS = st.one_of(
    st.builds(_spread, st.integers(0, 2**16), st.integers(1, 4), st.integers(1, 70), st.integers(-60, 60)),
    st.lists(
        st.lists(_FLOATS.filter(lambda x: x == 0 or abs(x) > 2.0**-60), min_size=1, max_size=20), min_size=1, max_size=4
    ).map(_table),
)


class DTypeSuite(ABC):
    """Subclass it, and set `dtype` to the grid under test."""

    @property
    @abstractmethod
    def dtype(self) -> DType:
        """The grid under test."""

    @property
    def idempotent(self) -> bool:
        """Whether quantizing twice changes nothing: not if `fit` clips, or a table reaches farther to one side."""
        return True

    @property
    def _forms(self) -> tuple[bool, ...]:
        return (True, False) if self.dtype.has_asymmetric else (True,)

    @property
    def _codes(self) -> Tensor:
        """All codes, uint8 [n]."""
        levels = self.dtype.levels
        return torch.arange(2**self.dtype.bits if levels is None else len(levels)).to(torch.uint8)

    def _values(self, params: GroupParams) -> Tensor:
        """What each code of each group stands for, [n, codes]."""
        return self.dtype.decode(self._codes.expand(len(params.scale), -1), params)

    def test_the_registry_takes_it(self) -> None:
        """It keeps to the form that the registry checks of every plugin."""
        assert fault_of("dtype", self.dtype) == ""

    @given(data=st.data(), groups=_GROUPS)
    @_laws
    def test_encoding_what_was_decoded_gives_the_same_value(self, data: st.DataObject, groups: Tensor) -> None:
        """Every value of the grid is stored exactly."""
        params = self.dtype.fit(groups, symmetric=data.draw(st.sampled_from(self._forms)))
        values = self._values(params)
        assert torch.equal(self.dtype.decode(self.dtype.encode(values, params), params), values)

    @given(data=st.data(), groups=_GROUPS)
    @_laws
    def test_no_other_code_is_nearer(self, data: st.DataObject, groups: Tensor) -> None:
        """`encode` finds the nearest of all codes, for any parameters: inside the range, within half a step."""
        shrink = data.draw(st.sampled_from([1.0, 0.8]))
        params = self.dtype.fit(groups, symmetric=data.draw(st.sampled_from(self._forms)), shrink=shrink)
        values = self._values(params)
        taken = (self.dtype.decode(self.dtype.encode(groups, params), params) - groups).abs()
        distances = (values.unsqueeze(1) - groups.unsqueeze(2)).abs()
        largest = torch.maximum(groups.abs().amax(1, keepdim=True), values.abs().amax(1, keepdim=True))
        assert torch.all(taken <= distances.amin(2) + _ROUNDING * largest)
        ordered = values.sort(1).values
        above = torch.searchsorted(ordered, groups.contiguous()).clamp(1, ordered.shape[1] - 1)
        gap = ordered.gather(1, above) - ordered.gather(1, above - 1)
        inside = (groups >= ordered[:, :1]) & (groups <= ordered[:, -1:])
        assert torch.all((taken <= gap / 2 + _ROUNDING * largest)[inside])

    @given(data=st.data(), groups=_GROUPS)
    @_laws
    def test_storing_is_better_than_dropping(self, data: st.DataObject, groups: Tensor) -> None:
        """A group's squared error is at most that of zeros in its place, if the grid holds 0."""
        params = self.dtype.fit(groups, symmetric=data.draw(st.sampled_from(self._forms)))
        error = self.dtype.decode(self.dtype.encode(groups, params), params).double() - groups.double()
        within = error.square().sum(1) <= groups.double().square().sum(1) * (1 + _ROUNDING)
        assert torch.all(within | (self._values(params) != 0).all(1))

    @given(data=st.data(), groups=_GROUPS, power=st.integers(-40, 40))
    @_laws
    def test_the_unit_does_not_matter(self, data: st.DataObject, groups: Tensor, power: int) -> None:
        """Weights times a power of two have the same codes, and scales times that power."""
        symmetric = data.draw(st.sampled_from(self._forms))
        alive = groups[(groups != 0).any(1)]
        if len(alive):
            plain = self.dtype.fit(alive, symmetric=symmetric)
            moved = self.dtype.fit(alive * 2.0**power, symmetric=symmetric)
            assert torch.equal(moved.scale, plain.scale * 2.0**power)
            assert torch.equal(self.dtype.encode(alive * 2.0**power, moved), self.dtype.encode(alive, plain))

    @given(data=st.data(), groups=_GROUPS)
    @_laws
    def test_groups_are_independent(self, data: st.DataObject, groups: Tensor) -> None:
        """A group has the same parameters and codes alone as among others, and the input is left as it was."""
        symmetric = data.draw(st.sampled_from(self._forms))
        kept = groups.clone()
        params = self.dtype.fit(groups, symmetric=symmetric)
        codes = self.dtype.encode(groups, params)
        for i in range(len(groups)):
            group = kept[i].clone()
            alone = self.dtype.fit(group, symmetric=symmetric)
            assert torch.equal(alone.scale, params.scale[i])
            assert torch.equal(self.dtype.encode(group, alone), codes[i])
        assert torch.equal(groups, kept)

    @given(groups=_GROUPS)
    @_laws
    def test_zero_is_stored_exactly_when_asymmetric(self, groups: Tensor) -> None:
        """A zero point is a code, and the weight 0 lands on it."""
        if not self.dtype.has_asymmetric:
            pytest.skip("it has no asymmetric form")
        params = self.dtype.fit(groups, symmetric=False)
        assert params.zero is not None
        assert torch.equal(params.zero, params.zero.round())
        assert torch.all((params.zero >= 0) & (params.zero < len(self._codes)))
        nought = torch.zeros(len(groups), 1)
        assert not self.dtype.decode(self.dtype.encode(nought, params), params).any()

    @given(data=st.data(), groups=_GROUPS, shrink=st.sampled_from([0.995, 0.8, 0.5]))
    @_laws
    def test_shrink_narrows_the_scale_by_its_ratio(self, data: st.DataObject, groups: Tensor, shrink: float) -> None:
        """`shrink` clips the range to that share of itself."""
        symmetric = data.draw(st.sampled_from(self._forms))
        alive = groups[(groups != 0).any(1)]
        if len(alive):
            full = self.dtype.fit(alive, symmetric=symmetric).scale
            torch.testing.assert_close(
                self.dtype.fit(alive, symmetric=symmetric, shrink=shrink).scale, full * shrink, rtol=1e-5, atol=0
            )

    @given(data=st.data(), groups=_GROUPS)
    @_laws
    def test_integers_are_whole_and_stand_for_the_same_weights(self, data: st.DataObject, groups: Tensor) -> None:
        """`integers` gives whole numbers; a codebook's lie within half a step of int8 of its levels."""
        params = self.dtype.fit(groups, symmetric=data.draw(st.sampled_from(self._forms)))
        codes = self._codes.expand(len(groups), -1)
        whole, scale = self.dtype.integers(codes, params)
        assert torch.equal(whole, whole.round()) and int(whole.abs().max()) <= 255
        values = self.dtype.decode(codes, params)
        half = 0.0 if self.dtype.levels is None else 0.5
        allowed = (half * scale.abs()).unsqueeze(1) + _ROUNDING * values.abs().amax(1, keepdim=True)
        assert torch.all((whole * scale.unsqueeze(1) - values).abs() <= allowed)

    def test_a_group_of_zeros(self) -> None:
        """Zeros stay zeros, if the grid holds 0, and in any case finite."""
        for symmetric in self._forms:
            params = self.dtype.fit(torch.zeros(3, 8), symmetric=symmetric)
            assert torch.all(torch.isfinite(params.scale) & (params.scale != 0))
            decoded = self.dtype.decode(self.dtype.encode(torch.zeros(3, 8), params), params)
            assert torch.isfinite(decoded).all()
            if (self._values(params) == 0).any():
                assert not decoded.any()

    @pytest.mark.parametrize("size", [1e-45, 1e-39, 1e-30, 1e30, 1e38])
    def test_extreme_sizes_stay_finite(self, size: float) -> None:
        """Neither the smallest nor the largest floats give NaN or infinity."""
        groups = normal(4, 16).clamp(-1, 1) * size
        for symmetric in self._forms:
            params = self.dtype.fit(groups, symmetric=symmetric)
            assert torch.isfinite(self.dtype.decode(self.dtype.encode(groups, params), params)).all()

    @pytest.mark.parametrize("scale_dtype", ["fp16", "bf16"])
    @pytest.mark.parametrize("group_size", [-1, 8, 32])
    def test_quantizing_twice_changes_nothing(self, group_size: int, scale_dtype: str) -> None:
        """A weight that was stored is stored again as it is.

        An asymmetric group keeps its step only if its codes reach both ends: rounding at a tie may leave the last
        code unused, and the range then shrinks.
        """
        if not self.idempotent:
            pytest.skip("it is not idempotent")
        for symmetric in self._forms:
            scheme = Scheme(self.dtype.name, group_size, symmetric, scale_dtype)
            once = quantize_nearest(normal(32, 64), self.dtype, scheme, name="weight")
            twice = quantize_nearest(once.dequantize(), self.dtype, scheme, name="weight")
            width = scheme.group_width(64)
            codes = once.unpacked().view(32, -1, width)
            spans = (codes.amin(2) == 0) & (codes.amax(2) == len(self._codes) - 1)
            same = (once.dequantize() == twice.dequantize()).view(32, -1, width).all(2)
            assert torch.all(same if symmetric else same | ~spans)

    @pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
    @pytest.mark.parametrize("group_size", [-1, 1, 7, 32, 1000])
    def test_a_whole_weight(self, group_size: int, kind: torch.dtype) -> None:
        """Any group size, row length, float type and scale type gives a weight near to the original."""
        weight = normal(5, 50, dtype=kind)
        for symmetric in self._forms:
            for scale_dtype, double_quant in (("fp32", False), ("fp16", False), ("bf16", False), ("fp16", True)):
                scheme = Scheme(self.dtype.name, group_size, symmetric, scale_dtype, double_quant)
                q = quantize_nearest(weight, self.dtype, scheme, name="weight")
                assert q.dequantize().shape == weight.shape
                assert float((q.dequantize() - weight).abs().max()) <= 1.1 * float(weight.abs().max())
