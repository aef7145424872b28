"""A recipe file to a `Recipe`: every fault of its grammar at once, each with its line and key path."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from jmerge.errors import Fault, RecipeError, raise_all
from jmerge.names import did_you_mean, nearest
from jmerge.recipe.recipe import Module, OutSlice, Recipe, Source
from jmerge.recipe.refs import UNKNOWN, ModelRef
from jmerge.recipe.schema import (
    UNKNOWN_RANGE,
    LinesEntry,
    ModelEntry,
    ModuleEntry,
    Node,
    RecipeFile,
    SliceEntry,
    SourceEntry,
    TokenizerNode,
    TokenNode,
    WrapEntry,
)
from jmerge.recipe.tokens import BASE, UNION, UNION_MODES, TokenEntry, TokenizerPart
from jmerge.recipe.yamltree import Document, Path, parse_yaml, show_path

MAX_BYTES = 10_000_000

# Top-level keys of MergeKit's other recipe kinds, so that a recipe in the wrong tool is told so.
OTHER_KINDS = {
    "experts": "a mixture-of-experts recipe",
    "gate_mode": "a mixture-of-experts recipe",
} | {
    "genome": "a search recipe",
    "layer_slices": "a bakllama recipe",
}


# Where the keys of each map belong, for those that stand in another.
HOMES: dict[type[Node], str] = {
    RecipeFile: "at the top of the recipe",
    SourceEntry: "under slices[].sources[]",
    SliceEntry: "under slices[]",
}


def load_recipe(path: str | FilePath) -> Recipe:
    """The recipe in the YAML file `path`.

    Raises:
      RecipeError: the file cannot be read, or its grammar is wrong; holds every fault found.
    """
    return parse_recipe(read_text(path), str(path))


def read_text(path: str | FilePath) -> str:
    """The text of a recipe file; RecipeError when there is none."""
    try:
        with FilePath(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(
            Fault(f"cannot be read: {error.strerror or error}", file=str(path))
        ) from error
    if len(raw) > MAX_BYTES:
        raise RecipeError(Fault("is larger than any recipe; is it a weight file?", file=str(path)))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(Fault("is not text in UTF-8", file=str(path))) from error


def parse_recipe(text: str, file: str = "recipe") -> Recipe:
    """The recipe in a YAML text; `file` is what errors call it. Raises RecipeError with every fault found."""
    recipe, faults = examine_recipe(text, file)
    raise_all(RecipeError, faults)
    assert recipe is not None  # without faults there is a recipe
    return recipe


def examine_recipe(text: str, file: str) -> tuple[Recipe | None, list[Fault]]:
    """The recipe as far as it can be understood, and its faults, so that later checks can add theirs."""
    document = parse_yaml(text, file)
    faults = list(document.faults)
    values = copy.deepcopy(document.value)
    parsed: RecipeFile | None = None
    while parsed is None:
        try:
            parsed = RecipeFile.model_validate(values)
        except ValidationError as error:
            found, fatal = _explain(error, document, file)
            faults += found
            # What is wrong is taken out and the rest read again, so that one typo hides no other fault.
            if fatal or not _prune(values, error.errors()):
                return None, faults
    return _canonical(parsed, text, document, file, faults), faults


def _explain(error: ValidationError, document: Document, file: str) -> tuple[list[Fault], bool]:
    faults, fatal = [], False
    for each in error.errors():
        path = tuple(each["loc"])
        match each["type"]:
            case "extra_forbidden":
                message = _unknown_key(path, each["input"])
            case "missing":
                if len(path) == 1 and OTHER_KINDS.keys() & document.value.keys():
                    fatal = True
                    continue  # it is another kind of recipe, which is said
                message = f"the key '{path[-1]}' is missing"
                path = path[:-1]
            case "too_short":
                message = "needs at least one source"
            case "value_error":
                message = each["msg"].removeprefix("Value error, ")
            case "model_type" | "dict_type":
                message = f"expected a map, found {_show(each['input'])}"
            case "list_type":
                message = f"expected a list, found {_show(each['input'])}"
            case "string_type":
                message = f"expected a word, found {_show(each['input'])}"
            case _:
                message = f"expected a number, found {_show(each['input'])}"
        faults.append(Fault(message, show_path(path), file, document.line(path)))
    return faults, fatal


def _unknown_key(path: Path, value: Any) -> str:
    """What to say of a key that its map does not have."""
    key, fields = str(path[-1]), _node_class(path[:-1]).keys()
    if len(path) == 1 and key in OTHER_KINDS:
        return f"belongs to {OTHER_KINDS[key]}, not to a merge recipe"
    message = "not a key that a recipe has here"
    homes = [place for node, place in HOMES.items() if key in node.keys()]
    if homes and nearest(key, fields, likeness=0.9) is None:
        return f"{message}; it belongs {homes[0]}"
    hint = did_you_mean(key, fields, show=20)
    if "known:" in hint and "parameters" in fields and isinstance(value, int | float | list):
        hint += "; if it is a number of the method, indent it under 'parameters:'"
    return message + hint


def _unknown_source() -> dict[str, Any]:
    return {"model": UNKNOWN, "layer_range": UNKNOWN_RANGE}


# What is put in the place of what has to be there and is missing or wrong, so that the rest can be read: under a key,
# and for an item of a list under that.
INSTEAD: dict[str, Callable[[], Any]] = {
    "merge_method": lambda: "",
    "model": lambda: UNKNOWN,
    "layer_range": lambda: UNKNOWN_RANGE,
    "sources": lambda: [_unknown_source()],
}
ITEMS: dict[str, Callable[[], Any]] = {
    "models": lambda: {"model": UNKNOWN},
    "sources": _unknown_source,
    "slices": lambda: {"sources": [_unknown_source()]},
}


def _prune(values: Any, errors: Sequence[ErrorDetails]) -> bool:
    """Empty the places of errors; False when one could not be changed, so that reading again would not help."""
    for error in errors:
        *path, last = error["loc"]
        holder = values
        for part in path:
            holder = holder[part]
        if isinstance(holder, list) and path[-1] in ITEMS:
            holder[int(last)] = ITEMS[str(path[-1])]()
        elif isinstance(holder, dict) and last in INSTEAD and error["type"] != "extra_forbidden":
            holder[last] = INSTEAD[str(last)]()
        elif isinstance(holder, dict) and last in holder:
            del holder[last]
        else:
            return False
    return True


def _node_class(path: Path) -> type[Node]:
    """The grammar class of the map at `path`."""
    kinds: dict[str, type[Node]] = {
        "models": ModelEntry,
        "slices": SliceEntry,
        "sources": SourceEntry,
    }
    if path[:1] == ("wrap",):
        return LinesEntry if "lines" in path else WrapEntry
    if path[:1] == ("tokenizer",):
        return TokenNode if len(path) > 2 else TokenizerNode
    for i in range(len(path) - 1, -1, -1):
        if path[i] in kinds:
            return kinds[str(path[i])]
        if path[i] == "modules":
            return ModuleEntry
    return RecipeFile


def _canonical(
    parsed: RecipeFile, text: str, document: Document, file: str, faults: list[Fault]
) -> Recipe | None:
    def fault(message: str, path: Path) -> None:
        faults.append(Fault(message, show_path(path), file, document.line(path)))

    if parsed.tokenizer is not None and parsed.tokenizer_source is not None:
        fault("write either tokenizer or tokenizer_source, not both", ("tokenizer",))
    chosen = [key for key in ("models", "slices", "modules") if getattr(parsed, key)]
    if len(chosen) != 1:
        if not any(f.where.startswith(("models", "slices", "modules")) for f in faults):
            found = " and ".join(chosen) or "none of them"
            fault(
                f"exactly one of models, slices and modules is needed, found {found}",
                tuple(chosen[1:2]),
            )
        return None
    base = parsed.base_model
    if parsed.modules:
        modules = []
        for name, entry in parsed.modules.items():
            path = ("modules", name)
            if bool(entry.models) == bool(entry.slices):
                fault("exactly one of models and slices is needed here", path)
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
        if "slices" in s.path and (*s.path, "residual_weight") in document.lines
    ]
    recipe = Recipe(
        file=file,
        text=text,
        document=document,
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
    faults += _check_tokenizer(recipe)
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
    """What the keys `tokenizer` and `tokenizer_source` say; the first where both stand, which is a fault."""
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


def _check_tokenizer(recipe: Recipe) -> list[Fault]:
    """Faults of the keys about tokenizers that the rest of the recipe shows."""
    part, models = recipe.tokenizer, recipe.models()
    if part is None:
        return []
    faults = []
    for ref, path in part.refs():
        if ref not in models:
            message = f"'{ref}' is not a model of this merge"
            words = (UNION, BASE) if path == part.source_path else ()
            hint = did_you_mean(str(ref), [*words, *map(str, models)])
            faults.append(recipe.fault(message + hint, path))
    if part.union_mode != UNION_MODES[0] and part.source != UNION:
        message = "has an effect with source: union only; remove it"
        faults.append(recipe.fault(message, (*part.path, "union_mode")))
    for entry in part.tokens:
        if not entry.token:
            faults.append(recipe.fault("a token needs a text", entry.path))
    return faults


def _show(value: Any) -> str:
    text = repr(value)
    return (
        text
        if len(text) <= 40
        else {"dict": "a map", "list": "a list"}.get(type(value).__name__, text[:37] + "...")
    )
