"""Tensors that two models may have under names that nothing known makes one: of one ending and one shape.

A guess is never followed. It is told as the `map` that a recipe may say it with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from jmerge.arch.match import MAX_PAIRS, Shape, StackPairs, Words

DIGITS = re.compile("[0-9]+")
SEPARATORS = re.compile(r"(?<!\d)[._]|[._](?!\d)")  # not those that part numbers
EMBEDS = re.compile("emb|wte")  # in the name of a token table, and of no other tensor of its shape
ADDED = re.compile(r"bias|beta|offset|shift|b")  # last words of what a module adds


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

    def worth(change: tuple[Words, Words]) -> tuple[int, bool, int]:
        together = changes[change]
        tables = [
            any(_is_table(name, side[name]) for name in names)
            for names, side in zip(zip(*together, strict=True), (own, donor), strict=True)
        ]
        return -len(together), tables[0] != tables[1], sum(map(len, change))

    for change in sorted(changes, key=worth):
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


def guess_places(
    own: Mapping[str, Known], donor: Mapping[str, Known], every: Iterable[str], known: Iterable[str]
) -> dict[str, str]:
    """Pairs of tensors of one shape that have one place under other last words (`norm.scale`, `norm.weight`): names of
    the same letters whatever separates them, or all that a module holds besides what it adds.

    every, known: all templates of the model and of the donor.
    """
    places = [_Modules(every), _Modules(known)]
    by_place: dict[tuple[str, Shape, bool], list[str]] = {}
    for there, told in donor.items():
        for place in places[1].of(there):
            by_place.setdefault((place, told.shape, _adds(there)), []).append(there)
    made: dict[str, str] = {}
    for name, told in own.items():
        for place in places[0].of(name):
            for there in by_place.get((place, told.shape, _adds(name)), ()):
                if there not in made.values():
                    made.setdefault(name, there)
    return made


class _Modules:
    """Where tensors stand in a model, by the letters of their names."""

    def __init__(self, names: Iterable[str]) -> None:
        self._holds: dict[str, list[str]] = {}
        self._outer: set[str] = set()
        for name in names:
            home = name.rpartition(".")[0]
            self._holds.setdefault(home, []).append(name)
            while home := home.rpartition(".")[0]:
                self._outer.add(home)

    def of(self, name: str) -> Iterator[str]:
        """The places of a tensor: its own name, and its module where that has nothing else of the kind."""
        yield letters(name)
        home = name.rpartition(".")[0]
        alike = [each for each in self._holds[home] if _adds(each) == _adds(name)]
        if home and home not in self._outer and len(alike) == 1:
            yield letters(home)


def letters(name: str) -> str:
    """A name without what separates its words, and without capitals."""
    return SEPARATORS.sub("", name.lower())


def _adds(name: str) -> bool:
    return ADDED.fullmatch(name.rpartition(".")[2].lower()) is not None


def _is_table(name: str, known: Known) -> bool:
    return known.kind == "embedding" or (not known.kind and EMBEDS.search(name) is not None)


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
