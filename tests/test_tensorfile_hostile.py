"""Each fault alone, in an otherwise valid file; the real `safetensors` package is asked whether it agrees."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from woqfx.disk.tensorfile import TensorFile
from woqfx.errors import SourceError

FLOATS = bytes(8)  # the data of a tensor that `described` describes


def described(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def container(header: bytes | dict[str, object], data: bytes = FLOATS, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


PLAIN = json.dumps(described()).encode()

BOTH_REFUSE = {
    "empty-file": (b"", "it has 0 bytes"),
    "length-cut-short": (b"\x10\0\0", "it has 3 bytes"),
    "length-largest-possible": (container({"w": described()}, length=2**64 - 1), "claims 18446744073709551615 bytes"),
    "length-over-limit": (container({"w": described()}, length=100_000_001), "more than the 100000000"),
    "length-past-end": (container({"w": described()}, length=5_000), "the file ends after"),
    "header-empty": (container(b"", b""), "does not begin with '{'"),
    "header-array": (container(b"[]", b""), "does not begin with '{'"),
    "header-unfinished": (container(b'{"w":' + PLAIN), "not JSON"),
    "header-followed-by-more": (container(b'{"w":' + PLAIN + b"} {}"), "not JSON"),
    "header-not-utf8": (container(b'{"\xff":' + PLAIN + b"}"), "not UTF-8"),
    "header-utf16": (container('{"w":{}}'.encode("utf-16-le"), b""), "not JSON"),
    "header-nested-deeply": (container(b'{"w":' * 200_000), "nested too deeply|not JSON"),
    "name-lone-surrogate": (container(b'{"\\ud800":' + PLAIN + b"}"), "not valid Unicode"),
    "metadata-number": (container({"__metadata__": {"k": 1}, "w": described()}), "__metadata__ is not"),
    "metadata-array": (container({"__metadata__": [], "w": described()}), "__metadata__ is not"),
    "tensor-not-object": (container({"w": 7}), "described by 7"),
    "tensor-without-dtype": (container({"w": {"shape": [2], "data_offsets": [0, 8]}}), "dtype None"),
    "tensor-without-shape": (container({"w": {"dtype": "F32", "data_offsets": [0, 8]}}), "shape None"),
    "tensor-without-offsets": (container({"w": {"dtype": "F32", "shape": [2]}}), "data_offsets None"),
    "dtype-unknown": (container({"w": described(dtype="F33")}), "dtype 'F33'; woqfx reads BOOL"),
    "dtype-endless": (container({"w": described(dtype="F" * 100_000)}), "woqfx reads BOOL"),
    "dtype-unhashable": (container({"w": described(dtype=["F32"])}), "dtype"),
    "shape-negative": (container({"w": described(shape=[-2])}), "non-negative"),
    "shape-both-negative": (container({"w": described(shape=[-1, -2])}), "non-negative"),
    "shape-fraction": (container({"w": described(shape=[2.0])}), "non-negative"),
    "shape-true": (container({"w": described(shape=[2, True])}), "non-negative"),
    "shape-text": (container({"w": described(shape="2")}), "non-negative"),
    "shape-overflows": (container({"w": described(shape=[2**62, 2**62])}), "too large for any file"),
    "shape-wraps-to-two": (container({"w": described(shape=[2**63 + 1, 2])}), "too large for any file"),
    "shape-empty-but-overflows": (
        container({"w": described(shape=[2**62, 2**62, 0], data_offsets=[0, 0])}, b""),
        "too large for any file",
    ),
    "shape-of-5000-digits": (container(b'{"w":' + PLAIN.replace(b"[2]", b"[" + b"9" * 5000 + b"]") + b"}"), "digits"),
    "shape-disagrees-with-offsets": (container({"w": described(shape=[3])}), "takes 12 bytes"),
    "offsets-three": (container({"w": described(data_offsets=[0, 4, 8])}), "two non-negative"),
    "offsets-negative": (container({"w": described(data_offsets=[-8, 0])}), "two non-negative"),
    "offsets-backwards": (container({"w": described(data_offsets=[8, 0])}), "takes 8 bytes"),
    "offsets-past-end": (container({"w": described(shape=[9], data_offsets=[0, 36])}), "the file has"),
    "hole-at-start": (container({"w": described(data_offsets=[4, 12])}, bytes(12)), "leaves a hole"),
    "hole-between": (
        container({"v": described(), "w": described(data_offsets=[12, 20])}, bytes(20)),
        "leaves a hole",
    ),
    "overlap": (container({"v": described(), "w": described(data_offsets=[4, 12])}, bytes(12)), "overlaps"),
    "shared": (container({"v": described(), "w": described()}), "overlaps"),
    "data-cut-short": (container({"w": described()}, bytes(7)), "the file has"),
    "data-left-over": (container({"w": described()}, bytes(9)), "the file has"),
    "data-without-tensors": (container({}, bytes(9)), "the file has"),
}

# Where the format's text is stricter than its reference reader.
WE_REFUSE = {
    "header-begins-with-space": (container(b' {"w":' + PLAIN + b"}"), "does not begin with '{'"),
    "name-twice": (container(b'{"w":' + PLAIN + b',"w":' + PLAIN + b"}"), "'w' more than once"),
    "member-twice": (container(b'{"w":' + PLAIN[:-1] + b',"dtype":"F32"}}'), "'dtype' more than once"),
    "metadata-key-twice": (container(b'{"__metadata__":{"a":"","a":""},"w":' + PLAIN + b"}"), "'a' more than once"),
    "shape-empty-with-unspeakable-strides": (
        container({"w": described(shape=[0, 2**62, 2**62], data_offsets=[0, 0])}, b""),
        "too large for any file",
    ),
    "metadata-null": (container({"__metadata__": None, "w": described()}), "__metadata__ is not"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("data", "message"), (BOTH_REFUSE | WE_REFUSE).values(), ids=(BOTH_REFUSE | WE_REFUSE).keys())
def test_a_hostile_file_is_refused_by_name_and_reason(tmp_path, data, message):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=message) as caught:
        TensorFile(path)
    assert str(path) in str(caught.value)
    assert "fetch or convert the file again" in str(caught.value)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("data", [data for data, _ in BOTH_REFUSE.values()], ids=BOTH_REFUSE.keys())
def test_the_reference_refuses_the_same_file(tmp_path, data):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    with pytest.raises(SafetensorError), safe_open(path, "pt"):
        pass


def test_the_file_that_the_faults_are_made_from_is_good(tmp_path):
    path = tmp_path / "good.safetensors"
    last = described(shape=[0, 2**40], data_offsets=[8, 8])
    first = described(shape=[0], data_offsets=[0, 0])  # shares its place with "w", which is listed before it
    header = {"__metadata__": {"k": "v"}, "last": last, "w": described(future=True), "first": first}
    path.write_bytes(container(header))
    with TensorFile(path) as file, safe_open(path, "pt") as reference:
        assert list(file.entries) == ["first", "w", "last"]
        assert file.read("w").tolist() == reference.get_tensor("w").tolist() == [0.0, 0.0]
        assert file.read("last").shape == reference.get_tensor("last").shape == (0, 2**40)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [b'{"w":[' + b"[]," * 300_000, b'{"w":{' + b'"a":{},' * 130_000, b'{"' + b"\\u0061" * 170_000, b" " * 10**6],
    ids=["arrays", "objects", "escapes", "spaces"],
)
def test_memory_stays_within_a_small_multiple_of_the_header(tmp_path, text):
    path = tmp_path / "greedy.safetensors"
    path.write_bytes(container(text))
    tracemalloc.start()
    with pytest.raises(SourceError) as caught:
        TensorFile(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50 * len(text)
    assert len(str(caught.value)) < 1_000


def test_a_claimed_length_reserves_no_memory(tmp_path):
    path = tmp_path / "claims.safetensors"
    path.write_bytes(container({"w": described()}, length=99_999_999))
    tracemalloc.start()
    with pytest.raises(SourceError, match="the file ends after"):
        TensorFile(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**6


def test_every_truncation_is_noticed(tmp_path):
    whole = container({"__metadata__": {"k": "v"}, "w": described()})
    path = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(SourceError):
            TensorFile(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_changed_header_is_refused_or_still_tiles_the_file(tmp_path, data):
    whole = bytearray(container({"v": described(), "w": described(data_offsets=[8, 16])}, bytes(16)))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 17))] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed.safetensors"
    path.write_bytes(whole)
    try:
        file = TensorFile(path)
    except SourceError:
        return
    with file:
        assert sum(entry.nbytes for entry in file.entries.values()) == 16
        assert all(file.read(name).nbytes == entry.nbytes for name, entry in file.entries.items())
