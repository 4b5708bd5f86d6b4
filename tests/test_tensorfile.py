"""The independent reader and writer is the real `safetensors` package."""

from __future__ import annotations

import json
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from woqfx.errors import CheckpointError, OutputError, SourceError
from woqfx.tensorfile import Entry, TensorFile, layout, raw_bytes

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.uint16,
    torch.int16,
    torch.float16,
    torch.bfloat16,
    torch.uint32,
    torch.int32,
    torch.float32,
    torch.uint64,
    torch.int64,
    torch.float64,
]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = texts.filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
file_contents = st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), shapes), max_size=8)

same_folder_again = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def random_tensors(described: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, torch.Tensor]:
    """Tensors of random bit patterns, NaNs among them."""
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, (dtype, shape) in described.items():
        tensors[name] = torch.empty(shape, dtype=dtype)
        top = 2 if dtype == torch.bool else 256
        random = torch.randint(0, top, (tensors[name].nbytes,), dtype=torch.uint8, generator=generator)
        tensors[name].view(-1).view(torch.uint8).copy_(random)
    return tensors


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    plan = layout({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}, metadata)
    with path.open("wb") as file:
        file.write(plan.header)
        for name in plan.entries:
            assert file.tell() == plan.entries[name].start
            file.write(raw_bytes(tensors[name]))
        assert file.tell() == plan.size


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return (left.dtype, left.shape, bits(left)) == (right.dtype, right.shape, bits(right))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@same_folder_again
@given(file_contents, st.dictionaries(texts, texts, max_size=3))
def test_reads_what_the_reference_writes(tmp_path, described, metadata):
    tensors = random_tensors(described)
    path = tmp_path / "reference.safetensors"
    # For no tensors and an empty (not absent) metadata the reference writes a file that it cannot read.
    save_file(tensors, path, metadata or None)

    with TensorFile(path) as file:
        assert file.metadata == metadata
        assert file.size == path.stat().st_size
        assert file.entries.keys() == tensors.keys()
        assert all(same_bits(file.read(name), tensor) for name, tensor in tensors.items())


@same_folder_again
@given(file_contents, st.dictionaries(texts, texts, min_size=1, max_size=3))
def test_the_reference_reads_what_layout_describes(tmp_path, described, metadata):
    tensors = random_tensors(described)
    path = tmp_path / "ours.safetensors"
    write(path, tensors, metadata)

    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(same_bits(loaded[name], tensor) for name, tensor in tensors.items())
    with safe_open(path, "pt") as reference:
        assert reference.metadata() == metadata
    with TensorFile(path) as file:
        plan = layout(described, metadata)
        assert file.entries == plan.entries
        assert file.size == plan.size


def test_order_is_the_callers_even_where_that_leaves_a_tensor_unaligned(tmp_path):
    path = tmp_path / "unaligned.safetensors"
    tensors = {"codes": torch.ones(3, dtype=torch.uint8), "scales": torch.tensor([1.5, -2.5])}
    write(path, tensors)

    assert list(layout({"codes": (torch.uint8, (3,)), "scales": (torch.float32, (2,))}).entries) == ["codes", "scales"]
    with TensorFile(path) as file:
        assert file.entries["scales"].start % 4 == 3
        assert file.read("scales").data_ptr() % 4 == 0
    assert load_file(path)["scales"].sum() == -1.0


@pytest.mark.parametrize("length", range(1, 20))
def test_the_data_begin_at_a_multiple_of_eight(length):
    plan = layout({"n" * length: (torch.uint8, (1,))})
    assert len(plan.header) % 8 == 0
    assert plan.entries["n" * length] == Entry(torch.uint8, (1,), len(plan.header), len(plan.header) + 1)


def test_layout_gives_the_same_bytes_again():
    asked = {"b": (torch.float16, (2, 3)), "a": (torch.uint8, (5,))}
    assert layout(asked, {"k": "v"}).header == layout(dict(asked), {"k": "v"}).header
    assert layout(asked, {"k": "v"}).header[8:].rstrip() == (
        b'{"__metadata__":{"k":"v"},"b":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},'
        b'"a":{"dtype":"U8","shape":[5],"data_offsets":[12,17]}}'
    )


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [("__metadata__", torch.uint8, "rename it"), ("rope.freqs_cis", torch.complex64, "rope.freqs_cis.*convert it to")],
    ids=["reserved-name", "complex"],
)
def test_layout_refuses_what_the_format_cannot_hold(name, dtype, message):
    with pytest.raises(OutputError, match=message):
        layout({name: (dtype, (1,))})


def test_raw_bytes_is_a_view_and_never_a_copy():
    tensor = torch.zeros(2, 2)
    raw_bytes(tensor)[3] = 0x40  # the top byte of a little-endian float: 2.0
    assert tensor.tolist() == [[2.0, 0.0], [0.0, 0.0]]
    with pytest.raises(RuntimeError):
        raw_bytes(tensor.t())


# Hostile files. Each fault is alone in an otherwise valid file.

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


@same_folder_again
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


# What happens to a file while it is open.


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "weights.safetensors"
    write(path, {"a": torch.arange(1000.0), "b": torch.arange(7, dtype=torch.int16)})
    return path


def test_a_file_that_shrinks_is_an_error_and_not_a_signal(weights):
    with TensorFile(weights) as file:
        os.truncate(weights, file.entries["a"].start + 100)
        with pytest.raises(SourceError, match=r"weights\.safetensors.*it ended at byte"):
            file.read("a")


def test_a_file_that_is_removed_can_still_be_read(weights):
    with TensorFile(weights) as file:
        weights.unlink()
        assert file.read("b").tolist() == list(range(7))


def test_a_tensor_outlives_its_file(weights):
    with TensorFile(weights) as file:
        tensor = file.read("b")
    weights.write_bytes(b"")
    assert tensor.tolist() == list(range(7))


def test_short_reads_are_continued(weights, monkeypatch):
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: real(fd, [buffers[0][:37]], at))
    with TensorFile(weights) as file:
        assert torch.equal(file.read("a"), torch.arange(1000.0))


def test_a_device_that_fails_is_an_error_that_names_the_file(weights, monkeypatch):
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with TensorFile(weights) as file:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(SourceError, match=r"weights\.safetensors at byte \d+: Input/output error"):
            file.read("a")


def test_threads_may_share_a_file(weights):
    with TensorFile(weights) as file, ThreadPoolExecutor(4) as threads:
        read = list(threads.map(file.read, ["a", "b"] * 50))
    assert all(torch.equal(tensor, read[i % 2]) for i, tensor in enumerate(read))
    assert torch.equal(read[0], torch.arange(1000.0))


def test_an_unknown_tensor_is_an_error(weights):
    with TensorFile(weights) as file, pytest.raises(SourceError, match="holds no tensor 'c'"):
        file.read("c")


def test_the_caller_chooses_the_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot open .*absent: No such file"):
        TensorFile(tmp_path / "absent", error=CheckpointError)


@pytest.mark.timeout(5)
def test_a_pipe_does_not_keep_us_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="not a regular file"):
        TensorFile(tmp_path / "pipe")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(SourceError, match="Is a directory"):
        TensorFile(tmp_path)


def test_a_refused_file_is_closed(tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"bad")
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    with pytest.raises(SourceError) as caught:
        TensorFile(path)
    assert len(list(descriptors.iterdir())) == before, f"open while {caught} is being handled"


def test_the_digest_is_of_the_header_alone(tmp_path):
    path = tmp_path / "w.safetensors"
    digests = []
    for data in (bytes(8), bytes(range(8))):
        path.write_bytes(container({"w": described()}, data))
        with TensorFile(path) as file:
            digests.append(file.header_digest)
    # printf '{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}' | sha256sum
    assert digests == ["a840efa13cfe9ea1b34ab700a177c1f003e51f1a54f717c6a19ee78900b32ac4"] * 2


@pytest.mark.slow
def test_transformers_loads_what_layout_describes(tmp_path):
    from transformers import AutoModel, BertConfig, BertModel

    config = BertConfig(vocab_size=31, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=17)
    with torch.random.fork_rng(devices=[]):
        model = BertModel(config).eval()
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    odd_first = {"zero.pad": torch.zeros(1, dtype=torch.uint8), **tensors}
    config.save_pretrained(tmp_path)
    write(tmp_path / "model.safetensors", odd_first, {"format": "pt"})

    loaded = AutoModel.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in tensors.items())
    ids = torch.arange(9)[None]
    assert torch.equal(loaded(ids).last_hidden_state, model(ids).last_hidden_state)
