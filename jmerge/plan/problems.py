"""What planning says of a recipe: errors, which end it, and warnings.

Passes return problems as values; `build` alone collects them. What many tensors show is a finding each, and the findings
of one cause are told as one problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from jmerge.errors import Fault
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import Path

if TYPE_CHECKING:
    from jmerge.plan.pairing import View


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


class Scene(NamedTuple):
    """What findings are told against."""

    recipe: Recipe
    views: Mapping[ModelRef, View]  # the donor's first
    asked: Mapping[str, Any]  # names of all tensors that the output may have


@dataclass(frozen=True)
class Cause:
    """Why something is found of tensors. Each kind of cause is a class, and equal causes are told as one."""

    def tell(self, found: Sequence[Finding], scene: Scene) -> Iterator[Problem]:
        """The problems that these findings of this cause are."""
        raise NotImplementedError


class Finding(NamedTuple):
    """Something that is found of one tensor."""

    cause: Cause
    name: str  # of the output
    detail: Any = None  # of this tensor alone


def tell(
    kinds: Iterable[type[Cause]], findings: Iterable[Finding], scene: Scene
) -> Iterator[Problem]:
    """The problems of some kinds of causes, kind by kind, in the order in which they were found."""
    causes: dict[Cause, list[Finding]] = {}
    for finding in findings:
        causes.setdefault(finding.cause, []).append(finding)
    for kind in kinds:
        for cause, found in causes.items():
            if isinstance(cause, kind):
                yield from cause.tell(found, scene)


def names_of(found: Iterable[Finding]) -> list[str]:
    """The tensors that show something."""
    return [finding.name for finding in found]


def and_more(names: Sequence[str]) -> str:
    """The first name, and how many others there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
