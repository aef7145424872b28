"""The numbers that a merge of trees is called with: checked, and resolved for every leaf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.by_path import ByPath, Leaf, OverLayers, resolve, varies
from jmerge.methods.prefixes import Path, is_tree, spread
from jmerge.methods.spec import Method, Parameter, Required
from jmerge.names import did_you_mean

Numbers = dict[str, Any]  # by their names in recipes

KINDS = "a number, {each}jmerge.by_path, or a tree like the models"
TRACED = (
    "'{name}' decides what program there is, so it has to be a plain value; it cannot be traced"
)


@dataclass(frozen=True)
class Arguments:
    """The numbers of a call, by their names in recipes, as they were given."""

    method: Method
    models: int
    given: Numbers
    by_leaf: Mapping[str, Sequence[Any]]  # those that were given as trees, for each leaf

    def for_leaf(self, number: int, leaf: Leaf) -> Numbers:
        """The numbers of a leaf, the number-th of its tree: plain ones as Python has them, of each model in a tuple, or
        arrays.

        Raises:
          ValueError: one is out of its range, or they do not go together; TypeError: one is no number.
        """
        found = {}
        for name, declared in self.method.settable.items():
            value = self.given[name]
            if name in self.by_leaf:
                value = self.by_leaf[name][number]
            found[name] = _converted(resolve(value, leaf, name), declared, self.models, name)
        if not _is_traced(found) and (problem := self.method.check(found)):
            at = f" (of '{leaf.name}')" if self.vary else ""
            raise ValueError(f"{self.method.name}{at}: {problem}")
        return found

    @property
    def vary(self) -> bool:
        """Whether the numbers are not the same for all leaves."""
        return bool(self.by_leaf) or any(map(varies, self.given.values()))


def read_arguments(
    method: Method,
    models: int,
    numbers: Mapping[str, Any],
    paths: Sequence[Path],
    beside: Sequence[str] = (),
) -> Arguments:
    """The numbers by their names in recipes, unset ones at their defaults; `beside` are other names that there are.

    Raises:
      TypeError: a name is unknown, twice there or missing, or a value is of another kind.
      ValueError: a value is none that it can be.
    """
    known = {method.keywords[name]: name for name in method.settable} | {
        n: n for n in method.settable
    }
    for name in numbers:
        if name not in known:
            words = dict.fromkeys(method.keywords[each] for each in method.settable)
            own = [*words, *(each for each in method.settable if each not in words)]
            hint = did_you_mean(name, [*own, *beside], show=30)
            raise TypeError(f"'{name}' is not a parameter of '{method.name}'{hint}")
    given: Numbers = {}
    by_leaf: dict[str, Sequence[Any]] = {}
    for name, declared in method.settable.items():
        keyword = method.keywords[name]
        if keyword != name and keyword in numbers and name in numbers:
            raise TypeError(f"'{keyword}' and '{name}' are the same parameter; pass one of them")
        value = numbers.get(keyword, numbers.get(name, declared.default))
        if isinstance(value, Required):
            raise TypeError(f"'{method.name}' needs '{keyword}': {declared.doc}")
        given[name] = value
        if _is_prefix(value, declared):
            by_leaf[name] = _spread(value, paths, name, declared)
    return Arguments(method, models, given, by_leaf)


def _spread(value: Any, paths: Sequence[Path], name: str, declared: Parameter) -> list[Any]:
    """What a tree says of each leaf; lists in it are branches, or else a number for each model."""
    try:
        return spread(value, paths, name)
    except ValueError:
        if not declared.per_model:
            raise
        try:
            return spread(value, paths, name, lists=False)
        except ValueError:
            pass
        raise


def _is_prefix(value: Any, declared: Parameter) -> bool:
    """Whether a value is a tree with a number for each leaf or branch."""
    if isinstance(value, list | tuple) and declared.per_model:
        return False  # a number for each model
    return not isinstance(value, ByPath | OverLayers) and is_tree(value)


def _converted(value: Any, declared: Parameter, models: int, name: str) -> Any:
    """A value of a leaf as its parameter has it."""
    if value is None and declared.default is None:
        return None
    if not declared.per_model:
        return _one(value, declared, name)
    if isinstance(value, list | tuple):
        if len(value) != models:
            raise ValueError(
                f"{name}: expected a number for each of {models} models, found {len(value)}"
            )
        if value and all(each is None for each in value) and declared.default is None:
            return None
        return _together([_one(each, declared, name) for each in value])
    if _is_array(value) and np.ndim(value):
        if value.shape != (models,):
            raise ValueError(
                f"{name}: expected a number for each of {models} models, found an array of shape {value.shape}"
            )
        if isinstance(value, jax.core.Tracer):
            return _checked_dtype(value, name)
        return _together([_one(each, declared, name) for each in np.asarray(value)])
    one = _one(value, declared, name)
    return jnp.broadcast_to(one, (models,)) if _is_array(one) else (one,) * models


def _together(values: Sequence[Any]) -> Any:
    """One value for each model: a tuple of plain numbers, or an array."""
    if not any(_is_array(each) for each in values):
        return tuple(values)
    dtype = jnp.result_type(*(each.dtype for each in values if _is_array(each)))
    return jnp.stack([jnp.asarray(each, dtype) for each in values])


def _one(value: Any, declared: Parameter, name: str) -> Any:
    """A single number: plain, or an array of which only the device knows what it is."""
    if _is_array(value) and np.ndim(value) == 0:
        if isinstance(value, jax.core.Tracer):
            if declared.kind != "float":
                raise TypeError(TRACED.format(name=name))
            return _checked_dtype(value, name)
        value = value.item()
    if declared.kind == "bool":
        if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
            return bool(value)
        if isinstance(value, str) and value in declared.words:
            return True if value == declared.words[0] else value
        kinds = ", ".join(["True", *map(repr, declared.words)])
        raise TypeError(f"'{name}' is {kinds} or False; found {value!r}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        kinds = KINDS.format(each="a list of one for each model, " if declared.per_model else "")
        found = f"an array of shape {np.shape(value)}" if _is_array(value) else repr(value)
        raise TypeError(f"{name}: expected {kinds}; found {found}")
    plain = float(value)
    if problem := declared.problem(plain):
        raise ValueError(f"{name}: {problem}")
    if declared.kind == "int":
        if not plain.is_integer():
            raise ValueError(f"{name}: expected a whole number, found {value!r}")
        return int(plain)
    return plain


def _checked_dtype(value: Any, name: str) -> Any:
    if not jnp.issubdtype(value.dtype, jnp.floating) and not jnp.issubdtype(
        value.dtype, jnp.integer
    ):
        raise TypeError(f"{name}: expected numbers, found an array of {value.dtype}")
    if jnp.issubdtype(value.dtype, jnp.integer):
        return value.astype(jnp.float32)
    return value.astype(jnp.float32) if value.dtype.itemsize < 4 else value


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def _is_traced(values: Any) -> bool:
    return any(isinstance(each, jax.core.Tracer) for each in jax.tree.leaves(values))
