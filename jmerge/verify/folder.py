"""What is in a model folder, read as far as it can be, for checks to look at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from jmerge.arch.infer import Layout, infer_layout
from jmerge.ckpt.copies import Entry
from jmerge.ckpt.open import Checkpoint
from jmerge.ckpt.safetensors import Header, header_of
from jmerge.ckpt.sentence import MODULES, Module, main_module, read_modules
from jmerge.ckpt.source import Source, inside
from jmerge.ckpt.weights import INDEX_SUFFIX, STEMS, find_weights, read_json_file
from jmerge.ckpt.writer import LEDGER
from jmerge.dtypes import TensorSpec
from jmerge.errors import CheckpointError
from jmerge.plan.pairing import View, build_views
from jmerge.plan.steps import placed_name
from jmerge.recipe.refs import ModelRef
from jmerge.tokens.model import TOKENIZER, ModelTokens, read_tokens, vocabulary_file

SHARD = re.compile(rf"({'|'.join(STEMS)})(-\d+-of-\d+)?\.safetensors")


class Finding(NamedTuple):
    """Something that is not as it should be: one line."""

    message: str
    file: str = ""  # inside the folder
    tensor: str = ""
    warning: bool = False  # strange, but the model works
    code: str = ""  # of a file that cannot be read, as errors have it


class Folder:
    """A model folder. Reading it never fails for what is in the files: that is kept in `unreadable`.

    Attributes:
      source: its files.
      known: whether it is known which folders in it belong to it.
      modules: of a Sentence Transformers model; else empty.
      places: the folders in it that belong to it, with a slash; the first is itself and empty.
      home: the one in which config.json lies; mostly empty.
      names: the files in all of them, by their paths in it.
      files: its weight files.
      headers: of those that can be read.
      tensors: name -> where it lies; of several places that which the index names, else the first. Names of modules after the first with
        weights begin with their folder, as those of a `Checkpoint`.
      where: name -> file, as the indexes say that are followed.
      twice: (tensor, where it lies too) of every further place.
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
        self.known = True
        self.names = source.names()
        self.modules = self._modules()
        main = main_module(self.modules)
        self.home = main.prefix if main else ""
        self.places = tuple(dict.fromkeys(("", *(module.prefix for module in self.modules))))
        for place in self.places[1:]:
            self.names += [place + name for name in source.names(place.removesuffix("/"))]
        self.where: dict[str, str] = {}
        self.files = self._module_files() if main else self._weight_files()
        self.headers: dict[str, Header] = {}
        for name in self.files:
            try:
                self.headers[name] = header_of(source, name)
            except CheckpointError as error:
                self._unreadable(name, error)
        self.config = self.json(self.config_file) or {}
        self.ledger = ledger if ledger is not None else self.json(LEDGER)
        self.tensors: dict[str, Entry] = {}
        self.twice: list[tuple[str, Entry]] = []
        for file, header in self.headers.items():
            for own, extent in header.extents.items():
                name = self.name_in(file, own)
                entry = Entry(extent.spec, file, extent.start)
                held = self.tensors.setdefault(name, entry)
                if held is not entry:
                    if self.where.get(name) == file:
                        self.tensors[name], entry = entry, held
                    self.twice.append((name, entry))
        self.layout = Layout({}, {}, (), (), (), ())
        try:
            self.layout = infer_layout(self.specs, self.config, self.folders)
        except CheckpointError as error:
            self._unreadable(self.config_file, error)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Name -> what the tensor is."""
        return {name: entry.spec for name, entry in self.tensors.items()}

    @property
    def whole(self) -> bool:
        """Whether every weight file could be read: else what is missing would be told twice."""
        return self.known and bool(self.files) and len(self.headers) == len(self.files)

    @property
    def config_file(self) -> str:
        """The path of config.json."""
        return f"{self.home}config.json"

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders that names of tensors begin with."""
        main = main_module(self.modules)
        return tuple(
            module.folder for module in self.modules if module.files and module is not main
        )

    @property
    def index_files(self) -> list[str]:
        """The index files of all places, of any stem."""
        names = [place + stem + INDEX_SUFFIX for place in self.places for stem in STEMS]
        return [name for name in names if name in self.names]

    @cached_property
    def view(self) -> View:
        """It as an input of a plan, for rules that plans are made by."""
        ref = ModelRef(self.source.label)
        stored = SimpleNamespace(config=self.config, index=self.tensors)
        checkpoint = cast(Checkpoint, stored)  # as much of one as these rules look at
        return build_views({ref: checkpoint}, {ref: self.layout}, {ref: False}, {ref: {}})[0][ref]

    def inside(self, place: str, names: Iterable[str]) -> list[str]:
        """Those of `names` that lie directly in one of the places, without its name."""
        found = [name.removeprefix(place) for name in names if name.startswith(place)]
        return [name for name in found if "/" not in name]

    def name_in(self, file: str, own: str) -> str:
        """The name here of a tensor that a file or an index beside it calls `own`."""
        place = self.place_of(file)
        return own if place == self.home else place + own

    def place_of(self, file: str) -> str:
        """The place that a file belongs to; an index may name files in folders that are none."""
        return max((place for place in self.places if file.startswith(place)), key=len)

    def name_in_ledger(self, name: str) -> str:
        """What the ledger calls a tensor of ours."""
        return self.prefix + placed_name(name, self.home.removesuffix("/"), self.folders)

    def lists(self, entry: Any) -> bool:
        """Whether an entry of the ledger is of a tensor that lies here; one without a file lies in the outermost."""
        file = entry.get("file") if isinstance(entry, dict) else None
        place = place_of(file) if isinstance(file, str) else ""
        return place.startswith(self.prefix) and place.removeprefix(self.prefix) in self.places

    def json(self, name: str) -> dict[str, Any] | None:
        """A file of JSON; None when there is none, or when it cannot be read, which is then noted once."""
        if name not in self.names or any(each.file == name for each in self.unreadable):
            return None
        try:
            return read_json_file(self.source, name)
        except CheckpointError as error:
            self._unreadable(name, error)
            return None

    def check_text(self, name: str) -> None:
        """Note it when a file that should be text is none."""
        if name not in self.names:
            return
        try:
            self.source.read(name).decode("utf-8")
        except CheckpointError as error:
            self._unreadable(name, error)
        except UnicodeDecodeError:
            self.unreadable.append(Finding("is not text in UTF-8", name))

    @cached_property
    def tokens(self) -> ModelTokens | None:
        """Its tokenizer; None when there is none, or when it cannot be read, which is then noted."""
        try:
            return read_tokens(inside(self.source, self.home.removesuffix("/")))
        except CheckpointError as error:
            # others are read by rules of ours, and transformers knows more kinds
            known = vocabulary_file(self.inside(self.home, self.names)) == TOKENIZER
            self.note(error, warning=not known)
            return None

    def _modules(self) -> tuple[Module, ...]:
        if MODULES not in self.names:
            return ()
        try:
            return read_modules(self.source)
        except CheckpointError as error:
            self.known = False
            self.note(error)
            return ()

    def _module_files(self) -> list[str]:
        for module in self.modules:
            for own, file in module.weights.where.items():
                file = module.prefix + file
                self.where[self.name_in(file, own)] = file
        return list(dict.fromkeys(name for module in self.modules for name in module.files))

    def _weight_files(self) -> list[str]:
        try:
            found = find_weights(self.source)
            self.where.update(found.where)
            return list(found.files)
        except CheckpointError as error:
            if self.known:  # else the weights may be in the folders of modules
                self.note(error)
            return [name for name in self.names if SHARD.fullmatch(name)]

    def note(self, error: CheckpointError, warning: bool = False) -> None:
        """Keep in `unreadable` that some file could not be read, unless that is known."""
        noted = {each.file for each in self.unreadable if each.file}
        for problem in error.problems:
            file = problem.file.removeprefix(self.source.shown("")).lstrip("/")
            file = file if file in self.names else ""
            if file not in noted:
                self.unreadable.append(
                    Finding(problem.message, file, problem.where, warning, problem.code)
                )

    def _unreadable(self, name: str, error: CheckpointError) -> None:
        self.unreadable += [
            Finding(problem.message, name, problem.where, code=problem.code)
            for problem in error.problems
        ]


def place_of(file: str) -> str:
    """The folder of a path, with a slash; empty when it has none."""
    folder, slash, _ = file.rpartition("/")
    return folder + slash
