"""What planning says of a recipe: errors, which end it, and warnings; and the patterns of names in them and in recipes.

Passes return problems as values; `build` alone collects them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import translate
from typing import NamedTuple

from jmerge.errors import Problem
from jmerge.names import did_you_mean
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.yamltree import Path

PLAIN = re.compile(r"[A-Za-z_][\w.*/\-]*")


class PlanProblem(NamedTuple):
    """One thing that is wrong, or that the user may not have meant, at its place in the recipe."""

    code: str  # see `jmerge.problems`
    message: str
    path: Path
    is_error: bool


def error(code: str, message: str, path: Path) -> PlanProblem:
    """What makes the merge impossible."""
    return PlanProblem(code, message, path, True)


def warning(code: str, message: str, path: Path) -> PlanProblem:
    """What the user may not have meant."""
    return PlanProblem(code, message, path, False)


Said = PlanProblem | Problem  # problems are errors of other parts of jmerge, as they are


def is_error(said: Said) -> bool:
    """Whether it makes the merge impossible."""
    return isinstance(said, Problem) or said.is_error


def split(recipe: Recipe, found: Iterable[Said]) -> tuple[list[Problem], list[Problem]]:
    """Errors and warnings as lines for people, in their order."""
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for each in found:
        made = each
        if isinstance(made, PlanProblem):
            made = recipe.problem(made.message, made.path, code=made.code)
        sides[not is_error(each)].append(made)
    return sides


def and_more(names: Sequence[str]) -> str:
    """The first name, and how many others there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


class Pattern(NamedTuple):
    """A pattern of tensor names."""

    text: str
    regex: re.Pattern[str]
    path: Path  # its place in the recipe


def patterns(recipe: Recipe, key: str, texts: Sequence[str]) -> list[Pattern]:
    """The patterns `texts` under `key` of the recipe."""
    listed = isinstance(recipe.document.value.get(key), list)
    return [
        Pattern(text, re.compile(translate(text)), (key, i) if listed else (key,))
        for i, text in enumerate(texts)
    ]


def unmatched(found: Iterable[Pattern], names: Iterable[str], what: str) -> Iterator[PlanProblem]:
    """The patterns that match none of the names; `what` these are names of, for people."""
    names = dict.fromkeys(names)
    for text, regex, path in found:
        if not any(map(regex.match, names)):
            hint = did_you_mean(text, names, show=0)
            yield error("JM219", f"'{text}' matches no tensor {what}{hint}", path)


def patterns_of(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Patterns that match these names and none of the `others`, as few as whole parts and any layer allow."""
    left, kept = dict.fromkeys(names), "\n".join(dict.fromkeys(others))
    found: list[str] = []
    while left:
        name = next(iter(left))
        pattern = next((each for each in _wider(name) if not _matches(each, kept)), name)
        fits = re.compile(translate(pattern)).match
        matched = {any_layer(each) for each in left if fits(each)}
        if len(matched) == 1 and pattern != name:
            (pattern,) = matched  # no wider than need be
        left = {each: None for each in left if not fits(each) and each != name}
        found.append(pattern)
    return found


def excepting(patterns: Iterable[str]) -> str:
    """The line of a recipe that leaves out what these match."""
    return f"'except: [{', '.join(map(scalar, patterns))}]'"


def scalar(text: str) -> str:
    """A word as YAML writes it inside brackets."""
    return text if PLAIN.fullmatch(text) else "'" + text.replace("'", "''") + "'"


def any_layer(name: str) -> str:
    """A pattern of what is called like `name` in any layer."""
    return ".".join("*" if word.isdigit() else word for word in name.split("."))


def _wider(name: str) -> Iterator[str]:
    """Patterns for a name, the widest first: all that starts with its first words, the name in any layer, the name."""
    words = any_layer(name).split(".")
    for end in range(1, len(words)):
        yield ".".join([*words[:end], "*"])
    yield ".".join(words)
    yield name


def _matches(pattern: str, lines: str) -> bool:
    """Whether a pattern matches a whole line."""
    inner = ".*".join(re.escape(part) for part in pattern.split("*"))
    return re.search(rf"^{inner}$", lines, re.MULTILINE) is not None
