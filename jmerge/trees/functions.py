"""Every method of jmerge as a function of trees, with the names and defaults of its parameters in recipes.

The functions are made of the methods' declarations; `functions.pyi` has their types, and a test that both agree.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jmerge.methods  # noqa: F401  (registers the methods)
from jmerge.methods.spec import REGISTRY, Method, Parameter, Required
from jmerge.trees.by_path import by_path, over_layers
from jmerge.trees.merge import COMMON, merge_trees

USUAL = {"weight": 1.0}  # defaults of what recipes have to say

__all__ = ["by_path", "merge_trees", "over_layers"]


def _function(method: Method) -> Callable[..., Any]:
    """`merge_trees` by one method."""

    def merge(models: Sequence[Any], **keywords: Any) -> Any:
        usual = {name: value for name, value in USUAL.items() if name in method.settable}
        return merge_trees(models, method=method.name, **{**usual, **keywords})

    merge.__name__ = merge.__qualname__ = method.name
    merge.__module__ = __name__
    merge.__doc__ = _text(method)
    merge.__signature__ = _signature(method)  # type: ignore[attr-defined]
    return merge


def _signature(method: Method) -> inspect.Signature:
    parameters = [inspect.Parameter("models", inspect.Parameter.POSITIONAL_OR_KEYWORD)]

    def add(name: str, default: Any) -> None:
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=default))

    if method.base != "input":
        add("base", inspect.Parameter.empty if method.base == "needed" else None)
    for name, declared in method.settable.items():
        add(method.keywords[name], _default(name, declared))
    if "keys" in method.reserved:
        add("key", 0)
    for name, default in COMMON.items():
        add(name, default)
    return inspect.Signature(parameters)


def _default(name: str, declared: Parameter) -> Any:
    if isinstance(declared.default, Required):
        return USUAL.get(name, inspect.Parameter.empty)
    if declared.words and declared.default is True:
        return declared.words[0]
    return declared.default


def _text(method: Method) -> str:
    arguments = ["models: trees of the same structure."]
    if method.base != "input":
        arguments.append("base: the tree that changes are measured from.")
    for name, declared in method.settable.items():
        many = "; one number for all models, or one for each" if declared.per_model else ""
        span = f", {declared.range_text()}" if declared.range_text() else ""
        arguments.append(f"{method.keywords[name]}: {declared.doc}{span}{many}.")
    if "keys" in method.reserved:
        arguments.append("key: an integer or a key of `jax.random.key`; either may be traced.")
    arguments.append("Numbers and the other arguments are as in `jmerge.merge_trees`.")
    lines = "\n".join(f"  {line}" for line in arguments)
    result = (
        "A tree for each model, in a list."
        if method.per_model_output
        else "A tree like the models."
    )
    paper = f"\n\n{method.paper}" if method.paper else ""
    return (
        f"{method.title}: {method.formula}\n\n{method.summary}\nWhen: {method.when}{paper}"
        f"\n\nArgs:\n{lines}\n\nReturns:\n  {result}\n"
    )


for _name, _method in list(REGISTRY.items()):
    if _method.function.__module__.startswith("jmerge."):
        globals()[_name] = _function(_method)
        __all__.append(_name)
