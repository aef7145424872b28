"""What planning says of a recipe: errors, which end it, and warnings.

Passes return problems as values; `build` alone collects them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jmerge.errors import Fault
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.yamltree import Path


class Problem(NamedTuple):
    """One thing that is wrong, or that the user may not have meant, at its place in the recipe."""

    code: str  # see `jmerge.problems`
    message: str
    path: Path
    is_error: bool


def error(code: str, message: str, path: Path) -> Problem:
    """What makes the merge impossible."""
    return Problem(code, message, path, True)


def warning(code: str, message: str, path: Path) -> Problem:
    """What the user may not have meant."""
    return Problem(code, message, path, False)


Said = Problem | Fault  # faults are errors of other parts of jmerge, as they are


def is_error(said: Said) -> bool:
    """Whether it makes the merge impossible."""
    return isinstance(said, Fault) or said.is_error


def split(recipe: Recipe, found: Iterable[Said]) -> tuple[list[Fault], list[Fault]]:
    """Errors and warnings as lines for people, in their order."""
    sides: tuple[list[Fault], list[Fault]] = ([], [])
    for each in found:
        made = each
        if isinstance(made, Problem):
            made = recipe.fault(made.message, made.path, code=made.code)
        sides[not is_error(each)].append(made)
    return sides


def and_more(names: Sequence[str]) -> str:
    """The first name, and how many others there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
