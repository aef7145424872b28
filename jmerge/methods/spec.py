"""How a merge method declares itself: what it takes, its parameters, the sums it needs. One declaration serves
recipe checks, defaults, documentation and the test laws.

A method is a pure function of float32 arrays. Its first arguments say what it takes, its keyword-only arguments
are its parameters. It works elementwise, except through `sums`: the engine evaluates `sums(...)` on every piece of
a tensor, adds each of the results over the whole tensor with `methods.reduce`, and hands the totals to the
function, which can then be applied to any piece alone. Called by hand on whole arrays, it adds them up itself.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jmerge.errors import PlanError
from jmerge.recipe.settings import Kind

Takes = Literal["models", "delta", "base, models"]
Base = Literal["needed", "optional", "input"]


class Required:
    """The default of a parameter that has none."""

    def __repr__(self) -> str:
        return "required"


required = Required()


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A number or flag of a method, as recipes may set it."""

    default: float | bool | None | Required
    kind: Kind
    per_model: bool
    yaml: str = ""  # its name in recipes, when the Python name cannot be it (`lambda`)
    low: float | None = None
    high: float | None = None
    doc: str = ""


def PerModel(default: float | None | Required = required, **rest: Any) -> Parameter:  # noqa: N802  (reads as a type)
    """A continuous number for each model; the function gets an array [models], or None when unset."""
    return Parameter(default=default, kind="float", per_model=True, **rest)


def Shared(default: float | None | Required = required, **rest: Any) -> Parameter:  # noqa: N802
    """A continuous number for the tensor; the function gets a scalar array."""
    return Parameter(default=default, kind="float", per_model=False, **rest)


def Switch(default: bool, **rest: Any) -> Parameter:  # noqa: N802
    """A flag for the tensor; static: the function gets a Python bool and is compiled once for each."""
    return Parameter(default=default, kind="bool", per_model=False, **rest)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A registered merge method."""

    name: str
    function: Callable[..., Any]
    takes: (
        Takes  # the arrays it is called with: [models, *shape], deltas of them, or base and models
    )
    base: Base  # a base model is needed, optional, or an ordinary input like the others
    counts: tuple[
        int, int | None
    ]  # least and most models (without the base, unless it is an ordinary input)
    parameters: Mapping[str, Parameter]  # by name in recipes
    keywords: Mapping[str, str]  # name in recipes -> keyword of the function
    sums: (
        Callable[..., Any] | None
    )  # arrays -> terms [*shape] whose totals over the tensor it needs
    check: Callable[[Mapping[str, Any]], str | None]  # resolved numbers -> what is wrong with them
    no_effect: tuple[str, ...]  # recipe parameters that are accepted and change nothing
    carries_nan: bool  # a NaN or infinity in any input always gives one in the result
    copies: Callable[
        [Mapping[str, Any]], bool
    ]  # numbers with which the only input comes back unchanged
    title: str
    paper: str  # link; empty when there is none

    def counts_text(self) -> str:
        """How many models it merges, in words."""
        low, high = self.counts
        number = f"exactly {low}" if low == high else f"at least {low}"
        what = "model" if (low, high) in ((1, 1), (1, None)) else "models"
        return f"{number} {what}" + ("" if self.base == "input" else " besides the base")


REGISTRY: dict[str, Method] = {}


def merge_method(
    name: str,
    *,
    takes: Takes,
    base: Base = "input",
    models: tuple[int, int | None] = (1, None),
    sums: Callable[..., Any] | None = None,
    check: Callable[[Mapping[str, Any]], str | None] = lambda numbers: None,
    carries_nan: bool = False,
    copies: Callable[[Mapping[str, Any]], bool] = lambda numbers: False,
    no_effect: tuple[str, ...] = (),
    title: str = "",
    paper: str = "",
    **parameters: Parameter,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the method `name` and give it back unchanged.

    Raises:
      ValueError: the name is taken, or the declared parameters are not the function's keyword-only arguments.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if name in REGISTRY:
            raise ValueError(
                f"a merge method called {name!r} is already registered: {REGISTRY[name].function}"
            )
        arguments = inspect.signature(function).parameters.values()
        keywords = [a.name for a in arguments if a.kind is a.KEYWORD_ONLY]
        expected = [*parameters, *(["sums"] if sums else [])]
        if sorted(keywords) != sorted(expected):
            raise ValueError(
                f"{name}: declared {expected}, but the function's keyword-only arguments are {keywords}"
            )
        REGISTRY[name] = Method(
            name=name,
            function=function,
            takes=takes,
            base=base,
            counts=models,
            parameters={declared.yaml or key: declared for key, declared in parameters.items()},
            keywords={declared.yaml or key: key for key, declared in parameters.items()},
            sums=sums,
            check=check,
            carries_nan=carries_nan,
            copies=copies,
            no_effect=no_effect,
            title=title or name,
            paper=paper,
        )
        return function

    return register


def register_installed() -> None:
    """Import every module that installed packages name under the entry point group `jmerge.methods`."""
    for point in importlib.metadata.entry_points(group="jmerge.methods"):
        try:
            point.load()
        except Exception as error:
            raise PlanError(
                f"the merge method '{point.name}' of {point.value} cannot be loaded: {error}"
            ) from error
