"""A recipe in its one canonical form: modules of output slices of sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jmerge.errors import Fault
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.settings import Setting
from jmerge.recipe.tokens import ModelToken, TokenizerPart
from jmerge.recipe.yamltree import Document, Path, show_path

Parameters = Mapping[str, Setting]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Layers of one model that go into an output slice; `layers` None means all of them."""

    ref: ModelRef
    layers: tuple[int, int] | None
    parameters: Parameters
    path: Path  # where it stands in the recipe
    prefixes: Mapping[str, str]  # of its tensors' names -> of the output's; empty: they are alike
    listed: bool = True  # False for a base model that the recipe left out of `models`

    @property
    def model_path(self) -> Path:
        """Where the recipe names the model."""
        return (*self.path, "model") if self.listed else self.path


@dataclass(frozen=True, kw_only=True)
class OutSlice:
    """A run of output layers and the sources they are merged from."""

    sources: tuple[Source, ...]
    base: ModelRef | None  # of this slice: its own, else the recipe's
    parameters: Parameters
    path: Path

    @property
    def sources_path(self) -> Path:
        """Where the recipe lists its sources."""
        return self.path if self.sources[0].layers else (*self.path, "models")


@dataclass(frozen=True, kw_only=True)
class Module:
    """The slices of one module; `name` None means every module of the model alike."""

    name: str | None
    slices: tuple[OutSlice, ...]
    parameters: Parameters
    path: Path


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A merge recipe, its text, and the lines its parts stand on."""

    file: str
    text: str
    document: Document
    method: str
    modules: tuple[Module, ...]
    base: ModelRef | None
    parameters: Parameters
    condition: str | None  # how changes are scaled before the method, see `methods.wrap`
    lines: (
        Mapping[str, float | None] | None
    )  # alpha and beta, None: by itself; how merged changes grow with depth
    only: tuple[str, ...]  # patterns of the tensors that are merged; empty: of all
    excluded: tuple[str, ...]  # patterns of tensors that are not
    otherwise: str | None  # whose bytes the others are: base, first; or error; None: not written
    allow_conflicts: tuple[str, ...]  # fields of config.json in which models may differ
    dtype: str | None  # safetensors names
    out_dtype: str | None
    cast: tuple[
        str, ...
    ]  # patterns of tensors that get the dtype though the donor keeps them wider
    tokenizer: TokenizerPart | None  # None: the donor's files are copied
    chat_template: str | None  # auto, the name of a built-in, or Jinja; None: the tokenizer's own
    notes: tuple[Path, ...]  # keys that are known and have no effect

    def fault(self, message: str, path: Path) -> Fault:
        """A `Fault` about the part of the recipe at `path`."""
        return Fault(message, show_path(path), self.file, self.document.line(path))

    @property
    def wrapped_method(self) -> str:
        """The name of the method in its wrappers."""
        name = f"lines({self.method})" if self.lines is not None else self.method
        return f"{self.condition}({name})" if self.condition else name

    @property
    def first_slice(self) -> OutSlice:
        """The first output slice."""
        return self.modules[0].slices[0]

    def slices(self) -> Iterator[tuple[Module, OutSlice]]:
        """Every output slice with its module, in the order written."""
        for module in self.modules:
            for out_slice in module.slices:
                yield module, out_slice

    def models(self) -> tuple[ModelRef, ...]:
        """Every model the recipe names, the donor first (the base, else the first listed), then as written."""
        refs = [source.ref for _, out_slice in self.slices() for source in out_slice.sources]
        bases = [out_slice.base for _, out_slice in self.slices() if out_slice.base]
        return tuple(dict.fromkeys(([self.base] if self.base else []) + refs + bases))

    def prefixes(self, ref: ModelRef) -> Mapping[str, str]:
        """How names of the model `ref` begin -> how the output's do instead."""
        found = (s.prefixes for _, out in self.slices() for s in out.sources if s.ref == ref)
        return next((prefixes for prefixes in found if prefixes), {})

    def first_path(self, ref: ModelRef) -> Path:
        """Where the recipe names `ref` first, as a model of the merge or else as one whose row fills a token."""
        for _, out_slice in self.slices():
            for source in out_slice.sources:
                if source.ref == ref and source.listed:
                    return (*source.path, "model")
        if ref == self.base:
            return ("base_model",)
        for _, out_slice in self.slices():
            if out_slice.base == ref:
                return (*out_slice.path, "base_model")
        entries = self.tokenizer.tokens if self.tokenizer else ()
        return next(
            (*entry.source_path, "model")
            for entry in entries
            if isinstance(entry.source, ModelToken) and entry.source.model == ref
        )
