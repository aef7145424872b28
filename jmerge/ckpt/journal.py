"""The journal of a work folder: which byte ranges of which output tensors were written, with their crc32.

Its first line says whose work it is, every other one a block, as a JSON array. Nothing waits for the disk here: a line
is a claim, and a resumed run believes it only when the bytes that are read back have that crc32. So a line without its
data, or data without its line, costs no more than writing a block again.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zlib_ng import zlib_ng

from jmerge.dtypes import TensorSpec


class Block(NamedTuple):
    """A byte range of an output tensor that was written."""

    tensor: str
    start: int  # bytes from the tensor's beginning
    stop: int
    crc32: int
    nonfinite: int = 0  # elements in it that are NaN or infinite

    @property
    def nbytes(self) -> int:
        """Its length."""
        return self.stop - self.start


class Journal:
    """An open journal; every line is one write to the system, so a kill tears at most the last."""

    def __init__(self, path: Path, header: Mapping[str, Any], blocks: Iterable[Block] = ()) -> None:
        """Begin a journal at `path` that already tells of `blocks`; one that is there is replaced at once."""
        begun = path.with_name(path.name + ".new")
        lines = [json.dumps(header, sort_keys=True), *map(_line, blocks)]
        begun.write_bytes("".join(f"{line}\n" for line in lines).encode())
        os.replace(begun, path)
        self._open(path, len(lines[0].encode()) + 1)

    @classmethod
    def join(cls, path: Path, header: Mapping[str, Any]) -> Journal | None:
        """The journal that another process began at `path` with this header; None when there is none."""
        if read_journal(path)[0] != header:
            return None
        journal = cls.__new__(cls)
        journal._open(path, path.stat().st_size)
        return journal

    def _open(self, path: Path, header_bytes: int) -> None:
        flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags)
        self._header_bytes = header_bytes

    def add(self, block: Block) -> None:
        """Say that a block was written."""
        rest = memoryview(f"{_line(block)}\n".encode())
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def forget(self) -> None:
        """Take back every block: what was written may not be on the disk, though it can still be read."""
        os.ftruncate(self._descriptor, self._header_bytes)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


def read_journal(path: Path) -> tuple[dict[str, Any], list[Block]]:
    """The header and the blocks of a journal, up to its first line that is torn or is none; an empty header when that
    is the first."""
    try:
        *lines, _ = path.read_bytes().split(b"\n")  # what follows the last newline is torn
    except FileNotFoundError:
        return {}, []
    header: Any = _parse(lines[0]) if lines else None
    if not isinstance(header, dict) or "plan" not in header:
        return {}, []
    blocks = []
    for line in lines[1:]:
        match _parse(line):
            case [str(), int(), int(), int(), int()] as fields:
                blocks.append(Block(*fields))
            case _:
                break
    return header, blocks


def ledger_blocks(ledger: Mapping[str, Any]) -> list[Block]:
    """What a ledger says of the tensors of its folder: one block for each."""
    blocks = []
    for name, entry in ledger["tensors"].items():
        nbytes = TensorSpec(entry["dtype"], tuple(entry["shape"])).nbytes
        crc32, nonfinite = int(entry["crc32"], 16), entry.get("nonfinite", 0)
        blocks.append(Block(name, 0, nbytes, crc32, nonfinite))
    return blocks


def verified(
    blocks: Sequence[Block], read: Callable[[str, int, int], Iterable[memoryview | bytes]]
) -> list[Block]:
    """Those of `blocks` whose bytes have their crc32; where two overlap, the later one counts.

    read: (tensor, start, stop) -> the bytes that are there, in parts; nothing for a range that no tensor has.
    """
    kept: dict[str, list[Block]] = {}  # by their place
    for block in reversed(blocks):
        known = kept.setdefault(block.tensor, [])
        place = bisect_left(known, block.stop, key=lambda each: each.start)
        if place > 0 and block.start < known[place - 1].stop:
            continue
        crc32 = done = 0
        for part in read(block.tensor, block.start, block.stop):
            crc32 = zlib_ng.crc32(part, crc32)
            done += len(part)
        if done == block.nbytes and crc32 == block.crc32:
            known.insert(place, block)
    return [block for known in reversed(kept.values()) for block in known]


def joined_crc32(blocks: Iterable[Block]) -> int:
    """The crc32 of a tensor from those of the blocks that make it up."""
    crc32 = 0
    for block in sorted(blocks, key=lambda block: block.start):
        crc32 = zlib_ng.crc32_combine(crc32, block.crc32, block.nbytes)
    return crc32


def _line(block: Block) -> str:
    return json.dumps(block, ensure_ascii=False)


def _parse(line: bytes) -> Any:
    """The value of a line of JSON; None when it is not."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
