"""The numbers that a merge of trees is called with: checked, and resolved for every leaf."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.spec import Method, Parameter, Required, Shared
from jmerge.names import did_you_mean
from jmerge.trees.by_path import ByLeaf, ByPath, Leaf, OverLayers, resolve, varies
from jmerge.trees.paths import Path, is_array, is_tree, spread

Hyperparameters = dict[str, Any]  # by their names in recipes

# what the planner fills in for recipes
DEPTH = "lines.depth"
DECLARED_DEPTH = Shared(
    low=0.0,
    high=1.0,
    doc="the relative depth of each leaf, from 0 to 1, as a tree like the models or depth=jmerge.over_layers(0.0, 1.0)",
)


def parameters_of(method: Method) -> dict[str, tuple[str, Parameter]]:
    """The parameters of a method by their names in recipes: their keywords, and what they can be."""
    found = {name: (method.keywords[name], each) for name, each in method.settable.items()}
    return found | ({DEPTH: ("depth", DECLARED_DEPTH)} if DEPTH in method.parameters else {})


def check_names(method: Method, hyperparameters: Mapping[str, Any], beside: Sequence[str]) -> None:
    """TypeError where a number is none that the method has; `beside` are other names that there are."""
    known = parameters_of(method)
    words = [*dict.fromkeys([keyword for keyword, _ in known.values()] + list(known)), *beside]
    for name in hyperparameters:
        if name not in words:
            hint = did_you_mean(name, words, show=30)
            raise TypeError(f"'{name}' is not a parameter of '{method.name}'{hint}")
    for name, (keyword, declared) in known.items():
        if keyword != name and keyword in hyperparameters and name in hyperparameters:
            raise TypeError(f"'{keyword}' and '{name}' are the same parameter; pass one of them")
        if isinstance(declared.default, Required) and not hyperparameters.keys() & {keyword, name}:
            raise TypeError(f"'{method.name}' needs '{keyword}': {declared.doc}")


@dataclass(frozen=True)
class Arguments:
    """The numbers of a call."""

    method: Method
    models: int
    given: Hyperparameters  # as they were given where they differ from leaf to leaf, else checked
    said: Mapping[str, str]  # what the caller calls them

    @property
    def vary(self) -> bool:
        """Whether the numbers are not the same for all leaves."""
        return any(map(varies, self.given.values()))

    def at(self, leaf: Leaf) -> Hyperparameters:
        """The numbers of a leaf: plain ones as Python has them, of each model in a tuple, or arrays.

        Raises:
          ValueError: one is out of its range, or they do not go together; TypeError: one is no number.
        """
        found = dict(self.given)
        for name, value in self.given.items():
            if varies(value):
                _, declared = parameters_of(self.method)[name]
                said = self.said[name]
                own = resolve(value, leaf, said, by_layer=not declared.per_model)
                found[name] = _converted(own, declared, self.models, said)
        self.check(found, f" (of '{leaf.name}')")
        return found

    def check(self, hyperparameters: Hyperparameters, at: str = "") -> None:
        """ValueError where numbers do not go together, which can be seen where none is traced."""
        traced = any(isinstance(each, jax.core.Tracer) for each in jax.tree.leaves(hyperparameters))
        if not traced and (problem := self.method.check(hyperparameters)):
            raise ValueError(f"{self.method.name}{at}: {problem}")


def read_arguments(
    method: Method, models: int, hyperparameters: Mapping[str, Any], paths: Sequence[Path]
) -> Arguments:
    """The numbers of a call, whose names are checked; unset ones at their defaults.

    Raises:
      TypeError: a value is of another kind; ValueError: it is none that it can be, or they do not go together.
    """
    given: Hyperparameters = {}
    said: dict[str, str] = {}
    for name, (keyword, declared) in parameters_of(method).items():
        said[name] = name if name in hyperparameters else keyword
        value = hyperparameters.get(said[name], declared.default)
        if _is_prefix(value, declared):
            value = _by_leaf(value, paths, said[name], declared)
        given[name] = value if varies(value) else _converted(value, declared, models, said[name])
    arguments = Arguments(method, models, given, said)
    if not arguments.vary:
        arguments.check(given)
    return arguments


def _is_prefix(value: Any, declared: Parameter) -> bool:
    """Whether a value is a tree with a number for each leaf or branch."""
    if isinstance(value, list | tuple) and declared.per_model:
        return False  # a number for each model
    return not isinstance(value, ByPath | OverLayers) and is_tree(value)


def _by_leaf(value: Any, paths: Sequence[Path], said: str, declared: Parameter) -> ByLeaf:
    """What a tree says of each leaf; lists in it are branches, or else a number for each model."""
    try:
        return ByLeaf(spread(value, paths, said))
    except ValueError:
        if declared.per_model:
            with suppress(ValueError):
                return ByLeaf(spread(value, paths, said, lists=False))
        raise


def _converted(value: Any, declared: Parameter, models: int, said: str) -> Any:
    """A value of a leaf as its parameter has it."""
    if value is None and declared.default is None:
        return None
    if not declared.per_model:
        return _one(value, declared, said)
    if isinstance(value, list | tuple):
        if len(value) != models:
            raise ValueError(
                f"{said}: expected a number for each of {models} models, found {len(value)}"
            )
        if value and all(each is None for each in value) and declared.default is None:
            return None
        return _together([_one(each, declared, said) for each in value])
    if is_array(value) and np.ndim(value):
        if value.shape != (models,):
            raise ValueError(
                f"{said}: expected a number for each of {models} models, found an array of shape {value.shape}"
            )
        if isinstance(value, jax.core.Tracer):
            return _traced(value, declared, said)
        _check_dtype(value, said)
        return _together([_one(each, declared, said) for each in np.asarray(value)])
    one = _one(value, declared, said)
    return jnp.broadcast_to(one, (models,)) if is_array(one) else (one,) * models


def _together(values: Sequence[Any]) -> Any:
    """One value for each model: a tuple of plain numbers, or an array."""
    if not any(map(is_array, values)):
        return tuple(values)
    dtype = jnp.result_type(*(each.dtype for each in values if is_array(each)))
    return jnp.stack([jnp.asarray(each, dtype) for each in values])


def _one(value: Any, declared: Parameter, said: str) -> Any:
    """A single number: plain, or an array of which only the device knows what it is."""
    if is_array(value) and np.ndim(value) == 0:
        if isinstance(value, jax.core.Tracer):
            return _traced(value, declared, said)
        _check_dtype(value, said)
        value = value.item()
    if declared.kind == "bool":
        if isinstance(value, int) and value in (0, 1):
            return bool(value)
        if isinstance(value, str) and value in declared.words:
            return True if value == declared.words[0] else value
        kinds = ", ".join(["True", *map(repr, declared.words)])
        raise TypeError(f"'{said}' is {kinds} or False; found {value!r}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        each = "a list of one for each model, " if declared.per_model else ""
        found = f"an array of shape {np.shape(value)}" if is_array(value) else repr(value)
        raise TypeError(
            f"{said}: expected a number, {each}jmerge.by_path, or a tree like the models; found {found}"
        )
    # a whole number may be too long for a float
    plain = math.inf if isinstance(value, int) and value.bit_length() > 1023 else float(value)
    if problem := declared.refusal(plain):
        raise ValueError(f"{said}: {problem}")
    if declared.kind == "int":
        if not plain.is_integer():
            raise ValueError(f"{said}: expected a whole number, found {value!r}")
        return int(plain)
    return plain


def _traced(value: jax.Array, declared: Parameter, said: str) -> jax.Array:
    if declared.kind != "float":
        raise TypeError(
            f"'{said}' decides what program there is, so it has to be a plain value; it cannot be traced"
        )
    _check_dtype(value, said)
    wide = jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize >= 4
    number: jax.Array = value if wide else value.astype(jnp.float32)
    return number


def _check_dtype(value: Any, said: str) -> None:
    if not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool)):
        raise TypeError(f"{said}: expected numbers, found an array of {value.dtype}")
