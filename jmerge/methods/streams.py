"""From the names of tensors to streams of random numbers: one for each, whatever container a tensor lies in.

The numbers in a name (the layer, the expert) are taken out of the text and mixed in as numbers. So tensors of all layers
that are stacked in one array can draw what each would draw alone: its index is mixed in where its number would be.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

NUMBERED = re.compile(r"(?:(.*)_)?(0|[1-9]\d*)", re.ASCII)  # `3`, and `layers_3` as Flax writes it


class Stream(NamedTuple):
    """Where the random numbers of a tensor come from."""

    words: tuple[int, int]  # of its name without the numbers
    numbers: tuple[int, ...] = ()  # those in its name, from left to right


def stream_of(name: str) -> Stream:
    """The stream of a tensor that stands alone."""
    return streams([name])[0]


def streams(names: Sequence[str], depths: Sequence[int] | None = None) -> list[Stream]:
    """The streams of tensors of these names, in their order; no two are the same.

    depths: of how many keys each name was joined with dots, where that is not one for all. Names that differ only in
    where their numbers stand, or in where dots join keys, are told apart by more words; the name of the fewest keys,
    then the first in the alphabet, has the stream that it has alone.
    """
    depths = [1] * len(names) if depths is None else depths
    found: list[Stream] = [Stream((0, 0))] * len(names)
    taken: set[tuple[str, tuple[int, ...]]] = set()
    for i in sorted(range(len(names)), key=lambda i: (depths[i], names[i])):
        text, numbers = _without_numbers(names[i])
        if (text, numbers) in taken:
            text = "\0".join([text, names[i], str(depths[i])])
        while (text, numbers) in taken:  # keys of one name that are joined elsewhere
            text += "\0"
        taken.add((text, numbers))
        found[i] = Stream(_words(text), numbers)
    return found


def layer_of(name: str) -> tuple[str, int] | None:
    """The stack of layers that a tensor lies in and its place there, by the first number in its name; None: in none."""
    before: list[str] = []
    for part in name.split("."):
        if (found := _number(part)) is not None:
            text, number = found
            return ".".join(before if text is None else [*before, text]), number
        before.append(part)
    return None


def _without_numbers(name: str) -> tuple[str, tuple[int, ...]]:
    """A name without its parts that are numbers, and these."""
    parts, numbers = [], []
    for part in name.split("."):
        if (found := _number(part)) is None:
            parts.append(part)
            continue
        text, number = found
        numbers.append(number)
        if text is not None:
            parts.append(text)
    return ".".join(parts), tuple(numbers)


def _number(part: str) -> tuple[str | None, int] | None:
    """The number that a part of a name is or ends with, and the text before it; none is beyond 32 bits."""
    found = NUMBERED.fullmatch(part)
    if found is None or int(found[2]) >= 1 << 32:
        return None
    return found[1], int(found[2])


def _words(text: str) -> tuple[int, int]:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")
