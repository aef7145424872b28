"""What becomes of one tensor that the output may have: its step, and what is found on the way.

What many tensors show is a finding each, and the findings of one cause are told as one problem.

A tensor that some models lack is never merged as if they had zeros. Means are taken over those that have it; a sum whose
weights nothing normalises gets weights that make up for the others, or is refused. A change that a model lacks is none,
so methods on changes from a base add those that there are to the base's tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jmerge.methods.spec import Method
from jmerge.plan.hyperparameters import Resolved
from jmerge.plan.pairing import View
from jmerge.plan.problems import (
    PlanProblem,
    and_more,
    any_layer,
    error,
    excepting,
    patterns_of,
    warning,
)
from jmerge.plan.steps import Step
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import Path
from jmerge.tokens.rows import TableRows

UNKNOWN_LENGTH = "the weights are not normalised, so it is unclear how much the others count"
ONE = 1e-6  # how far from 1 weights may sum that are meant to make a mean
FEW = (
    3  # tensors of a layer or around them that may differ in shape before it is the models that do
)
OTHER_VOCABULARY = (
    "the vocabularies differ; add 'tokenizer_source: union' for the tokens of all models, or "
    "'tokenizer_source: base' for those of the base"
)

MapKey = tuple[tuple[int, ...], tuple[int, ...]]  # models with a table, and asked in vain for one
Maps = Mapping[MapKey, TableRows]  # what makes the rows of gathered inputs, by number


class Scene(NamedTuple):
    """What findings are told against."""

    recipe: Recipe
    views: Mapping[ModelRef, View]  # the donor's first
    asked: Mapping[str, Any]  # names of all tensors that the output may have


@dataclass(frozen=True)
class Cause(ABC):
    """Why something is found of tensors. Each kind of cause is a class, and equal causes are told as one."""

    @abstractmethod
    def tell(self, found: Sequence[Finding], scene: Scene) -> Iterator[PlanProblem]:
        """The problems that these findings of this cause are."""


class Finding(NamedTuple):
    """Something that is found of one tensor."""

    cause: Cause
    name: str  # of the output
    detail: Any = None  # of this tensor alone


def tell(
    kinds: Iterable[type[Cause]], findings: Iterable[Finding], scene: Scene
) -> Iterator[PlanProblem]:
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
    problems: Sequence[PlanProblem] = ()
    left: Mapping[tuple[int, str], str] = {}  # number of model and name -> why no step reads it
    resolved: Sequence[Resolved] = ()  # hyperparameters, to be checked
    draw: Draw | None = None  # of random methods
    maps: Maps = {}  # of gathered inputs, those that are new
    cast: bool = False  # its dtype is the recipe's to choose


@dataclass(frozen=True)
class SameName(Cause):
    """Two targets have one name."""

    path: Path  # of the slice

    def tell(self, found: Sequence[Finding], scene: Scene) -> Iterator[PlanProblem]:
        """One error."""
        more = f" ({len(found) - 1} more like it)" if len(found) > 1 else ""
        message = f"two tensors of the output would be called {found[0].name}{more}"
        yield error("JM234", message, self.path)


@dataclass(frozen=True)
class OtherShape(Cause):
    """A model has tensors in another shape; details: the shapes, for people."""

    ref: ModelRef

    def tell(self, found: Sequence[Finding], scene: Scene) -> Iterator[PlanProblem]:
        """One error for each model."""
        shapes = {finding.name: finding.detail for finding in found}
        tables = {
            name
            for view in scene.views.values()
            for names in (view.layout.embeddings, view.layout.heads, view.layout.vocab_biases)
            for name in names
        }
        code, hint = "JM214", "models of different sizes cannot be merged"
        if set(shapes) <= tables:
            if scene.recipe.tokenizer is None:
                code, hint = "JM226", OTHER_VOCABULARY
        elif len(kinds := dict.fromkeys(map(any_layer, shapes))) <= FEW:
            hint = f"leave out what differs with {excepting(kinds)}"
        name, text = next(iter(shapes.items()))
        more = f" ({len(shapes)} tensors differ)" if len(shapes) > 1 else ""
        yield error(code, f"{name} is {text}{more}: {hint}", scene.recipe.first_path(self.ref))


@dataclass(frozen=True)
class Lacking(Cause):
    """Some models lack a tensor, so that it cannot be made."""

    absent: str  # these models
    reason: str
    path: Path

    def tell(self, found: Sequence[Finding], scene: Scene) -> Iterator[PlanProblem]:
        """One error."""
        names = names_of(found)
        message = f"{and_more(names)}: not in {self.absent}; {self.reason}"
        if self.path[-1:] != ("otherwise",):
            message += f"; leave out what only some have with {excepting_only(names, scene)}"
        yield error("JM215", message, self.path)


@dataclass(frozen=True)
class MergedWithout(Cause):
    """Some models lack a tensor, which is made without them."""

    absent: str  # these models
    then: str

    def tell(self, found: Sequence[Finding], scene: Scene) -> Iterator[PlanProblem]:
        """One warning."""
        then = self.then or "merged from the others"
        yield warning("JM221", f"{and_more(names_of(found))}: not in {self.absent}; {then}", ())


def excepting_only(names: Sequence[str], scene: Scene) -> str:
    """The line of a recipe that leaves out these tensors of the output and no others."""
    return excepting(patterns_of(names, scene.asked.keys() - {*names}))


def shapes_text(shape: Sequence[int], ref: ModelRef, wanted: Sequence[int], other: ModelRef) -> str:
    """Two shapes, for people."""
    return f"{list(shape)} in {ref} and {list(wanted)} in {other}"


class Verdict(NamedTuple):
    """`run` the method on those present, `copy` the only one (or the base), or `refuse` with a reason."""

    action: Literal["run", "copy", "refuse"]
    reason: str = ""


def judge(method: Method, has_base: bool, models: int, without: int) -> Verdict:
    """The verdict when `models` of the models have the tensor and `without` lack it, and the base has it or not (or
    there is none).

    Called only when at least one source has the tensor and at least one lacks it. Methods to which the base is an
    input like any other average over those present; one tensor alone is taken as it is by methods that turn one
    model towards another; methods that work on changes from the base need the base's tensor.
    """
    low, _ = method.counts
    if method.base == "input":
        return Verdict("run") if models >= low else Verdict("refuse", "no source has it")
    if has_base and models == 0:
        return Verdict("copy", "only the base has it")
    if method.takes == "base, models" and not has_base and models == 1:
        return Verdict("copy", "only one source has it")
    if method.base == "needed" and not has_base:
        return Verdict("refuse", "the base lacks it, so there is nothing to take the change from")
    if models < low:
        return Verdict("refuse", f"{method.counts_text()} must have it")
    if method.of_model and without:
        return Verdict(
            "refuse", f"'{method.name}' looks at whole models, so all of them must have it"
        )
    return Verdict("run")


def made_up(weights: Sequence[float], present: Sequence[int]) -> tuple[tuple[float, ...], Verdict]:
    """The weights of the models at positions `present` in a sum that is not normalised, and whether they are known.

    They stay where they sum to 1, as in base + change where only the base has the tensor. Where all `weights` sum to 1
    the sum is a mean, and so it is of those that have the tensor. Otherwise the sum is longer or shorter than its models
    on purpose, and how much of that is due to those that lack the tensor is not known.
    """
    own = tuple(weights[i] for i in present)
    if abs(sum(own) - 1) <= ONE:
        return own, Verdict("run")
    if abs(sum(weights) - 1) <= ONE and abs(sum(own)) > ONE:
        made = tuple(weight / sum(own) for weight in own)
        return made, Verdict("run", "merged from the others, whose weights make up for it")
    return own, Verdict("refuse", UNKNOWN_LENGTH)
