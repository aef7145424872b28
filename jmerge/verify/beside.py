"""Checks of the files beside the weights."""

from __future__ import annotations

from collections.abc import Iterator

from jmerge.ckpt.source import NOT_FETCHED
from jmerge.errors import CheckpointError
from jmerge.tokens.model import CONFIG, TOKENIZER
from jmerge.verify import files
from jmerge.verify.folder import Finding, Folder


def readable(folder: Folder) -> Iterator[Finding]:
    """Every file that has to be read can be, and headers describe their files to the byte."""
    yield from files.readable(folder)
    known = {each.file for each in folder.unreadable}
    for name in folder.names:
        try:
            pointer = name not in known and folder.source.is_pointer(name)
        except CheckpointError:
            continue  # nothing of the model's, which is read above
        if pointer:
            yield Finding(NOT_FETCHED, name)


def companions(folder: Folder) -> Iterator[Finding]:
    """What has to lie beside the weights is there."""
    yield from files.companions(folder)
    beside = folder.inside(folder.home, folder.names)
    told = (folder.json(folder.home + CONFIG) or {}) if TOKENIZER not in beside else {}
    for key, value in told.items():
        plain = isinstance(value, str) and value and not set(value) & set("/\\")
        if key.endswith("_file") and plain and value not in beside:
            message = f"{key} is {value}, and there is no such file"
            yield Finding(message, folder.home + CONFIG, warning=True)
