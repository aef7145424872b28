"""All checks of a model folder, and the report that they make together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jmerge.ckpt.sentence import MODULES
from jmerge.ckpt.source import LocalSource, Source
from jmerge.ckpt.weights import WEIGHTS, read_json_file
from jmerge.ckpt.writer import LEDGER
from jmerge.errors import CheckpointError
from jmerge.verify import (
    beside,
    files,
    layers,
    names,
    numbers,
    places,
    said,
    structure,
    tables,
    values,
)
from jmerge.verify.folder import Finding, Folder
from jmerge.verify.tokens import tokens
from jmerge.verify.values import Values, read_values

READABLE = "readable"
# Checks of headers, names and small files.
QUICK: Mapping[str, Callable[[Folder], Iterator[Finding]]] = {
    READABLE: beside.readable,
    "index": files.index,
    "duplicates": files.duplicates,
    "stale": files.stale,
    "companions": beside.companions,
    "ledger": files.ledger,
    "names": names.names,
    "places": places.places,
    "layers": layers.layers,
    "config": said.said,
    "shapes": structure.shapes,
    "dtypes": structure.dtypes,
    "numbers": numbers.numbers,
    "ties": tables.ties,
    "tokens": tokens,
}
# Checks of all bytes.
DEEP: Mapping[str, Callable[[Folder, Mapping[str, Values]], Iterator[Finding]]] = {
    "nonfinite": values.nonfinite,
    "checksums": values.checksums,
    "same table": values.same_table,
}
# Where a check says something; elsewhere it is left out.
APPLIES: Mapping[str, Callable[[Folder], bool]] = {
    "index": lambda folder: bool(folder.index_files),
    "ledger": lambda folder: folder.ledger is not None,
    "checksums": lambda folder: folder.ledger is not None,
    "same table": lambda folder: tables.tied_tables(folder) is not None,
    "tokens": lambda folder: bool(folder.layout.embeddings),
}
# Checks that need every tensor.
OF_ALL = ("layers", "config", "ties")
# What the writer alone answers for; the rest may be so in the inputs too.
MISSING = "companions"  # which a merge takes from its inputs as far as they have them
WRITTEN = (READABLE, "index", "duplicates", "stale", "ledger")
OF_FILES = (*WRITTEN, MISSING)  # the rest is of tensors, and says nothing where none could be read


class Checked(NamedTuple):
    """A check and what it found."""

    name: str
    findings: tuple[Finding, ...]
    skipped: str = ""  # why it could not look at what it is about

    @property
    def passed(self) -> bool:
        """Whether it was made and found nothing."""
        return not self.findings and not self.skipped

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What is wrong; the rest is strange."""
        return tuple(each for each in self.findings if not each.warning)


@dataclass(frozen=True)
class Verified:
    """One model folder and what was found."""

    folder: Folder
    label: str  # where it is
    checks: tuple[Checked, ...]

    @property
    def fine(self) -> bool:
        """Whether there is no problem."""
        return not any(each.problems for each in self.checks)


def verify(
    source: Source, *, deep: bool = False, tell: Callable[[int], None] = lambda nbytes: None
) -> list[Verified]:
    """The checks of the model in `source`, or of those in its folders where a ledger says that it holds several.

    Args:
      source: a folder, from `find_source`.
      deep: read every byte too.
      tell: called with the bytes of every part that is then read.

    Raises:
      CheckpointError, RunError: a file cannot be read although its header could.
    """
    return [_verified(folder, deep, tell) for folder in folders(source)]


def folders(source: Source) -> list[Folder]:
    """The models of a folder of ours, of which methods make one or several, or the one of another's."""
    if not isinstance(source, LocalSource):
        return [Folder(source)]
    try:
        ledger = read_json_file(source, LEDGER, missing={})
    except CheckpointError:  # told by `readable`
        return [Folder(source)]
    prefixes, tensors, files = set(), ledger.get("tensors"), ledger.get("files")
    if isinstance(files, dict) and MODULES in files:
        return [Folder(source)]  # whose tensors are in the folders of its modules
    for entry in tensors.values() if isinstance(tensors, dict) else ():
        file = entry.get("file") if isinstance(entry, dict) else None
        name, slash, rest = file.partition("/") if isinstance(file, str) else ("", "", "")
        if slash and rest.count("/") < 2 and name not in ("", ".", ".."):
            prefixes.add(name)
    there = sorted(name for name in prefixes if os.path.isdir(source.folder / name))
    inner = [Folder(LocalSource(source.folder / name), ledger, f"{name}/") for name in there]
    own = any(name.endswith(WEIGHTS) for name in source.names())
    # the outer one, too, where it tells that an inner one is gone
    outer = own or len(there) < max(len(prefixes), 1)
    return [Folder(source), *inner] if outer else inner


def _verified(folder: Folder, deep: bool, tell: Callable[[int], None]) -> Verified:
    applied = [name for name in QUICK if APPLIES.get(name, _always)(folder)]
    # `readable` last, since the others try to read files too
    made = {name: _checked(name, folder, QUICK[name]) for name in reversed(applied)}
    if deep:
        found = read_values(folder, tell)
        applied += [name for name in DEEP if APPLIES.get(name, _always)(folder)]
        made |= {
            name: _checked(name, folder, check, found)
            for name, check in DEEP.items()
            if name in applied
        }
    return Verified(folder, folder.source.label, tuple(made[name] for name in applied))


def _always(folder: Folder) -> bool:
    return True


def _checked(name: str, folder: Folder, check: Callable[..., Any], *rest: Any) -> Checked:
    findings = tuple(dict.fromkeys(check(folder, *rest)))
    skipped = ""
    if not findings and name not in OF_FILES and not folder.tensors:
        skipped = "no tensor could be read"
    elif not findings and name in OF_ALL and not folder.whole:
        skipped = "not every weight file could be read"
    return Checked(name, findings, skipped)
