"""A recipe in its one canonical form: modules of output slices of sources."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jmerge.errors import Problem, RecipeError, raise_all, wrong_type
from jmerge.names import did_you_mean
from jmerge.recipe.parse import read_grammar, read_text
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.schema import ModelEntry, RecipeFile, SliceEntry
from jmerge.recipe.settings import Setting
from jmerge.recipe.tokens import BASE, UNION, UNION_MODES, ModelToken, TokenEntry, TokenizerPart
from jmerge.recipe.values import read_values
from jmerge.recipe.yamltree import Document, Path, parse_yaml, show_path

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


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe:
    """A recipe: what to merge and how. Made by `from_file`, `from_text` or `from_dict`; equal recipes ask for the same.

    Attributes:
      text: the recipe as YAML, where models in memory are called `memory://1` and so on.
      method: the name of the merge method.
    """

    file: str = field(compare=False)  # what errors call it; empty: it is of Python values
    text: str = field(compare=False)
    document: Document = field(compare=False)
    given: Mapping[ModelRef, Any] = field(default_factory=dict, compare=False)  # opened, or arrays
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

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a recipe from a YAML file.

        Raises:
          RecipeError: the file cannot be read, or the recipe is wrong; holds every mistake, each with its line.
        """
        if not isinstance(path, str | os.PathLike):
            raise wrong_type("path", "the path of a recipe", path)
        return _sound(examine_file(path))

    @classmethod
    def from_text(cls, text: str, file: str = "recipe") -> Recipe:
        """Read a recipe from YAML text, which error messages call `file`.

        Raises:
          RecipeError: the recipe is wrong; holds every mistake, each with its line.
        """
        if not isinstance(text, str):
            raise wrong_type("text", "the YAML text of a recipe", text)
        return _sound(examine_text(text, file))

    @classmethod
    def from_dict(cls, recipe: Mapping[str, Any]) -> Recipe:
        """Make a recipe from a dict with the keys of YAML recipes.

        Wherever YAML has the path of a model, the dict may hold an opened checkpoint or a mapping from name to NumPy or JAX
        array (nested keys are joined with dots). The recipe keeps a reference to them. Numbers and lists may be NumPy or JAX
        values.

        Raises:
          RecipeError: the recipe is wrong; holds every mistake, each with its key path.
        """
        if not isinstance(recipe, Mapping):
            raise wrong_type("recipe", "a map of keys", recipe)
        return _sound(examine_dict(recipe))

    def __repr__(self) -> str:
        count = len(self.models())
        return f"<Recipe: {self.method} of {count} model{'s' if count != 1 else ''}>"

    def problem(self, message: str, path: Path, *, code: str) -> Problem:
        """A `Problem` about the part of the recipe at `path`."""
        return Problem(message, show_path(path), self.file, self.document.line(path), code)

    @property
    def wrapped_method(self) -> str:
        """The name of the method with its wrappers, such as `equalize(ties)`."""
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
        """Every model of the recipe, each once: the base first (or the first listed), then in order."""
        refs = [source.ref for _, out_slice in self.slices() for source in out_slice.sources]
        bases = [out_slice.base for _, out_slice in self.slices() if out_slice.base]
        return tuple(dict.fromkeys(([self.base] if self.base else []) + refs + bases))

    def prefixes(self, ref: ModelRef) -> Mapping[str, str]:
        """The `map` of the model `ref`: prefix of its tensor names -> prefix in the output."""
        found = (s.prefixes for _, out in self.slices() for s in out.sources if s.ref == ref)
        return next((prefixes for prefixes in found if prefixes), {})

    def first_path(self, ref: ModelRef) -> Path:
        """Where the recipe first names `ref`, as a merged model or as the source of a token."""
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


Examined = tuple[Recipe | None, list[Problem]]  # as far as it can be understood, and its problems


def examine_file(path: str | os.PathLike[str]) -> Examined:
    """The recipe in a YAML file and its problems; RecipeError when it is no text or not YAML."""
    return examine_text(read_text(path), os.fspath(path))


def examine_text(text: str, file: str) -> Examined:
    """The recipe in a YAML text and its problems; RecipeError when it is not YAML."""
    return _examine(parse_yaml(text, file), text, file, {})


def examine_dict(recipe: Mapping[str, Any]) -> Examined:
    """The recipe in a map of Python values and its problems."""
    given = read_values(recipe)
    return _examine(given.document, given.text, "", given.models)


def _examine(document: Document, text: str, file: str, given: Mapping[ModelRef, Any]) -> Examined:
    parsed, problems = read_grammar(document, file)
    if parsed is None:
        return None, problems
    return _canonical(parsed, text, document, file, given, problems), problems


def _sound(examined: Examined) -> Recipe:
    recipe, problems = examined
    raise_all(RecipeError, problems)
    assert recipe is not None  # without problems there is a recipe
    return recipe


def _canonical(
    parsed: RecipeFile,
    text: str,
    document: Document,
    file: str,
    given: Mapping[ModelRef, Any],
    problems: list[Problem],
) -> Recipe | None:
    def problem(message: str, path: Path, *, code: str) -> None:
        problems.append(Problem(message, show_path(path), file, document.line(path), code))

    if parsed.tokenizer is not None and parsed.tokenizer_source is not None:
        problem(
            "write either tokenizer or tokenizer_source, not both", ("tokenizer",), code="JM016"
        )
    chosen = [key for key in ("models", "slices", "modules") if getattr(parsed, key)]
    if len(chosen) != 1:
        if not any(f.where.startswith(("models", "slices", "modules")) for f in problems):
            found = " and ".join(chosen) or "none"
            problem(
                f"expected exactly one of models, slices and modules, found {found}",
                tuple(chosen[1:2]),
                code="JM015",
            )
        return None
    base = parsed.base_model
    if parsed.modules:
        modules = []
        for name, entry in parsed.modules.items():
            path = ("modules", name)
            if bool(entry.models) == bool(entry.slices):
                problem("expected exactly one of models and slices", path, code="JM015")
            else:
                modules.append(
                    _module(name, entry.models, entry.slices, entry.parameters, base, path)
                )
        if len(modules) != len(parsed.modules):
            return None
    else:
        modules = [_module(None, parsed.models, parsed.slices, None, base, ())]
    notes = [
        (*s.path, "residual_weight")
        for m in modules
        for s in m.slices
        if "slices" in s.path and document.has((*s.path, "residual_weight"))
    ]
    recipe = Recipe(
        file=file,
        text=text,
        document=document,
        given=given,
        method=parsed.merge_method,
        modules=tuple(modules),
        base=base,
        parameters=parsed.parameters or {},
        condition=parsed.wrap.condition if parsed.wrap else None,
        lines=parsed.wrap.lines.model_dump() if parsed.wrap and parsed.wrap.lines else None,
        only=parsed.only or (),
        excluded=parsed.except_ or (),
        otherwise=parsed.otherwise,
        allow_conflicts=parsed.allow_conflicts or (),
        dtype=parsed.dtype,
        out_dtype=parsed.out_dtype,
        cast=parsed.cast or (),
        tokenizer=_tokenizer(parsed),
        chat_template=parsed.chat_template,
        notes=tuple(notes + ([("name",)] if parsed.name is not None else [])),
    )
    problems += _check_tokenizer(recipe)
    return recipe


def _module(
    name: str | None,
    models: list[ModelEntry] | None,
    slices: list[SliceEntry] | None,
    parameters: Any,
    base: ModelRef | None,
    path: Path,
) -> Module:
    if models:
        sources = [
            Source(
                ref=m.model,
                layers=None,
                parameters=m.parameters or {},
                path=(*path, "models", i),
                prefixes=m.map or {},
            )
            for i, m in enumerate(models)
        ]
        if base is not None and all(source.ref != base for source in sources):
            sources.append(
                Source(
                    ref=base,
                    layers=None,
                    parameters={},
                    path=("base_model",),
                    prefixes={},
                    listed=False,
                )
            )
        out = [OutSlice(sources=tuple(sources), base=base, parameters={}, path=path)]
    else:
        out = [
            OutSlice(
                sources=tuple(
                    Source(
                        ref=s.model,
                        layers=s.layer_range,
                        parameters=s.parameters or {},
                        path=(*path, "slices", i, "sources", j),
                        prefixes=s.map or {},
                    )
                    for j, s in enumerate(entry.sources)
                ),
                base=entry.base_model or base,
                parameters=entry.parameters or {},
                path=(*path, "slices", i),
            )
            for i, entry in enumerate(slices or [])
        ]
    return Module(name=name, slices=tuple(out), parameters=parameters or {}, path=path)


def _tokenizer(parsed: RecipeFile) -> TokenizerPart | None:
    """What the keys `tokenizer` and `tokenizer_source` say; the first where both stand, which is a problem."""
    if parsed.tokenizer is not None:
        node = parsed.tokenizer
        entries = [
            TokenEntry(token, entry.source, entry.force, ("tokenizer", "tokens", token))
            for token, entry in (node.tokens or {}).items()
        ]
        return TokenizerPart(
            node.source, tuple(entries), node.pad_to_multiple_of, node.union_mode, ("tokenizer",)
        )
    if parsed.tokenizer_source is not None:
        return TokenizerPart(
            parsed.tokenizer_source, (), None, UNION_MODES[0], ("tokenizer_source",)
        )
    return None


def _check_tokenizer(recipe: Recipe) -> list[Problem]:
    """Problems of the keys about tokenizers that the rest of the recipe shows."""
    part, models = recipe.tokenizer, recipe.models()
    if part is None:
        return []
    problems = []
    for ref, path in part.refs():
        if ref not in models:
            message = f"'{ref}' is not a model of this merge"
            words = (UNION, BASE) if path == part.source_path else ()
            hint = did_you_mean(str(ref), [*words, *map(str, models)])
            problems.append(recipe.problem(message + hint, path, code="JM018"))
    if part.union_mode != UNION_MODES[0] and part.source != UNION:
        message = "works only with 'source: union'; remove it"
        problems.append(recipe.problem(message, (*part.path, "union_mode"), code="JM019"))
    nameless = [entry.path for entry in part.tokens if not entry.token]
    message = "a token must not be empty"
    return problems + [recipe.problem(message, path, code="JM017") for path in nameless]
