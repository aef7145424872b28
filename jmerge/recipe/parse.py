"""The grammar of a recipe: every problem at once, each with its line and key path."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from jmerge.errors import Problem, RecipeError
from jmerge.names import did_you_mean, nearest
from jmerge.recipe.refs import UNKNOWN
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
from jmerge.recipe.yamltree import Document, Path, show_path

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


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a recipe file; RecipeError when there is none."""
    try:
        with FilePath(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(
            Problem(f"cannot be read: {error.strerror or error}", file=str(path), code="JM001")
        ) from error
    if len(raw) > MAX_BYTES:
        raise RecipeError(
            Problem(
                "is too large for a recipe; name the recipe, not a weight file",
                file=str(path),
                code="JM001",
            )
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(Problem("is not text in UTF-8", file=str(path), code="JM001")) from error


def read_grammar(document: Document, file: str) -> tuple[RecipeFile | None, list[Problem]]:
    """What a document says as far as it can be understood, and its problems, so that later checks can add theirs.

    file: what errors call it; empty for a recipe of Python values.
    """
    problems = list(document.problems)
    values = copy.deepcopy(document.value)
    parsed: RecipeFile | None = None
    while parsed is None:
        try:
            parsed = RecipeFile.model_validate(values)
        except ValidationError as error:
            found, fatal = _explain(error, document, file)
            told = set() if document.lines else {problem.where for problem in document.problems}
            problems += [problem for problem in found if problem.where not in told]
            # What is wrong is taken out and the rest read again, so that one typo hides no other problem.
            if fatal or not _prune(values, error.errors()):
                return None, problems
    return parsed, problems


def _explain(error: ValidationError, document: Document, file: str) -> tuple[list[Problem], bool]:
    problems, fatal = [], False
    for each in error.errors():
        path, code = tuple(each["loc"]), "JM011"
        match each["type"]:
            case "extra_forbidden":
                message, code = _unknown_key(path, each["input"])
            case "missing":
                if len(path) == 1 and OTHER_KINDS.keys() & document.value.keys():
                    fatal = True
                    continue  # it is another kind of recipe, which is said
                message = f"the key '{path[-1]}' is missing"
                path, code = path[:-1], "JM008"
            case "too_short":
                message, code = "needs at least one source", "JM008"
            case "value_error":
                mistake = each["ctx"]["error"]
                message, code = str(mistake), mistake.code
            case "model_type" | "dict_type":
                message = f"expected a map, found {_show(each['input'])}"
            case "list_type":
                message = f"expected a list, found {_show(each['input'])}"
            case "string_type":
                message = f"expected a string, found {_show(each['input'])}"
            case _:
                message = f"expected a number, found {_show(each['input'])}"
        problems.append(Problem(message, show_path(path), file, document.line(path), code))
    return problems, fatal


def _unknown_key(path: Path, value: Any) -> tuple[str, str]:
    """What to say of a key that its map does not have, and its code."""
    key, fields = str(path[-1]), _node_class(path[:-1]).keys()
    if len(path) == 1 and key in OTHER_KINDS:
        return f"belongs to {OTHER_KINDS[key]}, not to a merge recipe", "JM010"
    message = "unknown key"
    homes = [place for node, place in HOMES.items() if key in node.keys()]  # noqa: SIM118  # a class
    if homes and nearest(key, fields, likeness=0.9) is None:
        return f"{message}; it belongs {homes[0]}", "JM009"
    hint = did_you_mean(key, fields, show=20)
    if "known:" in hint and "parameters" in fields and isinstance(value, int | float | list):
        hint += "; parameters of the method belong under 'parameters:'"
    return message + hint, "JM009"


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


def _show(value: Any) -> str:
    text = repr(value)
    return (
        text
        if len(text) <= 40
        else {"dict": "a map", "list": "a list"}.get(type(value).__name__, text[:37] + "...")
    )
