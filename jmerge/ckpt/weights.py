"""Which files of a folder are its weights, in the order in which transformers looks for them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jmerge.ckpt.instead import found_instead, unfinished
from jmerge.ckpt.jsontext import check_values, parse_json
from jmerge.ckpt.source import LocalSource, Source
from jmerge.errors import CONTROL, CheckpointError, Problem

WEIGHTS = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
STEMS = ("model", "consolidated", "diffusion_pytorch_model")  # the first that exists wins
EXPLICIT = "transformers_weights"  # the key of config.json that names the weights of a folder
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")  # which go before variants
VARIANT = r"[A-Za-z][\w-]*"  # such as fp16 in model.fp16.safetensors
MAX_JSON_BYTES = (
    100_000_000  # as of headers; real indexes have up to 20 MB, the largest vocabularies 35 MB
)
MAX_FILES = 10_000  # each is looked up, on a server by a request; real models have up to 200


def read_json_file(
    source: Source, name: str, missing: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The JSON object in a file, or `missing` when there is no such file; CheckpointError when it is not one."""
    if missing is not None and source.size(name) is None:
        return missing
    value = read_json(source, name)
    if not isinstance(value, dict):
        raise source.broken(name, "is not a JSON object", code="JM124")
    return value


def read_json(source: Source, name: str) -> Any:
    """What a JSON file says; CheckpointError when it is none, or has what no file beside weights needs."""
    if source.size_of(name) > MAX_JSON_BYTES:
        raise source.broken(name, f"is larger than {MAX_JSON_BYTES:,} bytes", code="JM124")
    index = name.endswith(INDEX_SUFFIX)
    try:
        value = parse_json(source.read(name), repeats=not index, constants=not index)
        if not index:  # whose values are looked at one by one
            check_values(value)
    except ValueError as error:
        raise source.broken(name, str(error), code="JM124") from error
    return value


class Weights(NamedTuple):
    """The weight files of a folder.

    Attributes:
      files: their names, in name order.
      where: tensor -> file, as the index says that was followed; empty when none was.
      indexed: whether one was followed.
      notes: what else lies there that somebody could take for the model.
    """

    files: tuple[str, ...]
    where: Mapping[str, str] = {}
    indexed: bool = False
    notes: tuple[str, ...] = ()


def find_weights(source: Source) -> Weights:
    """The weights of a folder as transformers finds them: the file that config.json names, `model.safetensors`, the
    files that `model.safetensors.index.json` names. Then a whole set of numbered parts without an index, the same of
    other stems, and the one variant (`model.fp16.safetensors`) of a folder that has nothing else.

    Raises:
      CheckpointError: there are none, or not all of a set; says what is there instead and what to do.
    """
    explicit = _explicit(source)
    if explicit is not None:
        return explicit
    for stem in STEMS:
        found = _of_stem(source, stem, "")
        if found is not None:
            pickled = _pickled(source) if stem != STEMS[0] else None
            note = f"also has {pickled}, which transformers loads instead of {found.files[0]}"
            return found._replace(notes=(*found.notes, note)) if pickled else found
    pattern = re.compile(rf"(?:{'|'.join(STEMS)})(?:-\d+-of-\d+)?\.({VARIANT})\.safetensors")
    named = (pattern.fullmatch(name) for name in source.names())
    variants = sorted({each[1] for each in named if each})
    if len(variants) == 1 and _pickled(source) is None:
        for stem in STEMS:
            found = _of_stem(source, stem, f".{variants[0]}")
            if found is not None:
                note = f"has its weights only as the variant '{variants[0]}' ({found.files[0]})"
                return found._replace(notes=(note,))
    raise CheckpointError(found_instead(source, variants))


def _pickled(source: Source) -> str | None:
    """The pickled weights that transformers loads where it finds none of its own in safetensors."""
    return next((name for name in PICKLED if source.size(name) is not None), None)


def _explicit(source: Source) -> Weights | None:
    """The weights that config.json names, if it does."""
    try:
        name = read_json_file(source, "config.json", missing={}).get(EXPLICIT)
    except CheckpointError:  # told by who needs it
        return None
    if name is None:
        return None
    if not isinstance(name, str) or not name.endswith((WEIGHTS, INDEX_SUFFIX)):
        message = f"{EXPLICIT} is not the name of a {WEIGHTS} file or its index: {name!r}"
        raise source.broken("config.json", message, code="JM124")
    file = path_inside(name)
    if file is None:
        raise source.broken(
            "config.json", f"{EXPLICIT} names a file outside the folder: {name!r}", code="JM124"
        )
    if source.size(file) is None:
        raise source.broken(
            "config.json", f"{EXPLICIT} names {name}, which does not exist", code="JM124"
        )
    if not file.endswith(INDEX_SUFFIX):
        return Weights((file,))
    found = _indexed(source, file)
    if found is None:
        raise source.broken(file, "names no tensor", code="JM121")
    return found


def _of_stem(source: Source, stem: str, variant: str) -> Weights | None:
    """The weights with names of one stem, None when there are none; CheckpointError when some of them are missing."""
    single, index = f"{stem}{variant}.safetensors", f"{stem}.safetensors.index{variant}.json"
    rival = source.size(index) is not None
    if source.size(single) is not None:
        return Weights((single,), notes=_beside(source, single, index) if rival else ())
    found = _indexed(source, index) if rival else None
    if found is not None:
        return found
    end = re.escape(f"{variant}.safetensors")
    pattern = re.compile(rf"{re.escape(stem)}-(\d+)-of-(\d+){end}")
    sets: dict[int, list[str]] = {}
    for name in source.names():
        if part := pattern.fullmatch(name):
            sets.setdefault(int(part[2]), []).append(name)
    for count, parts in sets.items():
        if len(parts) == count:
            return Weights(tuple(parts))
    missing = [f"{count - len(parts)} of {count} parts of {stem}" for count, parts in sets.items()]
    if missing:
        raise _missing(source, missing)
    return None


def _beside(source: Source, single: str, index: str) -> tuple[str, ...]:
    """What to say of an index that lies beside a whole model of the same name, whose shards are there too."""
    try:
        found = _indexed(source, index)
    except CheckpointError:  # left over, and nobody reads it
        return ()
    if found is None or found.files == (single,):
        return ()
    message = f"has {single} and {len(found.files)} files that {index} names; "
    message += f"transformers loads {single}"
    return (f"{message}, so jmerge merges that",)


def _indexed(source: Source, index: str) -> Weights | None:
    """The weights that an index names, None when it names none; CheckpointError when it is no index, or files are
    missing."""
    where = read_index(source, index)
    if not where:
        return None
    files = tuple(sorted(set(where.values())))
    absent = [
        name
        for name, size in zip(files, source.map(source.size, files), strict=True)
        if size is None
    ]
    if absent:
        raise _missing(source, absent)
    return Weights(files, where, indexed=True)


def _missing(source: Source, what: list[str]) -> CheckpointError:
    shown = ", ".join(what[:3]) + (f" and {len(what) - 3} more" if len(what) > 3 else "")
    message = f"weight files are missing: {shown}{unfinished(source)}{source.why_empty()}"
    return CheckpointError(Problem(message, file=source.label, code="JM114"))


def read_index(source: Source, index: str) -> dict[str, str]:
    """Tensor -> file of an index, by their paths in the folder.

    Raises:
      CheckpointError: it is no index, or names a file outside the folder.
    """
    entries = read_json_file(source, index).get("weight_map")
    if not isinstance(entries, dict) or not all(isinstance(file, str) for file in entries.values()):
        raise source.broken(index, "has no valid 'weight_map'", code="JM121")
    paths = {file: path_inside(file) for file in set(entries.values())}
    where = {}
    for tensor, file in entries.items():
        path = paths[file]
        if path is None:
            message = f"names a file outside the folder: {file!r}; write its name in the folder"
            raise source.broken(index, message, tensor, code="JM121")
        where[tensor] = path
    if len(paths) > MAX_FILES:
        raise source.broken(
            index, f"names {len(paths):,} weight files, more than {MAX_FILES:,}", code="JM121"
        )
    return where


def path_inside(file: str) -> str | None:
    """The path in a folder that a text such as `./x` means; None when it leads out of it, or means no file."""
    path = posixpath.normpath(file)
    out = path in (".", "..") or path.startswith(("../", "/"))
    return None if out or "\\" in file or file.endswith("/") or CONTROL.search(file) else path


HELD_BACK = ".aria2"  # beside a file that this downloader made at full size and did not fill yet


def check_arrived(source: Source, files: Sequence[str]) -> None:
    """CheckpointError when weight files are pointers of git-LFS, or their download has not come to its end."""
    sizes = source.map(source.size, files)
    there = [name for name, size in zip(files, sizes, strict=True) if size is not None]
    pointers = [name for name in there if source.is_pointer(name)]
    if pointers:
        if len(files) == 1:
            what = f"{pointers[0]} is a git-LFS pointer, not the weights"
        else:
            what = (
                f"{len(pointers)} of {len(files)} weight files are git-LFS pointers ({pointers[0]})"
            )
        raise CheckpointError(
            Problem(f"{what}; run: git lfs pull", file=source.label, code="JM113")
        )
    if not isinstance(source, LocalSource):
        return
    for name in there:
        if source.size(name + HELD_BACK) is not None:
            message = (
                f"its download was interrupted ({name}{HELD_BACK} is beside it); download it again"
            )
            raise source.broken(name, message, code="JM114")
