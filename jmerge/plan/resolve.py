"""Settings to numbers: which scope answers for a parameter, and what it says for one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jmerge.errors import Fault
from jmerge.methods.spec import Method, Parameter, Required
from jmerge.plan.parameters import base_position, is_misspelt, missing
from jmerge.plan.places import Place
from jmerge.plan.presence import WEIGHT
from jmerge.recipe.recipe import OutSlice, Parameters, Recipe, Source
from jmerge.recipe.settings import Undefined
from jmerge.recipe.yamltree import Path


class Input(NamedTuple):
    """A source of a tensor and the tensor's name in it, which filters see."""

    source: Source
    name: str


class _Missing(NamedTuple):
    """A parameter that is needed and not there."""

    names: list[str]  # of the tensors that need it
    scopes: Sequence[Parameters]  # where it could stand


class _Weights(NamedTuple):
    """The weights of a slice."""

    out_slice: OutSlice
    origins: dict[Path, None]  # where they stand
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


class Resolver:
    """Resolves the parameters of one recipe and keeps its faults, one for each cause however many tensors show it."""

    def __init__(self, recipe: Recipe, method: Method) -> None:
        self.recipe = recipe
        self.method = method
        self.missing: dict[tuple[Path, str], _Missing] = {}
        self.sound = True  # every number is there and in its range
        self.wrong: dict[tuple[Path, str], None] = {}  # (path, message)
        self.advised: dict[tuple[Path, str], None] = {}
        self.weights: dict[Path, _Weights] = {}  # by slice

    def numbers(
        self, place: Place, name: str, models: Sequence[Input], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The parameters for the output tensor `name` made of `models` (without the base) at its place.

        Parameters of one number are looked up in slice, module and recipe; those of each model first in the source.
        given: values of those that do not stand under `parameters`.
        """
        module, out_slice, t = place.module, place.out_slice, place.t
        outer = [
            (out_slice.parameters, out_slice.path),
            (module.parameters, module.path),
            (self.recipe.parameters, ()),
        ]
        numbers: dict[str, Any] = {}
        origins: dict[str, list[Path | None]] = {}  # by parameter of each model, where it stands
        for key, declared in self.method.parameters.items():
            if key in given:
                numbers[key] = given[key]
            elif declared.per_model:
                found = [
                    self._look_up(
                        key,
                        declared,
                        [(m.source.parameters, m.source.path), *outer],
                        m.name,
                        t,
                        m.source.path,
                    )
                    for m in models
                ]
                values = [value for value, _ in found]
                origins[key] = [path for _, path in found]
                unset = not values or any(value is None for value in values)
                numbers[key] = None if unset and declared.default is None else tuple(values)
            else:
                numbers[key], _ = self._look_up(key, declared, outer, name, t, ("parameters",))
        where = out_slice.sources_path
        told = any(where == path for path, _ in self.wrong)
        if self.sound and not told and (problem := self.method.check(numbers)):
            self.wrong[(where, problem)] = None
        self._note_weights(numbers, origins.get(WEIGHT, []), out_slice)
        if advice := self.method.advice(numbers, len(models)):
            self.advised[(where, advice)] = None
        return numbers

    def _look_up(
        self,
        key: str,
        declared: Parameter,
        scopes: Sequence[tuple[Parameters, Path]],
        name: str,
        t: float,
        owner: Path,
    ) -> tuple[Any, Path | None]:
        """The value and where it stands: nowhere, for a default."""
        for parameters, path in scopes:
            if key not in parameters:
                continue
            where = (*path, "parameters", key)
            try:
                value = parameters[key].resolve(declared.kind, t, name)
            except ValueError as error:
                self.wrong[(where, str(error))] = None
                self.sound = False
                return 0.0, where
            if isinstance(value, Undefined):
                continue
            if declared.problem(value):
                self.sound = False  # which `check_parameters` tells
            return value, where
        if isinstance(declared.default, Required):
            self.sound = False
            lack = self.missing.setdefault((owner, key), _Missing([], [p for p, _ in scopes]))
            lack.names.append(name)
            return 0.0, None
        return declared.default, None

    def _note_weights(
        self, numbers: Mapping[str, Any], origins: Sequence[Path | None], out_slice: OutSlice
    ) -> None:
        """Keep in mind where weights come from and whether they count."""
        if not self.sound or not origins:
            return
        weights = numbers[WEIGHT]
        alike = self.method.divides(numbers) and min(weights) == max(weights) > 0
        known = self.weights.setdefault(out_slice.path, _Weights(out_slice, {}, set()))
        known.origins.update((path, None) for path in origins if path is not None)
        known.seen.add(weights[0] if alike else None)

    def _idle_weights(self) -> Iterator[Fault]:
        """Weights that are divided away wherever they are used: of one model alone, or varying ones that all models
        have alike."""
        idle = {path for path, weights in self.weights.items() if weights.idle(self.method)}
        count = {where for p in self.weights.keys() - idle for where in self.weights[p].origins}
        switch = next((key for key in self.method.settable if key.startswith("normalize")), "")
        remedy = f", or set '{switch}: false'" if switch else ""
        for path in self.weights:
            where = next(iter(self.weights[path].origins), None)
            if path not in idle or where is None or where in count:
                continue
            message = "has no effect: weights are divided by their sum, and here"
            if self.weights[path].alone(self.method):
                message += " one model is alone; remove it"
            else:
                message += " all models have the same; give each its own"
            yield self.recipe.fault(message + remedy, where)

    def warnings(self) -> list[Fault]:
        """What the method has to say of the numbers."""
        advised = [self.recipe.fault(message, path) for path, message in self.advised]
        return [*advised, *self._idle_weights()]

    def faults(self) -> list[Fault]:
        """Everything that could not be resolved."""
        found = [self.recipe.fault(message, path) for path, message in self.wrong]
        for (owner, key), (names, scopes) in self.missing.items():
            if is_misspelt(self.method, key, scopes):
                continue
            declared = self.method.parameters[key]
            more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
            message = missing(self.method, key, f"{names[0]}{more}")
            found.append(self.recipe.fault(message, owner if declared.per_model else ()))
        return found
