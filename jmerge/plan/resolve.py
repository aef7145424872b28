"""Settings to numbers: which scope answers for a parameter, and what it says for one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jmerge.errors import Fault
from jmerge.methods.spec import Method, Parameter, Required
from jmerge.plan.parameters import base_position, is_misspelt, missing
from jmerge.plan.places import Place
from jmerge.recipe.recipe import OutSlice, Parameters, Recipe, Source
from jmerge.recipe.settings import Undefined
from jmerge.recipe.yamltree import Path

WEIGHT = "weight"


class Input(NamedTuple):
    """A source of a tensor and the tensor's name in it, which filters see."""

    source: Source
    name: str


class _Missing(NamedTuple):
    """A parameter that is needed and not there."""

    names: list[str]  # of the tensors that need it
    scopes: Sequence[Parameters]  # where it could stand


class _Weights(NamedTuple):
    """Weights of which only the proportions count."""

    out_slice: OutSlice
    where: Path  # one of them stands
    seen: set[float | None]  # what all models have for a tensor; None: not all have the same


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
        """Keep in mind weights of which only the proportions count."""
        if origins and origins[0] is not None and self.sound and self.method.divides(numbers):
            weights = numbers[WEIGHT]
            known = self.weights.setdefault(out_slice.path, _Weights(out_slice, origins[0], set()))
            known.seen.add(weights[0] if min(weights) == max(weights) > 0 else None)

    def _idle_weights(self) -> Iterator[Fault]:
        """Weights that are divided away: of one model alone, or varying ones that all models have alike."""
        for out_slice, where, seen in self.weights.values():
            switch = next((key for key in self.method.settable if key.startswith("normalize")), "")
            remedy = f", or set '{switch}: false'" if switch else ""
            message = "has no effect: weights are divided by their sum, and"
            base = base_position(self.method, out_slice)
            alone = len(out_slice.sources) - (base is not None) == 1
            if None in seen or seen == {1} or (len(seen) == 1 and not alone):
                continue
            if alone:
                message += f" here one model is alone; remove it{remedy}"
            else:
                message += f" here all models have the same; give each its own{remedy}"
            yield self.recipe.fault(message, where)

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
