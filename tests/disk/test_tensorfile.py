"""The independent reader and writer is the real `safetensors` package."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from woqfx.disk import prefetch
from woqfx.disk.tensorfile import Entry, TensorFile, layout, raw_bytes
from woqfx.errors import CheckpointError, OutputError, SourceError

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


@pytest.mark.parametrize("refused", [False, True], ids=["taken", "refused"])
def test_what_lies_behind_tensors_side_by_side_is_fetched_and_a_refusal_does_no_harm(tmp_path, monkeypatch, refused):
    path, fetched = tmp_path / "model.safetensors", []
    tensors = {str(number): torch.full((1 << 20,), number, dtype=torch.uint8) for number in range(5)}
    write(path, tensors)

    def send(target, source, start, count):
        fetched.append(start)
        if refused:
            raise OSError(22, "Invalid argument")

    def read(*names):
        for name in names:
            assert torch.equal(file.read(name), tensors[name])
        for thread in threading.enumerate():
            if thread.name == "woqfx-prefetch":
                thread.join()
        return fetched

    monkeypatch.setattr(prefetch, "PIECE", 1 << 20)
    monkeypatch.setattr(prefetch, "AHEAD", 2 << 20)
    monkeypatch.setattr(prefetch, "_NOWAIT", None)  # whatever the page cache has
    monkeypatch.setattr(os, "sendfile", send)
    with TensorFile(path) as file:
        assert read("0") == []
        assert read("1") == ([3 << 20] if refused else [3 << 20, 4 << 20])
        assert read("3", "4", "2", *tensors) == ([3 << 20] if refused else [3 << 20, 4 << 20, 5 << 20])


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
    header = b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    for data in (bytes(8), bytes(range(8))):
        path.write_bytes(len(header).to_bytes(8, "little") + header + data)
        with TensorFile(path) as file:
            digests.append(file.header_digest)
    # what `printf '<header>' | sha256sum` prints
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
