"""How a merge method declares itself; one declaration serves recipe checks, defaults, documentation and test laws.

A method is a pure function of float32 arrays. Its first arguments say what it takes, its keyword-only arguments
are its parameters. It works elementwise, except through `statistics` of the whole tensor, or with the scope "model" of all tensors that
are merged. These are handed to it as keywords; each may use those declared before it. With them the method can be
applied to any piece of a tensor alone; `methods.apply` finds them and calls it on whole arrays.
More keywords are filled in when the method has them: `start`, the position of a piece in its tensor (for thresholds of
the scope "model": in all tensors one after the other), `size`, the tensor's elements, and `keys`, a key for each
model's random numbers.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from jmerge.errors import PluginWarning, Problem
from jmerge.methods.statistics.fold import Statistic
from jmerge.methods.statistics.topk import TopK
from jmerge.names import did_you_mean

Takes = Literal["models", "delta", "base, models"]
Base = Literal["needed", "optional", "input"]
Unit = Literal["element", "last", "slab", "whole"]
Kind = Literal["float", "int", "bool"]
Function = TypeVar("Function", bound=Callable[..., Any])
Hyperparameters = Mapping[str, Any]  # resolved parameters by name in recipes

RESERVED = ("start", "keys", "size")  # keywords that are neither parameters nor statistics


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
    low: float | None = None  # the range of its values, both ends in it
    high: float | None = None  # only with `low`
    even: bool = (
        False  # it must be the same for all tensors: statistics of the whole model follow from it
    )
    planned: bool = False  # the planner sets it, recipes cannot
    # Of a flag: what True is called in Python, and values besides True and False.
    words: tuple[str, ...] = ()
    given: bool = True  # whether the function gets it, not only what statistics make of it
    doc: str = ""

    def range_text(self) -> str:
        """Its range in words; empty when it has none."""
        if self.high is None:
            return "" if self.low is None else f"at least {self.low:g}"
        return f"from {self.low:g} to {self.high:g}"

    def refusal(self, value: float) -> str | None:
        """What is wrong with a value; None when it can be used."""
        if not math.isfinite(value):
            return f"expected a finite number, found {value:g}"
        low, high = self.low, self.high
        if (low is None or value >= low) and (high is None or value <= high):
            return None
        return (
            f"expected a number {'of ' if high is None else ''}{self.range_text()}, found {value:g}"
        )


def PerModel(default: float | None | Required = required, **rest: Any) -> Parameter:  # noqa: N802  (reads as a type)
    """A continuous number for each model; the function gets an array [models], or None when unset."""
    return Parameter(default=default, kind="float", per_model=True, **rest)


def Shared(default: float | None | Required = required, **rest: Any) -> Parameter:  # noqa: N802
    """A continuous number for the tensor; the function gets a scalar array."""
    return Parameter(default=default, kind="float", per_model=False, **rest)


def Switch(default: bool, **rest: Any) -> Parameter:  # noqa: N802
    """A flag for the tensor; static: the function gets a Python bool and is compiled once for each."""
    return Parameter(default=default, kind="bool", per_model=False, **rest)


def Whole(default: int, **rest: Any) -> Parameter:  # noqa: N802
    """A whole number for the tensor, which shapes depend on; static: the function gets a Python int."""
    return Parameter(default=default, kind="int", per_model=False, **rest)


@dataclass(frozen=True, kw_only=True, eq=False)
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
    statistics: tuple[Statistic, ...]  # in the order in which they are found
    # What has to stay together when a tensor is cut: nothing, vectors along the last axis, all but the first axis (of
    # a vector all of it), or the whole tensor. The arrays of a piece are flat, [rows, last axis], [slabs, *other axes]
    # or of the tensor's shape.
    unit: Callable[[Hyperparameters], Unit]
    check: Callable[[Hyperparameters], str | None]  # what is wrong with the numbers
    advice: Callable[
        [Hyperparameters, int], str | None
    ]  # what to warn of with these numbers and so many models
    no_effect: tuple[str, ...]  # recipe parameters that are accepted and change nothing
    carries_nan: bool  # a NaN or infinity in any input always gives one in the result
    # Whether only the proportions of the models' weights count, as they are divided by their sum.
    divides: Callable[[Hyperparameters], bool]
    copies: Callable[[Hyperparameters], bool]  # whether the only input comes back unchanged
    # Whether the result of so many whole tensors is as long as their weights sum to, which nothing normalises.
    unnormalised: Callable[[Hyperparameters, int], bool]
    title: str
    summary: str  # two sentences
    formula: str
    when: str  # to use it
    paper: str  # link; empty when there is none
    per_model_output: bool = (
        False  # it makes a checkpoint for each model; the number `task` says for which
    )
    # Whether small tensors may be merged many at a time, under `jax.vmap`. Not where the function computes so much from
    # its statistics that the compiler would contract other products into sums, and change the last bit.
    bundled: bool = True

    def needed(self, hyperparameters: Hyperparameters) -> tuple[Statistic, ...]:
        """The statistics that it needs with these numbers."""
        return tuple(each for each in self.statistics if each.when(hyperparameters))

    @property
    def of_model(self) -> bool:
        """Whether it looks at whole models before it merges any tensor."""
        return any(each.scope == "model" for each in self.statistics)

    @property
    def counts_through(self) -> bool:
        """Whether positions are counted through all tensors, not in each anew."""
        return any(each.scope == "model" and isinstance(each, TopK) for each in self.statistics)

    @property
    def settable(self) -> dict[str, Parameter]:
        """The parameters that recipes may set."""
        return {name: each for name, each in self.parameters.items() if not each.planned}

    def counts_text(self) -> str:
        """How many models it merges, in words."""
        low, high = self.counts
        number = f"exactly {low}" if low == high else f"at least {low}"
        if (low, high) == (0, None):
            number = "any number of"
        what = "model" if (low, high) in ((1, 1), (1, None)) else "models"
        return f"{number} {what}" + ("" if self.base == "input" else " besides the base")


REGISTRY: dict[str, Method] = {}
BROKEN: dict[str, str] = {}  # entry points of installed packages that cannot be loaded, and why


def merge_method(
    name: str,
    *,
    takes: Takes,
    base: Base = "input",
    models: tuple[int, int | None] = (1, None),
    statistics: Sequence[Statistic] = (),
    unit: Callable[[Hyperparameters], Unit] = lambda hyperparameters: "element",
    check: Callable[[Hyperparameters], str | None] = lambda hyperparameters: None,
    advice: Callable[[Hyperparameters, int], str | None] = lambda hyperparameters, models: None,
    no_effect: tuple[str, ...] = (),
    carries_nan: bool = False,
    per_model_output: bool = False,
    bundled: bool = True,
    divides: Callable[[Hyperparameters], bool] = lambda hyperparameters: False,
    copies: Callable[[Hyperparameters], bool] = lambda hyperparameters: False,
    unnormalised: Callable[[Hyperparameters, int], bool] = lambda hyperparameters, models: False,
    title: str = "",
    summary: str = "",
    formula: str = "",
    when: str = "",
    paper: str = "",
    **parameters: Parameter,
) -> Callable[[Function], Function]:
    """Register the decorated function as the method `name` and give it back unchanged.

    A function of the same module and name replaces the one before, so that a cell of a notebook can be run again.

    The arguments are the fields of `Method`; `models` are its counts, and what is left are its parameters.

    Raises:
      ValueError: another function has the name, or the declared parameters are not the function's keyword-only arguments.
    """

    def register(function: Function) -> Function:
        taken = REGISTRY[name].function if name in REGISTRY else None
        if taken is not None and _place(taken) != _place(function):
            raise ValueError(f"a merge method called {name!r} is already registered: {taken}")
        arguments = inspect.signature(function).parameters.values()
        keywords = {a.name for a in arguments if a.kind is a.KEYWORD_ONLY}
        reserved = keywords & set(RESERVED)
        given = [key for key, declared in parameters.items() if declared.given]
        expected = [*given, *(each.keyword for each in statistics)]
        if sorted(keywords - reserved) != sorted(expected):
            raise ValueError(
                f"{name}: declared {sorted(expected)}, but the function's keyword-only arguments are {sorted(keywords)}"
            )
        if taken is not None:
            _forget_programs()
        REGISTRY[name] = Method(
            name=name,
            function=function,
            takes=takes,
            base=base,
            counts=models,
            parameters={declared.yaml or key: declared for key, declared in parameters.items()},
            keywords={declared.yaml or key: key for key, declared in parameters.items()},
            reserved=frozenset(reserved),
            statistics=tuple(statistics),
            unit=unit,
            check=check,
            advice=advice,
            no_effect=no_effect,
            carries_nan=carries_nan,
            per_model_output=per_model_output,
            bundled=bundled,
            divides=divides,
            copies=copies,
            unnormalised=unnormalised,
            title=title or name,
            summary=summary,
            formula=formula,
            when=when,
            paper=paper,
        )
        return function

    return register


def _place(function: Callable[..., Any]) -> tuple[str, str]:
    """Where a function stands in its module."""
    return function.__module__, function.__qualname__


def _forget_programs() -> None:
    """Empty what jmerge caches: programs are compiled once for each name of a method, and are of its former function."""
    for name, module in list(sys.modules.items()):
        if name.startswith("jmerge."):
            for value in list(vars(module).values()):
                if callable(clear := getattr(value, "cache_clear", None)):
                    clear()


def register_installed() -> None:
    """Import every module that installed packages name under the entry point group `jmerge.methods`.

    One that fails is put down in `BROKEN` with a `PluginWarning`: only merges by its methods fail.
    """
    for point in importlib.metadata.entry_points(group="jmerge.methods"):
        try:
            point.load()
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            message = f"the merge method '{point.name}' of {point.value} cannot be loaded: {reason}"
            BROKEN[point.name] = message
            warnings.warn(str(Problem(message, code="JM414")), PluginWarning, stacklevel=2)
        else:
            BROKEN.pop(point.name, None)


def unknown_method(name: str) -> str:
    """What to say of a name that no method has, with what may be the reason."""
    if name in BROKEN:
        return BROKEN[name]
    message = f"'{name}' is not a merge method{did_you_mean(name, sorted(REGISTRY), show=30)}"
    return "; ".join([message, *BROKEN.values()])
