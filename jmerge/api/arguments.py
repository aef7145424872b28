"""Arguments of the wrong type are refused with one line that names them."""

from __future__ import annotations

import io
import operator
import os
import threading
from collections.abc import Mapping
from typing import Any

from jmerge.ckpt.open import Checkpoint
from jmerge.errors import Problem, RecipeError, wrong_type
from jmerge.recipe.recipe import Recipe


def check_recipe(value: Any) -> None:
    """TypeError for what is no recipe; RecipeError for a text where a path has to be."""
    expected = "the path of a recipe, a dict or a jmerge.Recipe"
    fine = isinstance(value, str | os.PathLike | Recipe | Mapping)
    if not fine or isinstance(value, Checkpoint):
        raise wrong_type("recipe", expected, value)
    if isinstance(value, str) and "\n" in value:
        message = "expected a path, found text of several lines; use jmerge.Recipe.from_text"
        raise RecipeError(Problem(message, "recipe", code="JM413"))


def check_out(value: Any) -> None:
    """TypeError for what is neither a place nor a sink."""
    if value is None or isinstance(value, str | os.PathLike):
        return
    if not callable(getattr(value, "write", None)) or isinstance(value, io.IOBase):
        raise wrong_type(
            "out", "the path of a folder, a sink with a method `write`, or None", value
        )


def check_path(name: str, value: Any) -> None:
    """TypeError for what is no path."""
    if not isinstance(value, str | os.PathLike):
        raise wrong_type(name, "a path", value)


def whole(name: str, value: Any) -> int:
    """A whole number; TypeError for anything else."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise wrong_type(name, "a whole number", value) from None


def check_flag(name: str, value: Any) -> None:
    """TypeError for what is neither True nor False."""
    if not isinstance(value, bool):
        raise wrong_type(name, "True or False", value)


def check_size(name: str, value: Any, *, optional: bool = False) -> None:
    """TypeError for what is no number of bytes, as a number or a text."""
    fine = isinstance(value, int | str) and not isinstance(value, bool)
    if not fine and not (optional and value is None):
        raise wrong_type(name, "a number of bytes or a text such as '5GB'", value)


def check_devices(value: Any) -> None:
    """TypeError for what is no choice of devices."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | str)):
        raise wrong_type("devices", "a number or platforms such as 'gpu,cpu'", value)


def check_cancel(value: threading.Event | None) -> None:
    """TypeError for what is no event."""
    if value is not None and not callable(getattr(value, "is_set", None)):
        raise wrong_type("cancel", "a threading.Event", value)


def check_callables(**values: Any) -> None:
    """TypeError for arguments that cannot be called; a tuple or list has to be of such."""
    for name, value in values.items():
        several = isinstance(value, tuple | list)
        if not all(map(callable, value)) if several else not (value is None or callable(value)):
            raise wrong_type(name, "functions" if several else "a function", value)
