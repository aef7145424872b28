"""A recipe written in Python: maps, lists and numbers to what YAML would have given, and the models that it holds.

A model may stand in it as an opened checkpoint or as a mapping of arrays, wherever the grammar has a reference.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from jmerge.errors import Problem
from jmerge.recipe.refs import IN_MEMORY, ModelRef, parse_ref
from jmerge.recipe.yamltree import Document, Path, show_path

REFERENCES = ("model", "base_model", "source", "tokenizer_source")  # keys whose value is a model
DTYPES = ("dtype", "out_dtype")


class Given(NamedTuple):
    """A recipe of Python values."""

    document: Document  # without lines
    text: str  # the same as YAML; models in memory are `memory://1` and so on
    models: Mapping[ModelRef, Any]  # opened checkpoints, and mappings of arrays


def read_values(recipe: Mapping[str, Any]) -> Given:
    """The document that `recipe` stands for; what cannot stand in a recipe is among its problems."""
    reader = _Reader()
    value = reader.value(recipe, ())
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    return Given(Document(value, {}, tuple(reader.problems)), text, reader.models)


class _Reader:
    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.models: dict[ModelRef, Any] = {}
        self._texts: dict[int, str] = {}  # of models by their identity: one object is one model
        self._open: list[int] = []  # the maps and lists around, by their identity

    def value(self, value: Any, path: Path) -> Any:
        key = path[-1] if path else None
        if key in REFERENCES and _is_model(value):
            return self.model(value)
        if value is None or isinstance(value, bool | int | float | str):
            return _builtin(value)
        if key in DTYPES:
            return getattr(value, "name", None) or getattr(value, "__name__", str(value))
        if isinstance(value, os.PathLike):
            return os.fsdecode(os.fspath(value))
        if isinstance(value, Mapping | list | tuple):
            return self.inner(value, path)
        if hasattr(value, "tolist") and len(getattr(value, "shape", "xx")) < 2:
            return value.tolist()  # a number of NumPy or JAX, or an array of them: a gradient
        found = type(value).__name__
        message = f"expected a number, a string, a list or a map, found a value of type {found}"
        if key in REFERENCES:
            message = "expected a path, an opened checkpoint or a mapping of arrays by name, found "
            message += f"a value of type {found}"
        self.problems.append(Problem(message, show_path(path), code="JM020"))
        return None  # of which the grammar says no more

    def inner(self, value: Any, path: Path) -> Any:
        """A map or a list."""
        if id(value) in self._open:
            self.problems.append(Problem("contains itself", show_path(path), code="JM020"))
            return None
        self._open.append(id(value))
        try:
            if not isinstance(value, Mapping):
                return [self.value(item, (*path, i)) for i, item in enumerate(value)]
            found = {}
            for key, item in value.items():
                if isinstance(key, str):
                    found[str(key)] = self.value(item, (*path, str(key)))
                else:
                    message = f"a key must be a string, found {key!r}"
                    self.problems.append(Problem(message, show_path(path), code="JM006"))
            return found
        finally:
            self._open.pop()

    def model(self, model: Any) -> str:
        """The reference of a model that is here already."""
        text = self._texts.get(id(model))
        if text is None:
            text = str(getattr(model, "path", IN_MEMORY))
            if text.startswith(IN_MEMORY):
                held = sum(known.startswith(IN_MEMORY) for known in self._texts.values())
                text = f"{IN_MEMORY}{held + 1}"
            self._texts[id(model)] = text
            self.models[parse_ref(text)] = model
        return text


def _builtin(value: Any) -> Any:
    """A value of a class that YAML knows, for one of a class made from it, such as a float of NumPy."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    return value


def _is_model(value: Any) -> bool:
    """Whether a value is a model itself: an opened checkpoint, or arrays by name, which may be nested."""
    if not isinstance(value, Mapping):
        return False
    return hasattr(value, "path") or any(
        _is_array(each) or _is_model(each) for each in value.values()
    )


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")
