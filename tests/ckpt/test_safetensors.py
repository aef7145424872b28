"""The safetensors format: every dtype there and back, the layout on disk, and headers that lie."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from jmerge.ckpt.open import open_checkpoint
from jmerge.ckpt.safetensors import MAX_HEADER_BYTES, encode_header, read_header
from jmerge.dtypes import BITS, NUMPY, TensorSpec
from jmerge.errors import CheckpointError
from jmerge.testing.close import assert_same_bytes
from jmerge.testing.tiny import write_checkpoint

SHAPES = ((), (0,), (1,), (3,), (5, 7), (2, 0, 3), (64,), (1, 1, 1, 1, 2))


def random_array(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random bits, NaNs among them, as an array of a safetensors dtype; bools are 0 and 1."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, NUMPY[dtype].itemsize * int(np.prod(shape)), np.uint8)
    raw = raw % 2 if dtype == "BOOL" else raw
    return raw.view(NUMPY[dtype]).reshape(shape)


def every_shape(dtype: str) -> dict[str, np.ndarray]:
    return {f"t{i}": random_array(dtype, shape, i) for i, shape in enumerate(SHAPES)}


def raw_file(path: Path, header: Any, data: bytes = b"") -> Path:
    """A file with this header, JSON or any bytes, and this data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# Round trips


@pytest.mark.parametrize("dtype", NUMPY)
def test_every_dtype_comes_back_as_it_was_written(dtype: str, tmp_path: Path) -> None:
    tensors = every_shape(dtype)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "m", tensors))
    assert set(checkpoint) == set(tensors)
    for name, array in tensors.items():
        assert checkpoint.index[name].spec == TensorSpec(dtype, array.shape)
        assert_same_bytes(checkpoint[name], array)


@pytest.mark.parametrize("dtype", NUMPY)
def test_the_reference_reader_agrees(dtype: str, tmp_path: Path) -> None:
    tensors = every_shape(dtype)
    write_checkpoint(tmp_path, tensors)
    found = dict(safetensors.deserialize((tmp_path / "model.safetensors").read_bytes()))
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        assert (found[name]["dtype"], tuple(found[name]["shape"])) == (dtype, array.shape)
        assert bytes(found[name]["data"]) == array.tobytes()


@pytest.mark.parametrize("dtype", NUMPY)
def test_files_of_the_reference_writer_are_read(dtype: str, tmp_path: Path) -> None:
    tensors = every_shape(dtype)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", {"format": "np"})
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint) == set(tensors)
    for name, array in tensors.items():
        assert_same_bytes(checkpoint[name], array)


def test_numpy_readers_of_the_package_load_our_files(tmp_path: Path) -> None:
    tensors = {dtype: random_array(dtype, (3, 5)) for dtype in NUMPY if not dtype.startswith("F8")}
    write_checkpoint(tmp_path, tensors)
    found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        assert_same_bytes(found[name], array)
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_all_dtypes_share_one_file(tmp_path: Path) -> None:
    tensors = {f"{dtype}.{i}": random_array(dtype, (i,), i) for dtype in NUMPY for i in (1, 3, 64)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors))
    for name, array in tensors.items():
        assert_same_bytes(checkpoint[name], array)


def test_names_of_any_characters_survive(tmp_path: Path) -> None:
    tensors = {
        name: np.arange(3, dtype=np.int16) for name in ("é.ü", "层.0", 'quo"te', "a b", "back\\")
    }
    write_checkpoint(tmp_path, tensors)
    assert set(open_checkpoint(tmp_path)) == set(tensors)
    assert set(safetensors.numpy.load_file(tmp_path / "model.safetensors")) == set(tensors)


# Layout


def test_header_is_padded_and_tensors_are_aligned(tmp_path: Path) -> None:
    tensors = {
        f"{dtype}.{i}": random_array(dtype, (i,), i)
        for i in (1, 3, 5, 7, 64, 31, 32, 128)
        for dtype in NUMPY
    }
    write_checkpoint(tmp_path, tensors)
    path = tmp_path / "model.safetensors"
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert (8 + length) % 64 == 0
    extents = read_header(path).extents
    assert set(extents) == set(tensors)
    for name, extent in extents.items():
        aligned = 64 if extent.spec.nbytes % 64 == 0 else BITS[extent.spec.dtype] // 8
        assert extent.start % aligned == 0, name
    whole = [extent.spec.nbytes % 64 == 0 for extent in extents.values()]
    assert whole == sorted(whole, reverse=True), "multiples of 64 bytes come first"


@pytest.mark.parametrize("count", range(1, 66))
def test_header_is_padded_whatever_its_length(count: int) -> None:
    head = encode_header({"n" * count: TensorSpec("F32", (count,))})
    assert len(head) % 64 == 0
    assert struct.unpack("<Q", head[:8])[0] == len(head) - 8
    assert json.loads(head[8:])["n" * count] == entry("F32", [count], [0, 4 * count])


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"), [("F4", [2, 3], 3), ("F6_E2M3", [4], 3), ("F6_E3M2", [8, 2], 12)]
)
def test_floats_below_a_byte_are_bytes(
    dtype: str, shape: list[int], nbytes: int, tmp_path: Path
) -> None:
    data = bytes(range(nbytes))
    header = {"packed": entry(dtype, shape, [0, nbytes])}
    raw_file(tmp_path / "model.safetensors", header, data)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.index["packed"].spec == TensorSpec(dtype, tuple(shape))
    assert_same_bytes(checkpoint["packed"], np.frombuffer(data, np.uint8))


def test_header_may_come_in_any_order_and_carry_metadata(tmp_path: Path) -> None:
    header = {
        "second": entry("U8", [2], [4, 6]),
        "__metadata__": {"format": "pt", "note": "x"},
        "empty": entry("F32", [0, 3], [4, 4]),
        "first": entry("F32", [], [0, 4]),
    }
    path = raw_file(tmp_path / "model.safetensors", header, b"abcdef")
    head = read_header(path)
    assert list(head.extents) == ["first", "empty", "second"]
    start = len(path.read_bytes()) - 6
    assert [extent.start - start for extent in head.extents.values()] == [0, 4, 4]
    assert head.size == path.stat().st_size


def test_the_hash_is_of_the_header_alone(tmp_path: Path) -> None:
    one = raw_file(tmp_path / "1", {"a": entry()}, b"abcd")
    same = raw_file(tmp_path / "2", {"a": entry()}, b"efgh")
    other = raw_file(tmp_path / "3", {"b": entry()}, b"abcd")
    assert read_header(one).sha256 == hashlib.sha256(one.read_bytes()[:-4]).hexdigest()
    assert read_header(one).sha256 == read_header(same).sha256 != read_header(other).sha256


def test_a_file_without_tensors_is_legal(tmp_path: Path) -> None:
    assert read_header(raw_file(tmp_path / "f", {})).extents == {}


# Headers that lie: (header, data, part of the message, tensor it names)

HOSTILE: dict[str, tuple[Any, bytes, str, str]] = {
    "not JSON": (b"{'a': 1}", b"", "JSON", ""),
    "not UTF-8": (b'{"\xff\xfe": 1}', b"", "JSON", ""),
    "cut off JSON": (b'{"a": {"dtype": "U8", "sh', b"", "JSON", ""),
    "a list": ([1, 2], b"", "object", ""),
    "a number": (b"17", b"", "object", ""),
    "deep JSON": (b"[" * 200_000, b"", "JSON", ""),
    "deep entry": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"", "JSON", ""),
    "endless number": (b'{"a": ' + b"9" * 10_000 + b"}", b"", "JSON", ""),
    "two of a name": (
        b'{"twin":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
        b'"twin":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}',
        b"12345678",
        "twice",
        "twin",
    ),
    "half a surrogate pair": (
        b'{"\\ud800":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        b"1234",
        "",
        "",
    ),
    "overlap": (
        {"a": entry(), "b": entry("U8", [4], [2, 6])},
        b"123456",
        "overlap",
        "b",
    ),
    "same range twice": ({"a": entry(), "b": entry()}, b"1234", "overlap", "b"),
    "gap": ({"a": entry(), "b": entry("U8", [4], [6, 10])}, b"1234567890", "gap", "b"),
    "gap at the start": ({"late": entry("U8", [4], [2, 6])}, b"123456", "gap", "late"),
    "trailing bytes": ({"a": entry()}, b"12345", "describes", ""),
    "no data": ({"a": entry()}, b"", "describes", ""),
    "data cut off": ({"a": entry()}, b"123", "describes", ""),
    "offsets beyond the file": ({"a": entry("U8", [400], [0, 400])}, b"1234", "describes", ""),
    "negative offset": ({"neg": entry("U8", [4], [-4, 0])}, b"1234", "offsets", "neg"),
    "offsets backwards": ({"back": entry("U8", [4], [4, 0])}, b"1234", "offsets", "back"),
    "huge offsets": ({"far": entry("U8", [4], [2**70, 2**70 + 4])}, b"1234", "gap", "far"),
    "wrong size": ({"odd": entry("F32", [4], [0, 4])}, b"1234", "16 bytes", "odd"),
    "product overflows": (
        {"wrap": entry("U8", [2**33, 2**31 + 1, 2**33], [0, 0])},
        b"",
        "offsets",
        "wrap",
    ),
    "product wraps to the right size": (
        {"wrap": entry("U8", [2**62, 4, 1], [0, 0])},
        b"",
        "offsets",
        "wrap",
    ),
    "size of 2^64": ({"big": entry("U8", [2**64], [0, 0])}, b"", "shape", "big"),
    "negative size": ({"minus": entry("U8", [-1], [0, 0])}, b"", "shape", "minus"),
    "two negative sizes": ({"minus": entry("U8", [-2, -2], [0, 4])}, b"1234", "shape", "minus"),
    "size is a boolean": ({"yes": entry("U8", [True], [0, 1])}, b"1", "shape", "yes"),
    "size is a float": ({"real": entry("U8", [4.0], [0, 4])}, b"1234", "shape", "real"),
    "size is text": ({"word": entry("U8", ["4"], [0, 4])}, b"1234", "shape", "word"),
    "offsets are booleans": ({"yes": entry("U8", [1], [False, True])}, b"1", "", "yes"),
    "offsets are floats": ({"real": entry("U8", [4], [0.0, 4.0])}, b"1234", "", "real"),
    "three offsets": ({"three": entry("U8", [4], [0, 2, 4])}, b"1234", "data_offsets", "three"),
    "shape is a number": ({"flat": entry("U8", 4, [0, 4])}, b"1234", "shape", "flat"),
    "unknown dtype": ({"odd": entry("F128", [1], [0, 16])}, b"1" * 16, "'F128'", "odd"),
    "dtype in lower case": ({"odd": entry("f32", [1], [0, 4])}, b"1234", "'f32'", "odd"),
    "dtype is a number": ({"odd": entry(32, [1], [0, 4])}, b"1234", "dtype", "odd"),
    "half a byte": ({"nibble": entry("F4", [3], [0, 1])}, b"1", "whole bytes", "nibble"),
    "missing key": ({"less": {"dtype": "U8", "shape": [4]}}, b"1234", "data_offsets", "less"),
    "extra key": ({"more": entry() | {"x": 1}}, b"1234", "exactly", "more"),
    "entry is null": ({"nil": None}, b"", "entry", "nil"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_lying_header_is_refused(case: str, tmp_path: Path) -> None:
    header, data, message, tensor = HOSTILE[case]
    path = raw_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert_one_line(caught.value, path, message, tensor)


HEADS = {
    "shorter than its length word": b"\x10\0\0\0",
    "length word alone": struct.pack("<Q", 16),
    "length beyond the file": struct.pack("<Q", 1000) + b"{}" + b" " * 100,
    "length of 2^64 - 1": b"\xff" * 8 + b"{}",
    "length of 2^63": struct.pack("<Q", 2**63) + b"{}",
    "length of nothing": struct.pack("<Q", 0),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_broken_length_is_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(HEADS[case])
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert_one_line(caught.value, path, "header", "")


def test_a_pointer_of_git_lfs_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert_one_line(
        caught.value, path, "is a git-LFS pointer, not the file itself; run: git lfs pull", ""
    )


def test_a_header_longer_than_any_real_one_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{")
        file.truncate(2 * MAX_HEADER_BYTES)  # sparse: it is there, and must not be read
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert_one_line(caught.value, path, str(MAX_HEADER_BYTES + 1), "")


def test_a_missing_file_is_a_problem_of_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_header(tmp_path / "gone.safetensors")
    assert_one_line(caught.value, tmp_path / "gone.safetensors", "cannot be read", "")


def assert_one_line(error: CheckpointError, path: Path, message: str, tensor: str) -> None:
    """One problem in one line that begins with the file and says what is wrong with which tensor."""
    (problem,) = error.problems
    assert str(error) == str(problem)
    assert "\n" not in str(error)
    assert str(error).startswith(f"{path}: ")
    assert message in str(error)
    assert tensor in str(error)


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "is empty"), (b"\n<!DOCTYPE html><html>", "is a web page (<!doctype html>...)")],
)
def test_what_is_no_such_file(data: bytes, words: str, tmp_path: Path) -> None:
    """A download that brought something else is told as what it is."""
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    (problem,) = caught.value.problems
    assert words in str(problem) and "download it again" in str(problem)


@pytest.mark.parametrize(
    ("change", "words"), [(-4, "incomplete; download"), (4, "save or download it again")]
)
def test_a_file_of_another_length(change: int, words: str, tmp_path: Path) -> None:
    """A file that is too long is not called truncated."""
    folder = write_checkpoint(tmp_path / "a", {"x": np.ones(8, np.float32)})
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(CheckpointError, match=words):
        read_header(file)
