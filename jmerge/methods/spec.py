"""How a merge method declares itself; one declaration serves recipe checks, defaults, documentation and test laws.

A method is a pure function of float32 arrays. Its first arguments say what it takes, its keyword-only arguments
are its parameters. It works elementwise, except through statistics of the whole tensor, of which there are two:

- a `Density` becomes a cut, the bound above which elements are kept (`methods.cuts`);
- `sums`, a function called like the method, gives terms elementwise; their totals over the tensor
  (`methods.reduce`) are handed to the method as the keyword `sums`.

With them it can be applied to any piece of a tensor alone. Called by hand on whole arrays it finds them itself.
Two more keywords are filled in when the method has them: `start`, the position of a piece in its tensor, and `keys`,
a key for each model's random numbers.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from jmerge.errors import PlanError
from jmerge.recipe.settings import Kind

Takes = Literal["models", "delta", "base, models"]
Base = Literal["needed", "optional", "input"]
Unit = Literal["element", "last", "whole"]
Function = TypeVar("Function", bound=Callable[..., Any])
Numbers = Mapping[str, Any]  # resolved parameters by name in recipes

RESERVED = ("sums", "start", "keys")  # keywords that are not parameters


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
    # It becomes a cut: how many of a tensor's elements (its size) the model's own numbers keep, the largest first.
    count: Callable[[Mapping[str, float], int], int] | None = None
    doc: str = ""


def PerModel(default: float | None | Required = required, **rest: Any) -> Parameter:  # noqa: N802  (reads as a type)
    """A continuous number for each model; the function gets an array [models], or None when unset."""
    return Parameter(default=default, kind="float", per_model=True, **rest)


def Density(  # noqa: N802
    default: float | Required = required,
    *,
    count: Callable[[Mapping[str, float], int], int],
    **rest: Any,
) -> Parameter:
    """A share of each model's elements; the function gets the `Cut` of the `count(numbers, size)` largest."""
    return Parameter(default=default, kind="float", per_model=True, count=count, **rest)


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
    # The arrays it is called with: [models, *shape], their changes from the base, or base and models.
    takes: Takes
    # Whether it needs a base model, can do with one, or takes it as an input like the others.
    base: Base
    # Least and most models, without the base unless that is an input like the others.
    counts: tuple[int, int | None]
    parameters: Mapping[str, Parameter]  # by name in recipes
    keywords: Mapping[str, str]  # name in recipes -> keyword of the function
    reserved: frozenset[str]  # which of RESERVED it takes
    sums: Callable[..., Any] | None  # called like the function -> terms [*shape] to be summed
    sums_when: Callable[[Numbers], bool]  # whether it needs sums with these numbers
    # What has to stay together when a tensor is cut: nothing, vectors along the last axis, or the whole tensor. The
    # arrays of a piece are flat, [rows, last axis], or of the tensor's shape.
    unit: Callable[[Numbers], Unit]
    check: Callable[[Numbers], str | None]  # what is wrong with the numbers
    no_effect: tuple[str, ...]  # recipe parameters that are accepted and change nothing
    carries_nan: bool  # a NaN or infinity in any input always gives one in the result
    copies: Callable[[Numbers], bool]  # whether the only input comes back unchanged
    title: str
    summary: str  # two sentences
    formula: str
    when: str  # to use it
    paper: str  # link; empty when there is none

    def needs_sums(self, numbers: Numbers) -> bool:
        """Whether it needs sums over the tensor with these numbers."""
        return self.sums is not None and self.sums_when(numbers)

    def counts_kept(self, numbers: Numbers, size: int) -> dict[str, tuple[int, ...]]:
        """For each parameter that becomes a cut, how many elements of each model it keeps."""
        own_names = [name for name, declared in self.parameters.items() if declared.per_model]
        found = {}
        for name, declared in self.parameters.items():
            if declared.count is not None:
                models = range(len(numbers[name]))
                owns = [{key: numbers[key][i] for key in own_names} for i in models]
                found[name] = tuple(declared.count(own, size) for own in owns)
        return found

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
    sums_when: Callable[[Numbers], bool] = lambda numbers: True,
    unit: Callable[[Numbers], Unit] = lambda numbers: "element",
    check: Callable[[Numbers], str | None] = lambda numbers: None,
    no_effect: tuple[str, ...] = (),
    carries_nan: bool = False,
    copies: Callable[[Numbers], bool] = lambda numbers: False,
    title: str = "",
    summary: str = "",
    formula: str = "",
    when: str = "",
    paper: str = "",
    **parameters: Parameter,
) -> Callable[[Function], Function]:
    """Register the decorated function as the method `name` and give it back unchanged.

    The arguments are the fields of `Method`; `models` are its counts, and what is left are its parameters.

    Raises:
      ValueError: the name is taken, or the declared parameters are not the function's keyword-only arguments.
    """

    def register(function: Function) -> Function:
        if name in REGISTRY:
            taken = REGISTRY[name].function
            raise ValueError(f"a merge method called {name!r} is already registered: {taken}")
        arguments = inspect.signature(function).parameters.values()
        keywords = {a.name for a in arguments if a.kind is a.KEYWORD_ONLY}
        reserved = keywords & set(RESERVED)
        if keywords - reserved != set(parameters) or ("sums" in reserved) != (sums is not None):
            expected = sorted([*parameters, *(["sums"] if sums else [])])
            raise ValueError(
                f"{name}: declared {expected}, but the function's keyword-only arguments are {sorted(keywords)}"
            )
        REGISTRY[name] = Method(
            name=name,
            function=function,
            takes=takes,
            base=base,
            counts=models,
            parameters={declared.yaml or key: declared for key, declared in parameters.items()},
            keywords={declared.yaml or key: key for key, declared in parameters.items()},
            reserved=frozenset(reserved),
            sums=sums,
            sums_when=sums_when,
            unit=unit,
            check=check,
            no_effect=no_effect,
            carries_nan=carries_nan,
            copies=copies,
            title=title or name,
            summary=summary,
            formula=formula,
            when=when,
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
            message = f"the merge method '{point.name}' of {point.value} cannot be loaded: {error}"
            raise PlanError(message) from error
