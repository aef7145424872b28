"""What only reading every byte shows: checksums, NaN and infinity, whether two tensors are one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from zlib_ng import zlib_ng

from jmerge.arch.infer import is_buffer
from jmerge.ckpt.journal import Block, joined_crc32
from jmerge.dtypes import count_nonfinite
from jmerge.engine.local import Files, aligned_buffer
from jmerge.engine.threads import work_through
from jmerge.verify.files import is_crc32
from jmerge.verify.folder import Finding, Folder
from jmerge.verify.tables import tied_tables

PART_BYTES = 1 << 22  # read at a time by each thread; all memory there is beside the headers
THREADS = min(8, os.cpu_count() or 1)  # crc32 and counting are faster than most disks


class Values(NamedTuple):
    """What there is to know of a tensor's bytes."""

    crc32: int
    nonfinite: int  # elements that are NaN or infinite


class _Part(NamedTuple):
    """Bytes of a tensor."""

    name: str
    start: int
    stop: int


def read_values(
    folder: Folder, tell: Callable[[int], None] = lambda nbytes: None
) -> dict[str, Values]:
    """The values of every tensor, each byte read once, by several threads.

    tell: called with the bytes of every part that was read, by any thread.

    Raises:
      CheckpointError, RunError: a file cannot be read although its header could.
    """
    blocks: dict[str, list[Block]] = {name: [] for name in folder.tensors}
    files = Files()

    def reader() -> Callable[[_Part], Block]:
        buffer = aligned_buffer(PART_BYTES)

        def read(part: _Part) -> Block:
            name, start, stop = part
            entry, raw = folder.tensors[name], buffer[: stop - start]
            files.read_from(folder.source, entry.file, entry.start + start, raw)
            nonfinite = count_nonfinite(raw, entry.spec.dtype)
            return Block(name, start, stop, zlib_ng.crc32(raw), nonfinite)

        return read

    def take(part: _Part, block: Block) -> None:
        blocks[part.name].append(block)
        tell(part.stop - part.start)

    try:
        work_through(_parts(folder), reader, take, threads=THREADS, name="jmerge-verify")
    finally:
        files.close()
    return {
        name: Values(joined_crc32(found), sum(block.nonfinite for block in found))
        for name, found in blocks.items()
    }


def _parts(folder: Folder) -> Iterator[_Part]:
    """Ranges of every tensor, in the order they lie in the files; none is cut within an element."""
    for name, entry in folder.tensors.items():
        for start in range(0, entry.spec.nbytes, PART_BYTES):
            yield _Part(name, start, min(start + PART_BYTES, entry.spec.nbytes))


def nonfinite(folder: Folder, values: Mapping[str, Values]) -> Iterator[Finding]:
    """No trained tensor holds NaN or infinity."""
    for name, value in values.items():
        if value.nonfinite:
            entry = folder.tensors[name]
            message = f"{value.nonfinite:,} of {entry.spec.size:,} elements are NaN or infinite"
            yield Finding(message, entry.file, name, warning=is_buffer(name, entry.spec))


def checksums(folder: Folder, values: Mapping[str, Values]) -> Iterator[Finding]:
    """Every tensor has the bytes that the run wrote, by the ledger's crc32."""
    entries = (folder.ledger or {}).get("tensors")
    if not isinstance(entries, dict):
        return
    for own in values:
        entry = entries.get(folder.name_in_ledger(own))
        told = entry.get("crc32") if isinstance(entry, dict) else None
        if not folder.lists(entry) or not isinstance(told, str) or not is_crc32(told):
            continue  # told by `ledger`
        found = f"{values[own].crc32:08x}"
        if found != told:
            message = (
                f"its crc32 is {found}, the ledger says {told}: the file was changed or damaged"
            )
            yield Finding(message, folder.tensors[own].file, own)


def same_table(folder: Folder, values: Mapping[str, Values]) -> Iterator[Finding]:
    """A head that config.json ties to the embedding has its bytes."""
    pair = tied_tables(folder)
    if pair is not None and values[pair[0]].crc32 != values[pair[1]].crc32:
        # transformers 5 loads both, and some classes have two tables whatever config.json says
        message = f"tie_word_embeddings is true, and {pair[0]} is not {pair[1]}: transformers "
        message += "before 5 and other programs load one of them for both"
        yield Finding(message, folder.config_file, warning=True)
