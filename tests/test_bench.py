"""What `woqfx bench` measures with: turns, copies, shares, and peers that multiply by what they say."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import woqfx
from woqfx import Scheme, Support, bench, bench_peers, memory
from woqfx.bench import Contender, Figure
from woqfx.roofline import Roofline

LIMITS = Roofline(10.0, {"fp32": 100.0}, "made up")


def figure(**changes: Any) -> Figure:
    """One that reads 40 bytes and does 2 * 3 * 5 * 4 = 120 operations."""
    fields = {
        "name": "woqfx",
        "dtype": "nf4",
        "compute_dtype": "fp32",
        "group_size": 32,
        "kernel": "k",
        "shape": (5, 4),
    }
    return Figure(**{**fields, "rows": 3, "nbytes": 40, "seconds": 8.0, "limits": LIMITS, **changes})


def test_a_share_is_of_the_least_time() -> None:
    assert figure().operations == 120
    assert (figure().share, figure().bound) == (0.5, "memory")
    assert (figure(rows=30).share, figure(rows=30).bound) == (1.5, "arithmetic")


def test_a_figure_as_json() -> None:
    stored = figure().to_json()
    assert stored["operations"] == 120 and stored["share"] == 0.5 and stored["bound"] == "memory"
    assert stored["limits"] == {"read_bandwidth": 10.0, "peaks": {"fp32": 100.0}, "how": "made up"}
    assert stored["shape"] == (5, 4)


def test_everyone_gets_a_turn_in_each_round_and_medians_are_of_single_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_REST_SECONDS", 0)
    asked: list[tuple[str, float]] = []
    times = {"quick": itertools.cycle([[0.01, 0.02], [0.03, 0.1]]), "slow": itertools.cycle([[3.0]])}

    def burst(name: str) -> Any:
        return lambda seconds: asked.append((name, seconds)) or next(times[name])

    found = bench.take_turns({name: burst(name) for name in times}, 5.0, lambda: asked.append(("limits", 0)))
    assert found == {"quick": 0.02, "slow": 3.0}
    one_round = [("limits", 0), ("quick", 1.0), ("slow", 1.0)]
    # After two rounds the slow one has had its time.
    assert asked == [*one_round * 2, *one_round[:2] * 3]


def test_a_burst_goes_through_all_copies() -> None:
    called: list[int] = []
    copies = [lambda x, i=i: called.append(i) for i in range(3)]
    taken = bench.burst(copies, torch.zeros(1), 0.05)
    assert called[:7] == [0, 1, 2, 0, 1, 2, 0]
    assert len(taken) == len(called) - 1


def test_a_burst_makes_one_call_at_least() -> None:
    assert len(bench.burst([lambda x: None], torch.zeros(1), 0)) == 1


@pytest.mark.parametrize("nbytes", [100, 4096, 10**6, 10**9], ids=str)
def test_copies_exceed_the_cache_by_far(nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "last_level_cache", lambda: 1 << 20)
    count = bench.copies_of(nbytes)
    assert 2 <= count <= 512
    # What is in memory beside the one whose turn it is; where there would be too many, as many as allowed.
    assert (count - 1) * nbytes >= 4 << 20 or count == 512


@pytest.fixture
def few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bench, bench_peers):
        monkeypatch.setattr(module, "copies_of", lambda nbytes: 2)
    monkeypatch.setattr(bench, "_REST_SECONDS", 0)


def product_error(contender: Contender, weight: Tensor) -> list[float]:
    """The relative error of each copy's product."""
    x = bench.activations(5, weight.shape[1])
    exact = x.double() @ weight.double().T
    with torch.inference_mode():
        products: Any = [copy(x.to(contender.x_dtype)) for copy in contender.copies]
    return [float((y.double() - exact).norm() / exact.norm()) for y in products]


@pytest.mark.usefixtures("few_copies")
def test_contenders_are_what_the_backend_runs() -> None:
    weight, refused = bench.random_weight((48, 64)), list[Any]()
    schemes = [Scheme("int8", compute_dtype="int8"), Scheme("nf4", group_size=16, compute_dtype="bf16")]
    backend = woqfx.registry().backend("torch_cpu")
    int8, nf4 = bench.contenders(backend, weight, schemes, refused)
    assert refused == []
    assert (int8.dtype, int8.compute_dtype, int8.group_size, int8.x_dtype) == ("int8", "int8", 32, torch.float32)
    assert (nf4.dtype, nf4.compute_dtype, nf4.group_size, nf4.x_dtype) == ("nf4", "bf16", 16, torch.bfloat16)
    assert int8.nbytes == 48 * 64 + 48 * 2 * 2  # codes, and scales in fp16
    assert nf4.nbytes == 48 * 32 + 48 * 4 * 2
    assert max(product_error(int8, weight)) < 0.02
    assert max(product_error(nf4, weight)) < 0.12


@pytest.mark.usefixtures("few_copies")
def test_copies_do_not_share_memory() -> None:
    """Also where the backend keeps the codes as they are given."""
    kept: list[Tensor] = []

    class Keeps(type(woqfx.registry().backend("torch_cpu"))):  # type: ignore[misc]
        def pack(self, q: woqfx.QTensor, float_dtype: torch.dtype) -> woqfx.PackedWeight:
            kept.append(q.codes)
            return super().pack(q, float_dtype)

    list(bench.contenders(Keeps(), bench.random_weight((8, 32)), [Scheme("int8")], []))
    assert len({codes.data_ptr() for codes in kept}) == 2


def test_what_a_backend_refuses_is_told() -> None:
    class Refuses(type(woqfx.registry().backend("torch_cpu"))):  # type: ignore[misc]
        def supports(self, *_: Any) -> Support:
            return Support(False, reason="too cold", remedy="heat")

    refused: list[tuple[Scheme, str]] = []
    assert list(bench.contenders(Refuses(), bench.random_weight((8, 32)), [Scheme("nf4")], refused)) == []
    assert refused == [(Scheme("nf4"), "too cold")]


@pytest.mark.usefixtures("few_copies")
@pytest.mark.parametrize("peer", bench_peers.PEERS, ids=lambda peer: f"{peer.name} {peer.dtype}")
def test_peers_multiply_by_the_weight(peer: bench_peers.Peer) -> None:
    weight, refused = bench.random_weight((64, 128)), list[tuple[str, str]]()
    found = [
        one
        for one in bench_peers.contenders(weight, peer.compute_dtype, 32, refused)
        if (one.name, one.dtype) == (peer.name, peer.dtype)
    ]
    assert refused == []
    bits = {"fp32": 32, "bf16": 16, "int8": 8}.get(peer.dtype, 4)
    assert found[0].nbytes * 8 / weight.numel() == pytest.approx(bits, rel=0.35)
    error = product_error(found[0], weight)
    assert len(error) == 2
    assert max(error) < {32: 1e-6, 16: 0.01, 8: 0.02, 4: 0.15}[bits]


def test_a_peer_that_cannot_take_a_weight_is_told() -> None:
    """bitsandbytes packs 32 outputs at a time; PyTorch's int4 takes no group of 24."""
    refused: list[tuple[str, str]] = []
    list(bench_peers.contenders(bench.random_weight((48, 48)), "bf16", 24, refused))
    assert "ATen int4pack int4" in dict(refused)
    assert all(why for _, why in refused)


@pytest.mark.usefixtures("few_copies")
def test_measuring_takes_limits_in_each_round_and_runs_every_contender() -> None:
    weight, taken = bench.random_weight((64, 64)), []
    backend = woqfx.registry().backend("torch_cpu")
    field = [*bench.contenders(backend, weight, [Scheme("int4_clip"), Scheme("nf4")], [])]
    figures = bench.measure(field, (64, 64), 3, 0.01, lambda: taken.append(1) or LIMITS)
    assert len(taken) == bench._ROUNDS
    assert [(one.dtype, one.rows, one.shape, one.limits) for one in figures] == [
        ("int4_clip", 3, (64, 64), LIMITS),
        ("nf4", 3, (64, 64), LIMITS),
    ]
    assert all(one.seconds > 0 for one in figures)


def test_threads_are_set_for_a_while() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), memory.threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
