"""Where each tensor of a model lies, also where two of its files hold one: the index decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jmerge.ckpt.safetensors import Header
from jmerge.ckpt.source import LocalSource, Source
from jmerge.dtypes import TensorSpec
from jmerge.errors import CheckpointError, Problem

FIRST_STRIDE = 1 << 16  # bytes compared at first: most tensors that differ do so in the first few
STRIDE = 1 << 24  # bytes compared at a time after that


class Entry(NamedTuple):
    """Where a named tensor lies."""

    spec: TensorSpec
    file: str  # name inside the folder
    start: int  # bytes from the beginning of the file


class Part(NamedTuple):
    """The weights of one folder of a model: most models have one."""

    prefix: str  # before the names of its tensors
    files: tuple[str, ...]
    where: Mapping[str, str]  # name in its files -> file, as the index says
    indexed: bool  # whether an index was followed


def place_tensors(
    source: Source, headers: Mapping[str, Header], parts: Sequence[Part]
) -> tuple[dict[str, Entry], tuple[str, ...]]:
    """Where every tensor lies, in file order, and notes on those of which there are several copies.

    Args:
      source: the files of the model.
      headers: of its weight files, in their order.
      parts: what the files belong to.

    Raises:
      CheckpointError: a tensor has copies that differ, and no index says which is the model's; or the index names a file
        that has no such tensor.
    """
    owners = {file: part for part in parts for file in part.files}
    found: dict[str, list[Entry]] = {}
    for file, head in headers.items():
        for own, extent in head.extents.items():
            entry = Entry(extent.spec, file, extent.start)
            found.setdefault(owners[file].prefix + own, []).append(entry)
    chosen = {name: entries[0] for name, entries in found.items() if len(entries) == 1}
    copies: dict[tuple[str, str, str], list[str]] = {}  # (file, other file, why) -> tensors
    for name, entries in found.items():
        if len(entries) > 1:
            entry, why = _choose(source, name, entries, owners[entries[0].file])
            chosen[name] = entry
            for other in entries:
                if other != entry:
                    copies.setdefault((entry.file, other.file, why), []).append(name)
    for part in parts:
        for own, file in part.where.items():
            if file not in (each.file for each in found.get(part.prefix + own, ())):
                message = f"is not in {file}, where the index places it; download both again, or "
                message += "remove it from the index if the model does not need it"
                raise CheckpointError(
                    Problem(message, part.prefix + own, source.label, code="JM121")
                )
    order = {file: i for i, file in enumerate(headers)}
    placed = sorted(chosen.items(), key=lambda item: (order[item[1].file], item[1].start))
    notes = tuple(_note(names, *key) for key, names in copies.items())
    return dict(placed), notes


def _choose(source: Source, name: str, entries: list[Entry], part: Part) -> tuple[Entry, str]:
    """Which of several copies of a tensor is the model's, and why."""
    wanted = part.where.get(name.removeprefix(part.prefix))
    last = entries[-1]
    if wanted is not None:
        entry = next((each for each in entries if each.file == wanted), last)
        if entry is last:
            return entry, "the index names that one"
        if isinstance(source, LocalSource) and equal(source, entry, last):
            return entry, "they are equal"
        return entry, (
            "the index names it; transformers, which reads files in name order, uses the "
            "other if they differ"
        )
    if part.indexed:
        return last, "the index names neither, and transformers uses the last"
    for other in entries[:-1]:
        if not equal(source, other, last):
            message = (
                f"has different values in {other.file} and {last.file}, and no index says which "
                "one is right; write model.safetensors.index.json, which names the right file"
            )
            raise CheckpointError(Problem(message, name, source.label, code="JM122"))
    return entries[0], "they are equal"


def _note(names: list[str], file: str, other: str, why: str) -> str:
    what = f"{names[0]} is" if len(names) == 1 else f"{len(names)} tensors ({names[0]}, ...) are"
    return f"{what} in {file} and in {other}; merged from {file}: {why}"


def equal(source: Source, one: Entry, other: Entry) -> bool:
    """Whether two tensors of a model have one shape, one dtype and the same bytes."""
    if one.spec != other.spec:
        return False
    start = 0
    while start < one.spec.nbytes:
        count = min(STRIDE if start else FIRST_STRIDE, one.spec.nbytes - start)
        a, b = np.empty(count, np.uint8), np.empty(count, np.uint8)
        source.read_into(one.file, one.start + start, a)
        source.read_into(other.file, other.start + start, b)
        if not np.array_equal(a, b):
            return False
        start += count
    return True
