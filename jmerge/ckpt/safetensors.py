"""The safetensors file format: header text to byte ranges, and byte ranges to header text.

A file is a little-endian u64 length n, n bytes of JSON `{name: {dtype, shape, data_offsets}}`, then the data, in
which the ranges must follow each other without gap or overlap. We read it ourselves because the Python reader of
the `safetensors` package cannot give every dtype to numpy, and because a plan needs offsets, not arrays.
Everything in a header is checked against the file's size before any of it is believed.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jmerge.ckpt.jsontext import MAX_NAME, parse_object
from jmerge.ckpt.source import NOT_FETCHED, POINTER, LocalSource, Source
from jmerge.dtypes import BITS, TensorSpec
from jmerge.errors import CONTROL, CheckpointError, Problem

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference reader
MAX_AXES = 64  # numpy's limit, so no tool reads more
MAX_ELEMENTS = 2**63 - 1  # of a tensor, and the last byte of a file: what the system counts with
FIRST_BYTES = (
    1 << 16
)  # read at first: most headers are shorter, and a second request costs a remote file's latency
ALIGNMENT = 64  # of our data: a jitted program takes a 64-byte aligned array without copying it


class Extent(NamedTuple):
    """Where one tensor lies in one file."""

    spec: TensorSpec
    start: int  # bytes from the beginning of the file


class Header(NamedTuple):
    """What the head of one file says."""

    extents: dict[str, Extent]
    size: int  # bytes of the whole file
    sha256: str  # of the length word and the JSON text: the identity of the file's structure


def read_header(path: Path) -> Header:
    """The checked header of a local safetensors file; errors as of `header_of`."""
    return header_of(LocalSource(path.parent), path.name)


def header_of(source: Source, name: str) -> Header:
    """The checked header of a safetensors file.

    Raises:
      CheckpointError: the file is unreadable, truncated, or its header contradicts itself or the file's size.
      RunError: it cannot be reached.
    """
    path, size = source.shown(name), source.size_of(name)
    first = np.empty(min(size, FIRST_BYTES), np.uint8)
    source.read_into(name, 0, first)
    head = first[:8].tobytes()
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
    if first[: len(POINTER)].tobytes() == POINTER:
        raise _broken(path, NOT_FETCHED, code="JM113")
    if not size:
        raise _broken(path, "is empty; download it again")
    if (begin := first[:64].tobytes().lstrip().lower()).startswith(
        (b"<!doctype", b"<html", b"<?xml")
    ):
        shown = begin[:15].decode("ascii", "replace")
        raise _broken(
            path,
            f"is a web page ({shown}...), not a safetensors file; download it again, with a "
            "login if the model needs one",
        )
    if length < 2 or length > min(size - 8, MAX_HEADER_BYTES):
        raise _broken(
            path,
            f"its header claims {length} bytes, but the file has {size}; download it again",
        )
    rest = np.empty(max(8 + length - first.size, 0), np.uint8)
    source.read_into(name, first.size, rest)
    text = first[8 : 8 + length].tobytes() + rest.tobytes()
    extents = parse_header(path, text, data_start=8 + length, file_size=size)
    return Header(extents, size, hashlib.sha256(head + text).hexdigest())


def parse_header(path: str, text: bytes, data_start: int, file_size: int) -> dict[str, Extent]:
    """The extents a header's JSON describes, in the order they lie in the file; CheckpointError if it is wrong."""
    try:
        entries = parse_object(text)
    except ValueError as error:
        raise _broken(path, f"its header {error}") from error
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _broken(path, "its header's __metadata__ is not a map from strings to strings")
    for name in entries:
        _check_name(path, name)
    extents = {name: _parse_entry(path, name, entry, data_start) for name, entry in entries.items()}
    extents = dict(sorted(extents.items(), key=lambda item: (item[1].start, item[1].spec.nbytes)))
    position = data_start
    for name, extent in extents.items():
        if extent.start != position:
            raise _broken(path, f"its tensors overlap or leave a gap at byte {position}", name)
        position += extent.spec.nbytes
    if position != file_size:
        raise _broken(
            path,
            f"its header describes {position} bytes, the file has {file_size}; "
            + (
                "the download is incomplete; download it again"
                if file_size < position
                else "save or download it again"
            ),
        )
    return extents


def encode_header(specs: dict[str, TensorSpec]) -> bytes:
    """The head of a file that holds `specs` back to back in that order, padded to 64 bytes with spaces."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, spec in specs.items():
        entries[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.nbytes],
        }
        position += spec.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _check_name(path: str, name: str) -> None:
    """Refuse what is no name: nothing, no text, what a terminal would obey, more than any name has."""
    if not name or len(name) > MAX_NAME:
        found = f"one of {len(name):,} characters" if name else "an empty one"
        raise _broken(path, f"a tensor's name has 1 to {MAX_NAME} characters, found {found}")
    if not name.isprintable() and CONTROL.search(name):
        raise _broken(path, f"a tensor's name is not printable Unicode text: {name!r}")


def _parse_entry(path: str, name: str, entry: Any, data_start: int) -> Extent:
    match entry:
        case {
            "dtype": str(dtype),
            "shape": list(shape),
            "data_offsets": [int(start), int(stop)],
            **rest,
        } if not rest:
            pass
        case _:
            raise _broken(
                path, "its header entry needs exactly dtype, shape and data_offsets", name
            )
    if dtype not in BITS:
        raise _broken(path, f"unknown dtype {dtype!r}", name)
    if isinstance(start, bool) or isinstance(stop, bool):
        raise _broken(path, "its data_offsets are not numbers", name)
    if len(shape) > MAX_AXES:
        raise _broken(path, f"its shape has {len(shape):,} axes, more than {MAX_AXES}", name)
    if not all(type(n) is int and 0 <= n <= MAX_ELEMENTS for n in shape):
        raise _broken(path, "its shape is not a list of sizes", name)
    if math.prod(n for n in shape if n) > MAX_ELEMENTS:  # of an empty one too: no array has it
        message = f"shape {shape} is larger than any array, whatever its offsets"
        raise _broken(path, message, name)
    spec, size, nbytes = _known_spec(dtype, tuple(shape))
    if size * BITS[dtype] % 8:
        raise _broken(path, f"{spec} does not fill whole bytes", name)
    if not 0 <= start <= stop:  # not shown: they may have thousands of digits
        raise _broken(path, "its data_offsets are not a range of bytes", name)
    if stop > MAX_ELEMENTS:
        raise _broken(path, "its data_offsets leave a gap that is larger than any file", name)
    if stop - start != nbytes:
        raise _broken(path, f"{spec} needs {nbytes} bytes, its offsets give {stop - start}", name)
    return Extent(spec, data_start + start)


@lru_cache(1024)
def _known_spec(dtype: str, shape: tuple[int, ...]) -> tuple[TensorSpec, int, int]:
    """A spec with its numbers of elements and bytes: of thousands of tensors most are alike."""
    spec = TensorSpec(dtype, shape)
    return spec, spec.size, spec.nbytes


def _broken(path: str, message: str, tensor: str = "", *, code: str = "JM123") -> CheckpointError:
    return CheckpointError(Problem(message, where=tensor, file=path, code=code))
