"""Checks of files against each other: weights, index, ledger, what is left over or missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jmerge.ckpt.dtypes import BITS
from jmerge.ckpt.weights import INDEX_SUFFIX, WEIGHTS
from jmerge.ckpt.writer import LEDGER
from jmerge.errors import CheckpointError
from jmerge.verify.folder import SHARD, Finding, Folder

VOCABULARIES = (".model", ".tiktoken")  # how files end that hold one, besides these
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json")


def readable(folder: Folder) -> Iterator[Finding]:
    """Every file that has to be read can be, and headers describe their files to the byte."""
    for name in ("generation_config.json", "tokenizer_config.json", *folder.index_files):
        folder.json(name)
    yield from folder.unreadable


def index(folder: Folder) -> Iterator[Finding]:
    """The index names every tensor, at its file, and nothing else."""
    for name in folder.index_files:
        content = folder.json(name)
        if content is None:
            continue
        entries = content.get("weight_map")
        if not isinstance(entries, dict) or set(entries.values()) != set(folder.files):
            continue  # broken, or of other files: told by `readable` and `stale`
        for tensor, file in entries.items():
            if file in folder.headers and tensor not in folder.headers[file].extents:
                lies = folder.tensors.get(tensor)
                found = f"it is in {lies.file}" if lies else "it is in no file"
                yield Finding(f"the index says it is in {file}; {found}", name, tensor)
        for tensor, entry in folder.tensors.items():
            if tensor not in entries:
                yield Finding(f"is in {entry.file}; the index does not name it", name, tensor)
        yield from _total(folder, name, content.get("metadata"))


def _total(folder: Folder, name: str, metadata: Any) -> Iterator[Finding]:
    told = metadata.get("total_size") if isinstance(metadata, dict) else None
    total = sum(entry.spec.nbytes for entry in folder.tensors.values())
    if folder.whole and type(told) is int and told != total:
        message = f"total_size says {told:,} bytes; the tensors have {total:,}"
        yield Finding(message, name, warning=True)


def duplicates(folder: Folder) -> Iterator[Finding]:
    """No tensor is in two files."""
    for tensor, file in folder.twice:
        yield Finding(
            f"is in {folder.tensors[tensor].file} too; delete the stale file", file, tensor
        )


def stale(folder: Folder) -> Iterator[Finding]:
    """No weight file lies there that the model does not use, and no index that is not of these files."""
    stems = {found[1] for name in folder.files if (found := SHARD.fullmatch(name))}
    for name in folder.names:
        if not name.endswith(WEIGHTS) or name in folder.files:
            continue
        found = SHARD.fullmatch(name)
        rival = (found is not None and found[1] in stems) or folder.ledger is not None
        message = "is no part of the model"
        message += (
            "; delete it, as other programs may load it" if rival else ", which does not use it"
        )
        yield Finding(message, name, warning=not rival)
    for name in folder.index_files:
        content = folder.json(name) or {}
        entries = content.get("weight_map")
        if name.removesuffix(INDEX_SUFFIX) not in stems or not isinstance(entries, dict):
            continue
        strange = sorted({str(file) for file in entries.values()} - set(folder.files))
        if strange and folder.whole:
            message = f"names {strange[0]}, which is not among the weight files; delete the index"
            yield Finding(message, name)


def companions(folder: Folder) -> Iterator[Finding]:
    """What has to lie beside the weights is there."""
    if "config.json" not in folder.names:
        yield Finding("there is no config.json, so nothing says what the model is")
    if len(folder.files) > 1 and not folder.index_files:
        yield Finding(
            f"{len(folder.files)} weight files have no index; transformers cannot load them"
        )
    for value in _code(folder.config.get("auto_map")):
        file = value.split(".")[0] + ".py"
        if "--" not in value and file not in folder.names:
            yield Finding(f"auto_map names {value}, and there is no {file}", "config.json")
    vocabulary = any(n.endswith(VOCABULARIES) or n in VOCABULARY_FILES for n in folder.names)
    if "tokenizer_config.json" in folder.names and not vocabulary:
        message = "there is no vocabulary beside it (tokenizer.json or the like)"
        yield Finding(message, "tokenizer_config.json", warning=True)


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
    named = {
        name.removeprefix(folder.prefix): entry
        for name, entry in tensors.items()
        if lies_in(entry, folder.prefix)
    }
    if not folder.whole:
        return
    for name, entry in named.items():
        yield from _entry(folder, name, entry)
    for name in folder.tensors.keys() - named.keys():
        yield Finding("is not in the ledger", LEDGER, name)


def _entry(folder: Folder, name: str, entry: Any) -> Iterator[Finding]:
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
    found = folder.tensors.get(name)
    if found is None:
        yield Finding("is in the ledger and in no weight file", LEDGER, name)
        return
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
        yield from (Finding(fault.message, name) for fault in error.faults)
        return
    if size is None:
        yield Finding("is gone; the ledger lists it", name)
    elif size != told and name not in {each.file for each in folder.unreadable}:
        yield Finding(f"has {size:,} bytes, the ledger says {told}", name)


def lies_in(entry: Any, prefix: str) -> bool:
    """Whether a tensor of the ledger is in the folder `prefix` (with a slash) of the output; one that is no entry is in
    the outermost."""
    file = entry.get("file") if isinstance(entry, dict) else None
    folder, slash, _ = file.rpartition("/") if isinstance(file, str) else ("", "", "")
    return folder + slash == prefix


def is_crc32(text: str) -> bool:
    """Whether `text` is a checksum as the ledger writes it."""
    return len(text) == 8 and all(letter in "0123456789abcdef" for letter in text)
