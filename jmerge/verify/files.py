"""Checks of files against each other: weights, index, ledger, what is left over or missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from jmerge.ckpt.copies import Entry, equal
from jmerge.ckpt.donor import CHECKED
from jmerge.ckpt.source import inside
from jmerge.ckpt.weights import INDEX_SUFFIX, WEIGHTS, read_index
from jmerge.ckpt.writer import LEDGER
from jmerge.dtypes import BITS
from jmerge.errors import CheckpointError
from jmerge.tokens.model import ADDED, CONFIG, JINJA, SPECIAL_MAP
from jmerge.verify.folder import SHARD, Finding, Folder, place_of

VOCABULARIES = (".model", ".tiktoken")  # how files end that hold one, besides these
# Files beside config.json that have to be JSON, and text.
READ = ("generation_config.json", CONFIG, SPECIAL_MAP, ADDED, "vocab.json", *CHECKED)
TEXTS = ("vocab.txt", "merges.txt", JINJA)
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json")


def readable(folder: Folder) -> Iterator[Finding]:
    """Every file that has to be read can be, and headers describe their files to the byte."""
    for name in (*(folder.home + each for each in READ), *folder.index_files):
        folder.json(name)
    for name in TEXTS:
        folder.check_text(folder.home + name)
    _ = folder.tokens  # which notes what cannot be read
    yield from folder.unreadable


def index(folder: Folder) -> Iterator[Finding]:
    """The index names every tensor, at its file, and nothing else."""
    for name in folder.index_files:
        content = folder.json(name)
        if content is None:
            continue
        place = place_of(name)
        entries = _entries(folder, name)
        files = [file.removeprefix(place) for file in folder.files if file.startswith(place)]
        if not set(entries.values()) <= set(files) or not isinstance(
            content.get("weight_map"), dict
        ):
            continue  # broken, or of other files: told by `readable` and `stale`
        for tensor, file in entries.items():
            header = folder.headers.get(place + file)
            if header is not None and tensor not in header.extents:
                lies = folder.tensors.get(folder.name_in(name, tensor))
                found = f"it is in {lies.file}" if lies else "it is in no file"
                yield Finding(f"the index says it is in {file}; {found}", name, tensor)
        named = {folder.name_in(name, tensor) for tensor in entries}
        here = {
            t: each for t, each in folder.tensors.items() if folder.place_of(each.file) == place
        }
        for tensor, entry in here.items():
            if tensor not in named:
                yield Finding(f"is in {entry.file}; the index does not name it", name, tensor)
        yield from _total(folder, name, content.get("metadata"), here.values())


def _total(folder: Folder, name: str, metadata: Any, entries: Iterable[Entry]) -> Iterator[Finding]:
    told = metadata.get("total_size") if isinstance(metadata, dict) else None
    total = sum(entry.spec.nbytes for entry in entries)
    if folder.whole and type(told) is int and told != total:
        message = f"total_size says {told:,} bytes; the tensors have {total:,}"
        yield Finding(message, name, warning=True)


def _entries(folder: Folder, name: str) -> dict[str, str]:
    """Tensor -> file of an index; empty when it cannot be read, which `readable` tells."""
    if folder.json(name) is None:
        return {}
    place = place_of(name)
    try:
        return read_index(inside(folder.source, place.removesuffix("/")), name.removeprefix(place))
    except CheckpointError:
        return {}


def duplicates(folder: Folder) -> Iterator[Finding]:
    """No tensor is in two files."""
    for tensor, other in folder.twice:
        used = folder.tensors[tensor]
        indexed = folder.where.get(tensor) == used.file
        if equal(folder.source, used, other):
            yield Finding(f"is in {other.file} too, and equal", used.file, tensor, warning=True)
        elif indexed and folder.files.index(used.file) > folder.files.index(other.file):
            message = f"is in {other.file} too, which the index passes over"
            yield Finding(message, used.file, tensor, warning=True)
        else:
            message = f"is in {other.file} too, with other values"
            if indexed:
                message += ", which transformers takes although the index names this file"
            else:
                message += ", and no index says which counts"
            yield Finding(message, used.file, tensor)


def stale(folder: Folder) -> Iterator[Finding]:
    """No weight file lies there that the model does not use, and no index that is not of these files."""
    for place in folder.places:
        files = folder.inside(place, folder.files)
        stems = {found[1] for name in files if (found := SHARD.fullmatch(name))}
        for name in folder.inside(place, folder.names):
            if not name.endswith(WEIGHTS) or name in files:
                continue
            found = SHARD.fullmatch(name)
            rival = (found is not None and found[1] in stems) or folder.ledger is not None
            message = "is not part of the model"
            message += (
                "; delete it, as other programs may load it" if rival else ", which does not use it"
            )
            yield Finding(message, place + name, warning=not rival)
        for name in folder.inside(place, folder.index_files):
            if name.removesuffix(INDEX_SUFFIX) not in stems:
                continue
            own = {file.removeprefix(place) for file in folder.files if file.startswith(place)}
            strange = sorted(set(_entries(folder, place + name).values()) - own)
            if strange and folder.whole:
                message = (
                    f"names {strange[0]}, which is not among the weight files; delete the index"
                )
                yield Finding(message, place + name)


def companions(folder: Folder) -> Iterator[Finding]:
    """What has to lie beside the weights is there."""
    if folder.known and folder.config_file not in folder.names:
        yield Finding(f"there is no {folder.config_file}, so nothing says what the model is")
    for place in folder.places:
        files = folder.inside(place, folder.files)
        if len(files) > 1 and not folder.inside(place, folder.index_files):
            where = f" of {place}" if place else ""
            yield Finding(
                f"{len(files)} weight files{where} have no index; transformers cannot load them"
            )
    beside = folder.inside(folder.home, folder.names)
    for value in _code(folder.config.get("auto_map")):
        file = value.split(".")[0] + ".py"
        if "--" not in value and file not in beside:
            yield Finding(f"auto_map names {value}, and there is no {file}", folder.config_file)
    vocabulary = any(n.endswith(VOCABULARIES) or n in VOCABULARY_FILES for n in beside)
    if CONFIG in beside and not vocabulary:
        message = "there is no vocabulary beside it (tokenizer.json or the like)"
        yield Finding(message, folder.home + CONFIG, warning=True)


def _code(auto_map: Any) -> Iterator[str]:
    """The classes that an auto_map names, of one or several for each task."""
    for value in auto_map.values() if isinstance(auto_map, dict) else ():
        yield from (
            each
            for each in (value if isinstance(value, list) else [value])
            if isinstance(each, str)
        )


def ledger(folder: Folder) -> Iterator[Finding]:
    """What jmerge's ledger says of files and tensors is so, but for the values."""
    told = folder.ledger or {}
    files, tensors = told.get("files"), told.get("tensors")
    if not isinstance(files, dict) or not isinstance(tensors, dict):
        yield Finding("is not a ledger of jmerge: it lacks 'files' or 'tensors'", LEDGER)
        return
    for name, size in files.items():
        if name.startswith(folder.prefix):
            yield from _size(folder, name.removeprefix(folder.prefix), size)
    if not folder.whole:
        return
    own = {folder.name_in_ledger(name): name for name in folder.tensors}
    named = {name: entry for name, entry in tensors.items() if folder.lists(entry)}
    for name, entry in named.items():
        yield from _entry(folder, name, own.get(name), entry)
    for name, short in own.items():
        if name not in named:
            yield Finding("is not in the ledger", LEDGER, short)


def _entry(folder: Folder, name: str, own: str | None, entry: Any) -> Iterator[Finding]:
    """What is wrong with the ledger's entry of the tensor `name`, which is `own` here; None: it is in no file."""
    match entry:
        case {
            "file": str(file),
            "dtype": str(dtype),
            "shape": list(shape),
            "crc32": str(crc32),
        } if dtype in BITS and all(type(size) is int for size in shape) and is_crc32(crc32):
            pass
        case _:
            yield Finding("its entry needs file, dtype, shape and crc32", LEDGER, name)
            return
    if own is None:
        yield Finding("is in the ledger and in no weight file", LEDGER, name)
        return
    found = folder.tensors[own]
    told = (dtype, tuple(shape), file.removeprefix(folder.prefix))
    if told != (found.spec.dtype, found.spec.shape, found.file):
        message = f"is {found.spec} in {found.file}, the ledger says {dtype}{shape} in {file}"
        yield Finding(message, LEDGER, name)


def _size(folder: Folder, name: str, told: Any) -> Iterator[Finding]:
    if ".." in name.split("/") or name.startswith("/") or "\\" in name:
        yield Finding(f"names a file outside the folder: {name!r}", LEDGER)
        return
    try:
        size = folder.source.size(name)
    except CheckpointError as error:
        yield from (Finding(problem.message, name, code=problem.code) for problem in error.problems)
        return
    if size is None:
        yield Finding("is gone; the ledger lists it", name)
    elif size != told and name not in {each.file for each in folder.unreadable}:
        yield Finding(f"has {size:,} bytes, the ledger says {told}", name)


def is_crc32(text: str) -> bool:
    """Whether `text` is a checksum as the ledger writes it."""
    return len(text) == 8 and all(letter in "0123456789abcdef" for letter in text)
