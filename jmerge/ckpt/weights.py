"""Which files of a folder are its weights, and what its index says."""

from __future__ import annotations

import re
from typing import Any

from jmerge.ckpt.jsontext import check_values, parse_json
from jmerge.ckpt.source import Source
from jmerge.errors import CONTROL, CheckpointError, Fault

WEIGHTS = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
STEMS = ("model", "consolidated", "diffusion_pytorch_model")  # the first that exists wins
PICKLES = (".bin", ".pt", ".pth")
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
        raise source.broken(name, "is not a JSON object")
    return value


def read_json(source: Source, name: str) -> Any:
    """What a JSON file says; CheckpointError when it is none, or has what no file beside weights needs."""
    if source.size_of(name) > MAX_JSON_BYTES:
        raise source.broken(name, f"is larger than {MAX_JSON_BYTES:,} bytes")
    index = name.endswith(INDEX_SUFFIX)
    try:
        value = parse_json(source.read(name), tolerant=not index)
        if not index:  # whose values are looked at one by one
            check_values(value)
    except ValueError as error:
        raise source.broken(name, str(error)) from error
    return value


def weight_files(source: Source) -> list[str]:
    """The weight files of a folder, in name order.

    Raises:
      CheckpointError: there are none, not all of a set, or pickled ones only.
    """
    missing: list[str] = []
    for stem in STEMS:
        indexed = sorted(set(weight_map(source, None, stem).values()))
        absent = [name for name in indexed if source.size(name) is None]
        if indexed and not absent:
            return indexed
        if source.size(f"{stem}.safetensors") is not None:
            return [f"{stem}.safetensors"]
        if absent:
            missing += absent
            continue
        pattern = re.compile(rf"{re.escape(stem)}-(\d+)-of-(\d+)\.safetensors")
        sets: dict[int, list[str]] = {}
        for name in source.names():
            if found := pattern.fullmatch(name):
                sets.setdefault(int(found[2]), []).append(name)
        for count, parts in sets.items():
            if len(parts) == count:
                return parts
            missing.append(f"{count - len(parts)} of {count} parts of {stem}")
    if missing:
        message = f"weight files are missing: {', '.join(missing[:3])}{source.why_empty()}"
    elif any(name.endswith(PICKLES) for name in source.names()):
        message = "has only pickled weights (.bin); convert them to safetensors first"
    else:
        message = "holds no model.safetensors and no model.safetensors.index.json"
        message += source.why_empty()
    raise CheckpointError(Fault(message, file=source.label))


def weight_map(source: Source, names: list[str] | None, stem: str | None = None) -> dict[str, str]:
    """The checked weight map of an index file; empty when there is none, or it does not name exactly `names`."""
    for each in (stem,) if stem else STEMS:
        index = each + INDEX_SUFFIX
        if source.size(index) is None:
            continue
        entries = read_json_file(source, index).get("weight_map")
        if not isinstance(entries, dict) or not all(
            isinstance(file, str) for file in entries.values()
        ):
            raise source.broken(index, "has no valid 'weight_map'")
        for tensor, file in entries.items():
            if file in ("", ".", "..") or "/" in file or "\\" in file or CONTROL.search(file):
                raise source.broken(index, f"names a file outside the folder: {file!r}", tensor)
        count = len(set(entries.values()))
        if count > MAX_FILES:
            raise source.broken(index, f"names {count:,} weight files, more than {MAX_FILES:,}")
        if names is None or set(entries.values()) == set(names):
            return entries
    return {}
