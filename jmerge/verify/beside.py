"""The check of the files beside the weights."""

from __future__ import annotations

from collections.abc import Iterator

from jmerge.ckpt.source import NOT_FETCHED
from jmerge.tokens.model import CONFIG, TOKENIZER
from jmerge.verify import files
from jmerge.verify.folder import Finding, Folder


def companions(folder: Folder) -> Iterator[Finding]:
    """What has to lie beside the weights is there."""
    yield from files.companions(folder)
    known = {*folder.files, *(each.file for each in folder.unreadable)}
    for name in folder.names:
        if name not in known and folder.source.is_pointer(name):
            yield Finding(NOT_FETCHED, name)
    beside = folder.inside(folder.home, folder.names)
    told = (folder.json(folder.home + CONFIG) or {}) if TOKENIZER not in beside else {}
    for key, value in told.items():
        plain = isinstance(value, str) and value and not set(value) & set("/\\")
        if key.endswith("_file") and plain and value not in beside:
            message = f"{key} is {value}, and there is no such file"
            yield Finding(message, folder.home + CONFIG, warning=True)
