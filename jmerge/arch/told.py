"""What a field of config.json tells of each layer, and in which of the forms that configs have for that: numbers of layers,
an entry for each, runs of kinds, kinds that repeat, a period, a map by number."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any

from jmerge.arch.layer_types import LAYER_NUMBERS, is_per_layer
from jmerge.arch.layer_words import (
    ADDED,
    ALTERNATING,
    DIGITS,
    KINDS,
    MEMBERS,
    NOT_PERIOD,
    NUMBERS,
    OF_LAYERS,
    PERIOD,
)

UNKNOWN = -1  # where numbers of layers begin


def is_numbered(key: str, value: dict[Any, Any]) -> bool:
    """Whether a map is one by numbers of layers."""
    told = not re.search(r"label|token|lang|vocab|task|id2|2id", key)
    return told and bool(value) and all(DIGITS.fullmatch(str(each)) for each in value)


def is_numbers_key(key: str) -> bool:
    """Whether a list of numbers under this key is one of numbers of layers."""
    if key in LAYER_NUMBERS:
        return True
    if key.startswith(("mtp_", "nextn_")) or re.search(r"token|channel|label|codebook|head", key):
        return False
    return bool(NUMBERS.fullmatch(key))


def are_numbers(key: str, value: list[int], depth: int) -> bool:
    """Whether a list of numbers under such a key can be one of numbers of `depth` layers."""
    if key in LAYER_NUMBERS:
        return True
    if MEMBERS.fullmatch(key) and re.search(r"ind|idx|_ids?$", key):
        return len(set(value)) == len(value) and min(value) >= 0  # some may be of no layer
    if len(value) == depth and set(value) <= {0, 1} and depth > 2:
        return False  # a flag for each layer
    return len(set(value)) == len(value) and all(-depth <= each <= depth for each in value)


def is_period(key: str) -> bool:
    """Whether a number under this key says that every so many layers one is of another kind."""
    return bool(
        PERIOD.fullmatch(key) and OF_LAYERS.fullmatch(key) and not NOT_PERIOD.fullmatch(key)
    )


def is_alternating(key: str, value: Any) -> bool:
    """Whether a field is a switch, and on, that makes every second layer another than those between."""
    return value is True and ALTERNATING.fullmatch(key) is not None


def is_of_its_map(key: str, value: Any) -> bool:
    """Whether a field tells kinds of layers by their numbers, and so of those that its own map counts."""
    return is_alternating(key, value) or ADDED.fullmatch(key) is not None


def repeats(key: str, value: list[Any]) -> bool:
    """Whether a list holds kinds of layers, which may begin again after its last."""
    told = KINDS.fullmatch(key) and re.search(
        r"layer|block|pattern|layout|schedule|attn|attention|mlp", key
    )
    return bool(told) and len(value) > 1 and all(isinstance(each, str) for each in value)


def are_spans(value: list[Any], depth: int) -> bool:
    """Whether a list is one of pairs of a first and a last layer."""
    return all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(number) is int and 0 <= number <= depth for number in pair)
        and pair[0] <= pair[1]
        for pair in value
    )


def runs_of(value: Any) -> list[Any] | None:
    """The kinds that runs of them spell out: pairs of one or several kinds and how often they come."""
    if not isinstance(value, list) or not value:
        return None
    made: list[Any] = []
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2 and type(pair[1]) is int and pair[1] > 0):
            return None
        kinds = pair[0] if isinstance(pair[0], list) else [pair[0]]
        if not kinds or not all(isinstance(kind, str) for kind in kinds) or pair[1] > 10_000:
            return None
        made += kinds * pair[1]
    return made


def is_overruled(key: str, value: Any, part: Mapping[str, Any], depth: int) -> bool:
    """Whether a field that tells kinds of layers by a period stands beside a list that tells the same of each layer."""
    period = 2 if is_alternating(key.lower(), value) else value
    if type(period) is not int or not (value is True or is_period(key.lower())):
        return False
    for other, kinds in part.items():
        if re.search(r"types?$|kinds?$", str(other)) and isinstance(kinds, list):
            if len(kinds) >= depth and all(isinstance(kind, str) for kind in kinds):
                places = [(i % period, kinds[i]) for i in range(depth)]
                if len(set(places)) == len({place for place, _ in places}):
                    return True
    return False


def first_number(part: Mapping[str, Any], depth: int) -> int:
    """What the lists of numbers in a part of config.json call the first of `depth` layers: 1 where they share out the
    numbers from 1 to `depth`, as Kimi Linear's do, else 0, and `UNKNOWN` where `depth` is the highest and none is 0."""
    lists = [
        value
        for key, value in part.items()
        if isinstance(value, list) and value and all(type(each) is int for each in value)
        if MEMBERS.fullmatch(str(key).lower()) and is_numbers_key(str(key).lower())
        if are_numbers(str(key).lower(), value, depth)
    ]
    named = {number for each in lists for number in each}
    if named == set(range(1, depth + 1)):
        return 1
    return UNKNOWN if named and min(named) > 0 and max(named) == depth else 0


def kinds_of(key: str, value: Any, depth: int, first: int = 0) -> list[Hashable] | None:
    """What a field tells of each of `depth` layers; None when it tells nothing.

    first: what lists of numbers call the first layer.
    """
    key = key.lower()
    if key in LAYER_NUMBERS and isinstance(value, list):
        return [i in value for i in range(depth)]
    if is_per_layer(key, value, depth):
        return [entry if isinstance(entry, Hashable) else repr(entry) for entry in value]
    if isinstance(value, dict) and is_numbered(key, value):
        told = {int(each): repr(entry) for each, entry in value.items()}
        return [told.get(i) for i in range(depth)]
    if isinstance(value, list) and value:
        if all(type(each) is int for each in value) and is_numbers_key(key):
            if are_numbers(key, value, depth) and first != UNKNOWN:
                return [i + first in value for i in range(depth)]
        elif (runs := runs_of(value)) is not None and len(runs) == depth:
            return list(runs)
        elif repeats(key, value):
            return [value[i % len(value)] for i in range(depth)]
    if is_alternating(key, value):
        return [i % 2 for i in range(depth)]
    if type(value) is int and value > 1 and is_period(key):
        return [i % value for i in range(depth)]
    return None
