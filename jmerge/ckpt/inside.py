"""A folder in the folder of a model, as a source of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np

from jmerge.ckpt.source import Source

T = TypeVar("T")
U = TypeVar("U")


class Inside(Source):
    """A folder in the folder of a model."""

    def __init__(self, source: Source, folder: str) -> None:
        self._source = source
        self._folder = folder
        self.label = source.shown(folder)
        self.revision = source.revision

    def names(self, folder: str = "") -> list[str]:
        return self._source.names(self._at(folder) if folder else self._folder)

    def folders(self, folder: str = "") -> list[str]:
        return self._source.folders(self._at(folder) if folder else self._folder)

    def size(self, name: str) -> int | None:
        return self._source.size(self._at(name))

    def read_into(self, name: str, start: int, buffer: np.ndarray) -> None:
        self._source.read_into(self._at(name), start, buffer)

    def path(self, name: str) -> Path | None:
        return self._source.path(self._at(name))

    def map(self, function: Callable[[T], U], items: Iterable[T]) -> list[U]:
        return self._source.map(function, items)

    def why_empty(self) -> str:
        return self._source.why_empty()

    def _at(self, name: str) -> str:
        return f"{self._folder}/{name}"


def inside(source: Source, folder: str) -> Source:
    """The files of `folder` in that of `source`; the source itself when it has no name."""
    return Inside(source, folder) if folder else source
