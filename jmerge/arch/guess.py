"""Tensors that two models may have under names that nothing known makes one: of one ending and one shape.

A guess is never followed. It is told as the `map` that a recipe may say it with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from jmerge.arch.match import MAX_PAIRS, Shape, StackPairs, Words

DIGITS = re.compile("[0-9]+")


class Known(NamedTuple):
    """What is known of a template besides its name."""

    shape: Shape
    kind: str  # embedding, head, or empty for anything else: a head is no embedding


def guess_pairs(
    own: Mapping[str, Known], donor: Mapping[str, Known], pairs: Mapping[str, str]
) -> dict[str, str]:
    """Template of a model -> template of the donor that may mean the same tensor, among those that nothing pairs.

    Two belong together when their last words and shapes are equal, none is a head where the other is an embedding,
    and no stack would be two stacks. Where several would do, the change of words that brings most together decides, then the likeness of names.

    pairs: what is known to be one; stacks that they pair stay so.
    """
    by_end: dict[tuple[str, Shape, bool], list[str]] = {}
    for there, known in donor.items():
        by_end.setdefault(_end(there, known), []).append(there)
    stacks = StackPairs(pairs, pairs.values())
    changes: dict[tuple[Words, Words], list[tuple[str, str]]] = {}
    budget = MAX_PAIRS
    for name, known in own.items():
        found = by_end.get(_end(name, known), [])
        budget -= len(found)
        if budget < 0:
            break
        for there in found:
            kinds = {known.kind, donor[there].kind} - {""}  # names do not tell every embedding
            if len(kinds) < 2 and stacks.allow(name, there):
                changes.setdefault(change_of(name, there), []).append((name, there))
    made: dict[str, str] = {}
    taken: set[str] = set()
    for change in sorted(changes, key=lambda each: (-len(changes[each]), sum(map(len, each)))):
        for name, there in changes[change]:
            if name not in made and there not in taken and stacks.allow(name, there):
                made[name] = there
                taken.add(there)
        stacks = StackPairs({**pairs, **made}, {*pairs.values(), *taken})
    return made


def guess_numbered(own: Mapping[str, Known], donor: Mapping[str, Known]) -> dict[str, str]:
    """Pairs of names of tensors of which one model has the number of the layer as a word and the other within one
    (`layers.0.`, `layer_0.`): as `guess_pairs`, and the numbers in both names are the same, counted from the lowest."""

    def numbered(tensors: Mapping[str, Known]) -> dict[str, Known]:
        found = {name: [int(each) for each in DIGITS.findall(name)] for name in tensors}
        lowest = min((numbers[0] for numbers in found.values() if numbers), default=0)
        return {
            name: tensors[name]._replace(kind=f"{numbers[0] - lowest} {numbers[1:]}")
            for name, numbers in found.items()
            if numbers
        }

    return guess_pairs(numbered(own), numbered(donor), {})


def change_of(name: str, there: str) -> tuple[Words, Words]:
    """The words of two names between those that begin and end both."""
    one, other = tuple(name.split(".")), tuple(there.split("."))
    room = min(len(one), len(other))
    start = 0
    while start < room and one[start] == other[start]:
        start += 1
    end = 0
    while end < room - start and one[-1 - end] == other[-1 - end]:
        end += 1
    return one[start : len(one) - end], other[start : len(other) - end]


def _end(name: str, known: Known) -> tuple[str, Shape, bool]:
    words = name.split(".")
    return words[-1], known.shape, "{}" in words
