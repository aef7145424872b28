"""What becomes of one tensor that the output may have: its step, and what is found on the way.

What many tensors show is a finding each, and the findings of one cause are told as one problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jmerge.plan.hyperparameters import Resolved
from jmerge.plan.pairing import View
from jmerge.plan.problems import Problem, error
from jmerge.plan.steps import Step
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import Path
from jmerge.tokens.rows import TableRows

MapKey = tuple[
    tuple[int, ...], tuple[int, ...]
]  # models with a table, and without one that is asked for
Maps = Mapping[
    MapKey, TableRows
]  # what makes the rows of gathered inputs, in the order of their numbers


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


class Draw(NamedTuple):
    """The random numbers of a step."""

    tensor: str  # that would draw them alone
    models: tuple[int, ...]  # as counted without the base


class Outcome(NamedTuple):
    """What becomes of a target: its step, or why there is none."""

    step: Step | None = None
    findings: Sequence[Finding] = ()  # which are told together with those of other targets
    problems: Sequence[Problem] = ()
    left: Mapping[tuple[int, str], str] = {}  # number of model and name -> why no step reads it
    resolved: Sequence[Resolved] = ()  # hyperparameters, to be checked
    draw: Draw | None = None  # of random methods
    maps: Maps = {}  # of gathered inputs, those that are new
    cast: bool = False  # its dtype is the recipe's to choose


@dataclass(frozen=True)
class SameName(Cause):
    """Two targets have one name."""

    path: Path  # of the slice

    def tell(self, found: Sequence[Finding], scene: Scene) -> Iterator[Problem]:
        """One error."""
        more = f" ({len(found) - 1} more like it)" if len(found) > 1 else ""
        message = f"two tensors of the output would be called {found[0].name}{more}"
        yield error("JM234", message, self.path)
