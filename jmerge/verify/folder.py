"""What is in a model folder, read as far as it can be, for checks to look at."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jmerge.arch.infer import Layout, infer_layout
from jmerge.ckpt.dtypes import TensorSpec
from jmerge.ckpt.open import Entry
from jmerge.ckpt.safetensors import Header, header_of
from jmerge.ckpt.source import Source
from jmerge.ckpt.weights import INDEX_SUFFIX, STEMS, read_json_file, weight_files
from jmerge.ckpt.writer import LEDGER
from jmerge.errors import CheckpointError

SHARD = re.compile(rf"({'|'.join(STEMS)})(-\d+-of-\d+)?\.safetensors")


class Finding(NamedTuple):
    """Something that is not as it should be: one line."""

    message: str
    file: str = ""  # inside the folder
    tensor: str = ""
    warning: bool = False  # strange, but the model works


class Folder:
    """A model folder. Reading it never fails for what is in the files: that is kept in `unreadable`.

    Attributes:
      source: its files.
      names: their names.
      files: its weight files.
      headers: of those that can be read.
      tensors: name -> where it lies; the first place of those that have several.
      twice: (tensor, file) of every further place.
      config: config.json; empty when there is none.
      ledger: jmerge's; None when there is none.
      prefix: where the ledger's folder has this one, with a slash; empty when it is the same.
      layout: the structure that names and config show.
      unreadable: what could not be read, and why.
    """

    def __init__(
        self, source: Source, ledger: Mapping[str, Any] | None = None, prefix: str = ""
    ) -> None:
        self.source = source
        self.prefix = prefix
        self.unreadable: list[Finding] = []
        self.names = source.names()
        self.files = self._weight_files()
        self.headers: dict[str, Header] = {}
        for name in self.files:
            try:
                self.headers[name] = header_of(source, name)
            except CheckpointError as error:
                self._unreadable(name, error)
        self.config = self.json("config.json") or {}
        self.ledger = ledger if ledger is not None else self.json(LEDGER)
        self.tensors: dict[str, Entry] = {}
        self.twice: list[tuple[str, str]] = []
        for file, header in self.headers.items():
            for name, extent in header.extents.items():
                if name in self.tensors:
                    self.twice.append((name, file))
                else:
                    self.tensors[name] = Entry(extent.spec, file, extent.start)
        self.layout = Layout({}, {}, (), (), (), ())
        try:
            self.layout = infer_layout(self.specs, self.config)
        except CheckpointError as error:
            self._unreadable("config.json", error)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Name -> what the tensor is."""
        return {name: entry.spec for name, entry in self.tensors.items()}

    @property
    def whole(self) -> bool:
        """Whether every weight file could be read: else what is missing would be told twice."""
        return bool(self.files) and len(self.headers) == len(self.files)

    @property
    def index_files(self) -> list[str]:
        """The index files, of any stem."""
        return [stem + INDEX_SUFFIX for stem in STEMS if stem + INDEX_SUFFIX in self.names]

    def json(self, name: str) -> dict[str, Any] | None:
        """A file of JSON; None when there is none, or when it cannot be read, which is then noted once."""
        if name not in self.names or any(each.file == name for each in self.unreadable):
            return None
        try:
            return read_json_file(self.source, name)
        except CheckpointError as error:
            self._unreadable(name, error)
            return None

    def text(self, name: str) -> str | None:
        """A file of text, likewise."""
        if name not in self.names:
            return None
        try:
            return self.source.read(name).decode("utf-8")
        except CheckpointError as error:
            self._unreadable(name, error)
        except UnicodeDecodeError:
            self.unreadable.append(Finding("is not text in UTF-8", name))
        return None

    def _weight_files(self) -> list[str]:
        try:
            return weight_files(self.source)
        except CheckpointError as error:
            for fault in error.faults:
                file = fault.file.removeprefix(self.source.shown("")).lstrip("/")
                known = file if file in self.names else ""
                self.unreadable.append(Finding(fault.message, known, fault.where))
            return [name for name in self.names if SHARD.fullmatch(name)]

    def _unreadable(self, name: str, error: CheckpointError) -> None:
        self.unreadable += [Finding(fault.message, name, fault.where) for fault in error.faults]
