"""Settings to hyperparameters: which scope answers for one, what it says for one tensor, and whether the method can use
what it gets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from jmerge.errors import InvalidValueError
from jmerge.methods.spec import Method, Parameter, Required
from jmerge.plan.check import base_position, is_misspelt, missing_text, scopes_of
from jmerge.plan.problems import PlanProblem, error, warning
from jmerge.plan.targets import Place
from jmerge.recipe.recipe import OutSlice, Parameters, Recipe, Source
from jmerge.recipe.settings import Undefined
from jmerge.recipe.yamltree import Path

WEIGHT = "weight"


class Input(NamedTuple):
    """A source of a tensor and the tensor's name in it, which filters see."""

    source: Source
    name: str


class Lack(NamedTuple):
    """A hyperparameter that a tensor needs and the recipe does not give."""

    owner: Path  # where it could be
    key: str
    scopes: Sequence[Parameters]  # where it is looked for


class Resolved(NamedTuple):
    """The hyperparameters of one tensor, and what is wrong with them."""

    tensor: str  # of the output
    out_slice: OutSlice
    models: int  # without the base
    values: dict[str, Any]
    weights_at: Sequence[Path | None]  # where the weight of each model is; None for a default
    wrong: Sequence[PlanProblem]
    lacking: Sequence[Lack]
    sound: bool  # every value is there and in its range


class _Looked(NamedTuple):
    """What the recipe says of one hyperparameter."""

    value: Any
    path: Path | None = None  # where; None for a default
    sound: bool = True
    problem: PlanProblem | None = None
    lacking: bool = False


@dataclass(frozen=True)
class Resolver:
    """Resolves the hyperparameters of one recipe; `given` are those that do not stand under `parameters`."""

    recipe: Recipe
    method: Method
    given: Mapping[str, Any]

    @cached_property
    def by_name(self) -> bool:
        """Whether a hyperparameter depends on names of tensors."""
        found = (
            setting
            for scope in scopes_of(self.recipe, self.method)
            for setting in scope[0].values()
        )
        return any(case.filter is not None for setting in found for case in setting.cases)

    def resolve(self, place: Place, depth: float, name: str, models: Sequence[Input]) -> Resolved:
        """The hyperparameters for the output tensor `name` made of `models` (without the base) at its place.

        Those of one number are looked up in slice, module and recipe; those of each model first in the source.
        """
        module, out_slice, t = place.module, place.out_slice, place.t
        outer = [
            (out_slice.parameters, out_slice.path),
            (module.parameters, module.path),
            (self.recipe.parameters, ()),
        ]
        given = {**self.given, "lines.depth": depth}
        values: dict[str, Any] = {}
        weights_at: list[Path | None] = []
        wrong: list[PlanProblem] = []
        lacking: list[Lack] = []
        sound = True
        for key, declared in self.method.parameters.items():
            if key in given:
                values[key] = given[key]
                continue
            if declared.per_model:
                asked = [
                    ([(m.source.parameters, m.source.path), *outer], m.name, m.source.path)
                    for m in models
                ]
            else:
                asked = [(outer, name, ("parameters",))]
            found = []
            for scopes, seen, owner in asked:
                looked = _look_up(key, declared, scopes, seen, t)
                found.append(looked.value)
                sound &= looked.sound
                if looked.problem:
                    wrong.append(looked.problem)
                if key == WEIGHT and declared.per_model:
                    weights_at.append(looked.path)
                if looked.lacking:
                    lacking.append(Lack(owner, key, [parameters for parameters, _ in scopes]))
            if declared.per_model:
                unset = not found or any(value is None for value in found)
                values[key] = None if unset and declared.default is None else tuple(found)
            else:
                (values[key],) = found
        return Resolved(name, out_slice, len(models), values, weights_at, wrong, lacking, sound)


def _look_up(
    key: str,
    declared: Parameter,
    scopes: Iterable[tuple[Parameters, Path]],
    name: str,
    t: float,
) -> _Looked:
    for parameters, path in scopes:
        if key not in parameters:
            continue
        where = (*path, "parameters", key)
        try:
            value = parameters[key].resolve(declared.kind, t, name)
        except InvalidValueError as problem:
            wrong = error(problem.code, str(problem), where)
            return _Looked(0.0, where, sound=False, problem=wrong)
        if isinstance(value, Undefined):
            continue
        return _Looked(value, where, sound=not declared.refusal(value))  # `check` has the problem
    if isinstance(declared.default, Required):
        return _Looked(0.0, sound=False, lacking=True)
    return _Looked(declared.default)


class _Weights(NamedTuple):
    """The weights of a slice."""

    out_slice: OutSlice
    paths: dict[Path, None]  # where they are
    # What all models have for a tensor, where only proportions count; None: they differ, or more than proportions count.
    seen: set[float | None]

    def alone(self, method: Method) -> bool:
        """Whether there is one model besides the base."""
        base = base_position(method, self.out_slice)
        return len(self.out_slice.sources) - (base is not None) == 1

    def idle(self, method: Method) -> bool:
        """Whether they change nothing though they look as if they did."""
        return None not in self.seen and (
            self.seen != {1} if self.alone(method) else len(self.seen) > 1
        )


def check_resolved(found: Sequence[Resolved], method: Method) -> Iterator[PlanProblem]:
    """What is wrong with the hyperparameters of all tensors, each cause once, and what the method advises."""
    wrong: dict[PlanProblem, None] = {}
    advised: dict[PlanProblem, None] = {}
    lacking: dict[tuple[Path, str], tuple[Lack, list[str]]] = {}
    weights: dict[Path, _Weights] = {}
    seen: set[int] = set()  # values that many tensors share
    sound = True
    for each in found:
        values, where = each.values, each.out_slice.sources_path
        sound &= each.sound
        wrong |= dict.fromkeys(each.wrong)
        for lack in each.lacking:
            lacking.setdefault(lack[:2], (lack, []))[1].append(each.tensor)
        if id(values) in seen:
            continue
        seen.add(id(values))
        told = any(where == problem.path for problem in wrong)
        if sound and not told and (problem := method.check(values)):
            wrong[error("JM208", problem, where)] = None
        if advice := method.advice(values, each.models):
            advised[warning("JM210", advice, where)] = None
        if sound and each.weights_at:
            own = values[WEIGHT]
            alike = method.divides(values) and min(own) == max(own) > 0
            known = weights.setdefault(each.out_slice.path, _Weights(each.out_slice, {}, set()))
            known.paths.update((path, None) for path in each.weights_at if path is not None)
            known.seen.add(own[0] if alike else None)
    yield from wrong
    for lack, names in lacking.values():
        if not is_misspelt(method, lack.key, lack.scopes):
            more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
            message = missing_text(method, lack.key, f"{names[0]}{more}")
            per_model = method.parameters[lack.key].per_model
            yield error("JM209", message, lack.owner if per_model else ())
    yield from advised
    yield from _idle_weights(weights, method)


def _idle_weights(found: Mapping[Path, _Weights], method: Method) -> Iterator[PlanProblem]:
    """Weights that are divided away wherever they are used: of one model alone, or varying ones that all models have
    alike."""
    idle = {path for path, weights in found.items() if weights.idle(method)}
    count = {where for path in found.keys() - idle for where in found[path].paths}
    switch = next((key for key in method.settable if key.startswith("normalize")), "")
    remedy = f", or set '{switch}: false'" if switch else ""
    for path in found:
        where = next(iter(found[path].paths), None)
        if path not in idle or where is None or where in count:
            continue
        message = "has no effect: weights are divided by their sum, and here"
        if found[path].alone(method):
            message += " one model is alone; remove it"
        else:
            message += " all models have the same; give each its own"
        yield warning("JM210", message + remedy, where)
