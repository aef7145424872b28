"""Settings: the value of a parameter, which may change with depth and with the tensor's name.

A setting is a number, boolean or word; a list of those (a gradient over the layers); or a list of
`{value, filter}` maps, of which the first whose filter is absent, `*`, or a part of the tensor's name is used.
Words become numbers only when a setting is resolved, because only the method knows what it wants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from jmerge.errors import InvalidValueError
from jmerge.names import did_you_mean

# How the changes of models may be scaled before a method sees them, see `methods.wrap`.
CONDITIONS = ("equalize", "equalize_mean", "metagpt", "inverse_norm")

Scalar = int | float | bool | str
Kind = Literal["float", "int", "bool"]

BOOL_WORDS = dict.fromkeys(("true", "yes", "on", "t", "y", "1"), True) | dict.fromkeys(
    ("false", "no", "off", "f", "n", "0"), False
)


# Methods compute in float32, where other numbers would be infinity or zero.
FLOAT32_LEAST, FLOAT32_MOST = 2.0**-126, (2 - 2.0**-23) * 2.0**127


class Undefined:
    """What a setting gives for a tensor it says nothing about: look in the next scope."""

    def __repr__(self) -> str:
        return "UNDEFINED"


UNDEFINED = Undefined()


@dataclass(frozen=True)
class Conditional:
    """A value for the tensors whose name contains `filter` (None: for all)."""

    value: Scalar | tuple[Scalar, ...]
    filter: str | None = None

    def matches(self, name: str) -> bool:
        """Whether this value is meant for the tensor `name`; case matters and `*` alone means every tensor."""
        return self.filter is None or self.filter == "*" or self.filter in name


@dataclass(frozen=True)
class Setting:
    """A parameter's value before it is known for which tensor: cases tried in order."""

    cases: tuple[Conditional, ...]

    def resolve(self, kind: Kind, t: float, name: str) -> float | int | bool | Undefined:
        """The value for the tensor `name` at relative depth `t` in [0, 1]; InvalidValueError when it is not of that kind."""
        for case in self.cases:
            if case.matches(name):
                if not isinstance(case.value, tuple):
                    return convert(case.value, kind)
                return gradient(case.value, kind, t) if case.value else UNDEFINED
        return UNDEFINED

    def scalars(self) -> list[Scalar]:
        """Every number, boolean and word in the setting."""
        values = [
            case.value if isinstance(case.value, tuple) else (case.value,) for case in self.cases
        ]
        return [scalar for group in values for scalar in group]


def parse_setting(value: Any) -> Setting:
    """The setting that a YAML value means; InvalidValueError when it means none."""
    if isinstance(value, Setting):
        return value
    if isinstance(value, dict):
        return Setting((_parse_case(value),))
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        if not all(isinstance(item, dict) for item in value):
            raise InvalidValueError(
                "a list of {value, filter} maps cannot also hold plain numbers", "JM014"
            )
        return Setting(tuple(_parse_case(item) for item in value))
    return Setting((Conditional(_parse_value(value)),))


def convert(value: Scalar, kind: Kind) -> float | int | bool:
    """A scalar as the kind a method declares; InvalidValueError when it is not one."""
    if kind == "bool":
        word = str(value).lower()
        if isinstance(value, int | float) and value in (0, 1):
            word = str(int(value))
        if word not in BOOL_WORDS:
            raise InvalidValueError(f"expected true or false, found {value!r}", "JM011")
        return BOOL_WORDS[word]
    try:
        number = float(value)
    except ValueError:
        raise InvalidValueError(f"expected a number, found {value!r}", "JM011") from None
    except OverflowError:  # an integer beyond every float
        number = math.inf
    if not math.isfinite(number):
        raise InvalidValueError(f"expected a finite number, found {value!r}", "JM011")
    if number and not FLOAT32_LEAST <= abs(number) <= FLOAT32_MOST:
        raise InvalidValueError(
            f"expected a number that float32 can hold, found {value!r}", "JM011"
        )
    if kind == "int":
        if number != int(number):
            raise InvalidValueError(f"expected a whole number, found {value!r}", "JM011")
        return int(number)
    return number


def gradient(values: tuple[Scalar, ...], kind: Kind, t: float) -> float | int | bool:
    """The value at relative depth `t` of a list spread evenly over the layers; booleans do not interpolate."""
    position = t * (len(values) - 1)
    left = int(position)
    if kind == "bool":
        return convert(values[left], "bool")
    right = min(len(values) - 1, left + 1)
    share = position - left
    number = (1 - share) * convert(values[left], "float") + share * convert(values[right], "float")
    return convert(number, kind)


def _parse_case(value: dict[str, Any]) -> Conditional:
    for key in value:
        if key not in ("value", "filter"):
            raise InvalidValueError(
                f"'{key}' is not a key of a conditional value{did_you_mean(key, ('value', 'filter'))}",
                "JM014",
            )
    if "value" not in value:
        raise InvalidValueError("a conditional value needs the key 'value'", "JM014")
    wanted = value.get("filter")
    if wanted is not None and (
        isinstance(wanted, bool) or not isinstance(wanted, str | int | float)
    ):
        raise InvalidValueError(
            f"filter: expected a part of a tensor's name, found {wanted!r}", "JM014"
        )
    return Conditional(_parse_value(value["value"]), None if wanted is None else str(wanted))


def _parse_value(value: Any) -> Scalar | tuple[Scalar, ...]:
    items = value if isinstance(value, list) else [value]
    for item in items:
        if item is None:
            raise InvalidValueError("expected a number, found nothing (null)", "JM011")
        if not isinstance(item, int | float | bool | str):
            raise InvalidValueError(f"expected a number, found {item!r}", "JM011")
    return tuple(value) if isinstance(value, list) else value
