"""The files beside the weights that a merged model takes over from its donor.

What a loader may need comes along. What stays behind is what a name or size shows to be none of that: other weights,
states and logs of a training run, pictures, caches. A file that a config or the model's code names comes along whatever
its size, unless its name is that of weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from jmerge.ckpt.filekinds import (
    LARGE,
    PEOPLE,
    PICKLE,
    PICKLES,
    STATE_DICT,
    TOKENIZER_PATTERNS,
    WEIGHTS,
    fits,
    kind_of,
    kind_of_folder,
)
from jmerge.ckpt.sentence import Module, main_module
from jmerge.ckpt.source import LocalSource, Source
from jmerge.ckpt.unjoined import holds_model
from jmerge.ckpt.weights import INDEX_SUFFIX, STEMS, check_arrived, read_json_file
from jmerge.ckpt.weights import WEIGHTS as WEIGHT_END
from jmerge.errors import CheckpointError, Problem, raise_all

# Chat templates that are asked for by name, beside the one that is used else.
MORE_TEMPLATES = "additional_chat_templates"
# Those that are read before anything is merged, to see that they are JSON; others are read for what they say.
CHECKED = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "config_sentence_transformers.json",
)
MAX_BESIDE = 64_000_000  # bytes of a file that nothing names; tokenizers have up to 40 MB
MAX_PICKLE = (
    16_000_000  # bytes of a pickle that nothing names; voices of speech models have up to 8 MB
)
PICKLE_SHARE = 8  # and it has at most this part of the bytes of the weights
MAX_DEPTH = 4  # folders below a model's own that are looked into; real ones have up to 3
MAX_FILES = 10_000  # of which each is looked at; real models have up to 300
MAX_CONFIG = 10_000_000  # bytes of a file that is searched for names of others
BESIDE_WEIGHTS = "is beside other weights"
TOO_DEEP = "is too deep in folders, or after too many files"


class Companions(NamedTuple):
    """The files of a model beside its weights, by their paths in its folder."""

    taken: list[str]  # those that come along, in name order of each folder
    left: dict[str, str]  # the others, and why


def companions(
    source: Source, modules: Sequence[Module] = (), weights: Collection[str] = ()
) -> Companions:
    """Which files of a model go with its weights.

    Args:
      source: its files.
      modules: of a Sentence Transformers model, whose folders have files of their own.
      weights: the files that are merged, and so are none of these.
    """
    return _Sorting(source, modules, weights).sort()


def donor_files(
    source: Source, modules: Sequence[Module] = (), weights: Collection[str] = ()
) -> list[str]:
    """The files of a model that go with its weights, see `companions`."""
    return companions(source, modules, weights).taken


def check_donor_files(
    source: Source, modules: Sequence[Module] = (), weights: Collection[str] = ()
) -> None:
    """CheckpointError for each file that goes with a model's weights and cannot be taken over, or is not the JSON that
    it should be, so that this is known before anything is merged."""
    main = main_module(tuple(modules))
    prefixes = dict.fromkeys(("", main.prefix if main else ""))
    names = [prefix + name for prefix in prefixes for name in CHECKED]
    sizes = source.map(source.size, names)
    problems: list[Problem] = []
    if isinstance(source, LocalSource):  # of a remote one every file costs a request
        for name in donor_files(source, modules, weights):
            try:
                if name.endswith(WEIGHT_END):  # of a part, which is copied piece by piece
                    check_arrived(source, [name])
                else:
                    source.check_whole(name)
            except CheckpointError as error:
                problems += error.problems
    for name in [name for name, size in zip(names, sizes, strict=True) if size is not None]:
        try:
            read_json_file(source, name)
        except CheckpointError as error:
            problems += error.problems
    raise_all(CheckpointError, problems)


def is_tokenizer_file(name: str, home: str = "") -> bool:
    """Whether a file says what the tokens are, so that it comes from the model whose tokens the output has.

    home: the folder in which config.json lies.
    """
    folder, _, file = name.rpartition("/")
    if folder.endswith(MORE_TEMPLATES):
        return True
    return folder in ("", home) and fits(file, TOKENIZER_PATTERNS)


class _Sorting:
    """The files of one model, sorted."""

    def __init__(self, source: Source, modules: Sequence[Module], weights: Collection[str]) -> None:
        self.source = source
        self.main = main_module(tuple(modules))
        self.modules = {module.folder for module in modules if module.folder}
        self.home = self.main.prefix if self.main else ""
        self.weights = frozenset(weights)
        self.found = Companions([], {})

    def sort(self) -> Companions:
        for folder, names, why in self._folders("", 0):
            start = f"{folder}/" if folder else ""
            names = [name for name in names if not self._is_made_anew(start + name)]
            if why is None and folder and folder not in self.modules:
                why = self._why_not_folder(folder, names)
            for name in names:
                reason = why or self._why_not(start, name)
                if why == WEIGHTS and kind_of(name) != WEIGHTS and not name.endswith(PICKLES):
                    reason = BESIDE_WEIGHTS
                if reason is None:
                    self.found.taken.append(start + name)
                else:
                    self.found.left[start + name] = reason
        return self.found

    def _folders(self, folder: str, depth: int) -> Iterator[tuple[str, list[str], str | None]]:
        """The folders of the model: path, files, and why none of them comes along."""
        why = kind_of_folder(folder.rpartition("/")[2]) if folder else None
        count = len(self.found.taken) + len(self.found.left)
        if depth > MAX_DEPTH or count > MAX_FILES:
            self.found.left[f"{folder}/"] = TOO_DEEP
            return
        if why is not None and folder.rpartition("/")[2].startswith((".", "__")):
            self.found.left[f"{folder}/"] = why  # a repository of git has thousands of files
            return
        yield folder, self.source.names(folder), why
        inner = self.source.folders(folder)
        if not folder:  # where nothing lists folders, those are known
            inner = sorted({*inner, *self.modules})
        for name in inner:
            below = f"{folder}/{name}" if folder else name
            for path, names, own in self._folders(below, depth + 1):
                yield path, names, own or why

    def _is_made_anew(self, path: str) -> bool:
        """Whether a file is merged, or written for the result."""
        if path in self.weights or path == f"{self.home}config.json":
            return True
        folder, slash, name = path.rpartition("/")
        stem = name.removesuffix(INDEX_SUFFIX)
        single = f"{folder}{slash}{stem}{WEIGHT_END}"
        return name.endswith(INDEX_SUFFIX) and stem in STEMS and self._indexes(folder, single)

    def _indexes(self, folder: str, single: str) -> bool:
        """Whether an index in `folder` is that of the merged files."""
        if single in self.weights:
            return False
        return folder in ("", *self.modules) and any(
            not folder or file.startswith(f"{folder}/") for file in self.weights
        )

    def _why_not_folder(self, folder: str, names: Sequence[str]) -> str | None:
        """Why nothing in a folder comes along that is no module's; None when its files are sorted one by one.

        One with weights is another form or state of this model, unless it has the config of a model of another type, as
        `speech_tokenizer` of speech models: that is a part, which the loader looks for.
        """
        heavy = [
            name
            for name in names
            if kind_of(name) == WEIGHTS or (name.endswith(PICKLES) and STATE_DICT.search(name))
        ]
        if not heavy or self._is_part(folder, names):
            return None
        return WEIGHTS

    def _is_part(self, folder: str, names: Sequence[str]) -> bool:
        if "config.json" not in names or not holds_model(self.source, folder):
            return False
        kind = self._json(f"{folder}/config.json").get("model_type")
        own = self._json(f"{self.home}config.json").get("model_type")
        files = [f"{folder}/{name}" for name in names if name.endswith(WEIGHT_END)]
        return kind != own and self._bytes(files) < self._weight_bytes

    def _why_not(self, start: str, name: str) -> str | None:
        """Why a file does not come along; None when it does."""
        path = start + name
        folder = start.removesuffix("/")
        reason = kind_of(name)
        if reason == WEIGHTS and folder and folder not in self.modules:  # of a part
            return None if name.endswith((WEIGHT_END, INDEX_SUFFIX)) else WEIGHTS
        if reason in (None, PEOPLE, WEIGHTS):
            named = name.rpartition(".")[0] in STEMS or STATE_DICT.search(name) is not None
            pickle = name.endswith(PICKLES)
            if pickle and named:
                return WEIGHTS
            if reason is None:
                reason = self._too_large(path, pickle)
            if reason is not None and not (reason == WEIGHTS and named) and path in self._named:
                return None
        return reason

    def _too_large(self, path: str, pickle: bool) -> str | None:
        if fits(path.rpartition("/")[2], TOKENIZER_PATTERNS) and not pickle:
            return None  # looked at by `check_donor_files`
        size = self.source.size(path) or 0
        if pickle and size > min(MAX_PICKLE, self._weight_bytes // PICKLE_SHARE):
            return PICKLE
        return LARGE if size > MAX_BESIDE else None

    @cached_property
    def _weight_bytes(self) -> int:
        return self._bytes(self.weights)

    def _bytes(self, files: Collection[str]) -> int:
        return sum(size or 0 for size in self.source.map(self.source.size, files))

    @cached_property
    def _named(self) -> frozenset[str]:
        """Files that a config or the code of the model names, by their paths."""
        names = self.source.names()
        inner = {f: self.source.names(f) for f in self.source.folders() if not kind_of_folder(f)}
        there = [*names, *(f"{folder}/{name}" for folder, each in inner.items() for name in each)]
        told: set[str] = set()
        texts = []
        for name in names:
            if name.endswith("config.json"):
                told.update(_texts(self._json(name)))
            elif name.endswith((".py", ".yaml", ".yml")) and kind_of(name) is None:
                texts.append(self._text(name))
        told = {text.removeprefix("./").replace("\\", "/") for text in told}
        ends = {text.rpartition("/")[2] for text in told}
        return frozenset(
            path
            for path in there
            if path in told
            or path.rpartition("/")[2] in ends
            or any(path.rpartition("/")[2] in text for text in texts)
        )

    def _json(self, name: str) -> Mapping[str, Any]:
        """A JSON file, empty when it cannot be read, which is told where it has to be."""
        try:
            size = self.source.size(name)
            return read_json_file(self.source, name) if size and size <= MAX_CONFIG else {}
        except CheckpointError:
            return {}

    def _text(self, name: str) -> str:
        try:
            small = (self.source.size(name) or 0) <= MAX_CONFIG
            return self.source.read(name).decode("utf-8", "replace") if small else ""
        except CheckpointError:
            return ""


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value that may be the name of a file."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            todo += item.values()
        elif isinstance(item, list):
            todo += item
        elif isinstance(item, str) and "." in item:
            yield item
