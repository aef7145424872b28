"""What a field of config.json says of a stack's layers, after these have moved.

`follow` reads one field as configs write them: a count of layers, a number of one, a list of numbers, an entry for each
layer, runs of kinds, a map by number. It returns what the field has to say of the output, or why nothing is known to
say it. What it cannot read as any of these it leaves alone.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from jmerge.arch.layer_types import LAYER_NUMBERS, ORDERED, PER_LAYER_TEXT, is_per_layer
from jmerge.arch.layer_words import (
    ADDED,
    ALPHABET,
    BY_NUMBER,
    COUNT,
    DEPTH_SCALE,
    DIGITS,
    ENTRY_KINDS,
    FIRST,
    LAST,
    LAYER,
    LAYER_NAME,
    LISTED,
    MEMBERS,
    NAMED,
    NOT_COUNT,
    NUMBER,
    NUMBERS,
    OF_ANOTHER,
    PER_LAYER,
    SHARE,
    SIZES,
    SOURCES,
    SPANS,
    TAPS,
)
from jmerge.arch.told import (
    UNKNOWN,
    are_numbers,
    are_spans,
    is_alternating,
    is_numbered,
    is_numbers_key,
    is_period,
    repeats,
    runs_of,
)


class Stuck(Exception):  # noqa: N818  # no error yet: whoever asks decides
    """Nothing is known to say in a field what it said of the layers before they moved."""


class Moved(NamedTuple):
    """An order of layers."""

    depth: int  # of the donor's stack
    layers: tuple[int, ...]  # of the output: where each was in its own model
    behind: int = 0  # layers that config.json counts behind the stack
    first: int = 0  # what the first layer is called in lists of numbers
    unique: bool = False  # no other stack has as many layers
    counts: bool = True  # a count in this field can be of nothing but these layers
    prefix: str = ""  # of the names of the layers' tensors, before their number

    @property
    def alike(self) -> bool:
        """Whether every layer is where it was."""
        return self.layers == tuple(range(self.depth))

    def keeps(self, first: int) -> bool:
        """Whether the first layers are those they were, and stand nowhere else."""
        return self.layers[:first] == tuple(range(first)) and all(
            layer >= first for layer in self.layers[first:]
        )

    def place(self, layer: int) -> int:
        """Where the output has a layer; Stuck when it has it not or more than once."""
        places = [i for i, each in enumerate(self.layers) if each == layer]
        if len(places) != 1:
            found = " and ".join(map(str, places[:3])) if places else "nowhere"
            raise Stuck(f"names layer {layer}, which is {found} in the output")
        return places[0]


Own = Callable[
    [int], Any
]  # what the model of an output layer says in this field, by the layer's place


def follow(
    key: str, value: Any, moved: Moved, own: Own, *, certain: bool = True, named: bool = False
) -> Any:
    """What a field says after the layers moved; `value` itself where it says nothing of them, or says it still.

    Args:
      own: the field of the model that an output layer comes from.
      certain: there is no other stack of which it could speak.
      named: its name has a word of this stack's.

    Raises:
      Stuck: the field speaks of layers, and what it would have to say is not known.
    """
    made = _follow(key.lower(), value, moved, own, named)
    as_many = value == moved.depth or (isinstance(value, list) and len(value) == moved.depth)
    if made != value and not (certain or (moved.unique and as_many)):
        raise Stuck("may refer to these layers or to others")
    return made


def _follow(key: str, value: Any, moved: Moved, own: Own, named: bool) -> Any:
    if value is None:
        return value
    if isinstance(value, bool):
        if value and BY_NUMBER.fullmatch(key) and any(i != n for i, n in enumerate(moved.layers)):
            raise Stuck("makes weights depend on the number of their layer")
        if is_alternating(key, value):
            _check_period(2, moved)
        return value
    if key == DEPTH_SCALE and isinstance(value, int | float):
        return (
            value * (len(moved.layers) / moved.depth) ** 0.5
            if len(moved.layers) != moved.depth
            else value
        )
    if isinstance(value, float):
        if SHARE.fullmatch(key) and not moved.alike:
            raise Stuck("describes layer types by their share")
        return value
    if isinstance(value, int):
        return _int(key, value, moved)
    if isinstance(value, str):
        return _text(key, value, moved, own)
    if isinstance(value, dict):
        return _by_number(value, moved, own) if is_numbered(key, value) else value
    if isinstance(value, list) and (value or key in LAYER_NUMBERS):
        return _list(key, value, moved, own, named)
    return value


# Numbers


def _int(key: str, value: int, moved: Moved) -> Any:
    depth, new = moved.depth, len(moved.layers)
    if ADDED.fullmatch(key) and value > 0 and not moved.alike:
        raise Stuck("spreads what it counts over the layers, and its new places are unknown")
    if COUNT.fullmatch(key) and not NOT_COUNT.fullmatch(key):
        if value == depth and new != depth and not moved.counts:
            if OF_ANOTHER.fullmatch(key):
                return value
            raise Stuck(
                f"is {depth}, the old number of layers, and it is unclear whether it counts these"
            )
        if value == depth:
            return new
        if 0 < value < depth and (FIRST.fullmatch(key) or LAST.fullmatch(key)):
            return _of_the_ends(key, value, moved)
    if is_period(key) and value > 1:
        _check_period(value, moved)
    elif SHARE.fullmatch(key) and value > 0 and not moved.alike:
        _check_period(value, moved)
        _check_period(value + 1, moved)
    elif NUMBER.fullmatch(key) and not COUNT.fullmatch(key) and -depth <= value <= depth:
        return _tap(key, value, moved)
    return value


def _of_the_ends(key: str, value: int, moved: Moved) -> int:
    """How many of the first layers, or of the last, are what so many of them were."""
    first = FIRST.fullmatch(key) is not None
    ons = [n < value if first else n >= moved.depth - value for n in moved.layers]
    count = sum(ons)
    if ons != sorted(ons, reverse=first):
        raise Stuck(
            f"treats the {'first' if first else 'last'} {value} layers specially, and other layers are there now"
        )
    return count


def _check_period(period: int, moved: Moved) -> None:
    """Every layer has to keep its place in the period, where one of its places is a kind of its own."""
    longest = max(moved.depth, len(moved.layers))
    wanted = range(period) if period <= longest else (0, period - 1)
    for i, layer in enumerate(moved.layers):
        if i % period != layer % period and (i % period in wanted or layer % period in wanted):
            every = "second layer" if period == 2 else f"{period} layers"
            raise Stuck(f"treats every {every} specially, and the order is different now")


def _tap(key: str, value: int, moved: Moved) -> int:
    """A number of a layer, or of what comes out after so many: the two have to come out alike."""
    depth, new = moved.depth, len(moved.layers)
    if value in (0, -1) and (value == -1 or moved.layers[0] == 0):
        return value  # before all layers, after all of them
    if TAPS.fullmatch(key) and not MEMBERS.fullmatch(key):
        # what is taken there is what it was, wherever these layers stand once more
        if 0 <= value < depth and moved.layers[: value + 1] == tuple(range(value + 1)):
            return value
        if value < 0 and moved.layers[value:] == tuple(range(depth + value, depth)):
            return value
    if value < 0:
        return moved.place(depth + value) - new
    if value == depth:
        return new  # the end
    after = moved.place(value - 1) + 1
    if moved.place(value) != after:
        raise Stuck(f"names layer {value}, and different layers precede it now")
    return after


# Lists


def _list(key: str, value: list[Any], moved: Moved, own: Own, named: bool) -> Any:
    depth = moved.depth
    numbers = all(type(each) is int for each in value)
    if numbers and SOURCES.fullmatch(key) and len(value) == depth and max(value) < depth:
        return _sources(key, value, moved, own)
    if numbers and is_numbers_key(key) and are_numbers(key, value, depth):
        return _numbers(key, value, moved, own)
    if (runs := runs_of(value)) is not None and len(runs) == depth:
        entries = [_entry(runs_of(own(i)), runs, n, depth) for i, n in enumerate(moved.layers)]
        return _as_runs(value, entries) if entries != runs else value
    taps = numbers and min(value) < 0 and bool(TAPS.fullmatch(key))  # counted from the end
    if not taps and (
        is_per_layer(key, value, depth)
        or (
            len(value) == depth
            and (SIZES.fullmatch(key) or (named and re.search("kernel|sizes?$", key)))
        )
    ):
        return _entries(key, value, moved, own, named)
    if all(isinstance(each, str) for each in value):
        return _words(key, value, moved, own)
    if SPANS.fullmatch(key) and are_spans(value, depth):
        last = max(number for pair in value for number in pair)
        if not moved.keeps(min(last + 1, depth)) or (last >= depth - 1 and not moved.alike):
            raise Stuck("names layers by their first and last")
    if numbers and len(value) > 1 and sum(value) == depth and min(value) > 0 and not moved.alike:
        if re.search(rf"{LAYER}|depths?|repeats|stages?", key):
            raise Stuck(f"divides the {depth} layers")
    return value


def _sources(key: str, value: list[int], moved: Moved, own: Own) -> list[int]:
    """For each layer the number of another, from which it has something, or its own."""
    made = []
    for i, layer in enumerate(moved.layers):
        numbers = own(i)
        numbers = numbers if isinstance(numbers, list) and len(numbers) > layer else value
        made.append(i if numbers[layer] == layer else moved.place(numbers[layer]))
    return made


def _numbers(key: str, value: list[int], moved: Moved, own: Own) -> list[int]:
    """The numbers of the output's layers that the list names: all that are of a kind, or each once in their order."""
    taps = key in ORDERED or (
        key not in LAYER_NUMBERS and bool(TAPS.fullmatch(key)) and not MEMBERS.fullmatch(key)
    )
    if taps or min(value, default=0) < 0 or not (key in LAYER_NUMBERS or MEMBERS.fullmatch(key)):
        made = [moved.place(each) if key in ORDERED else _tap(key, each, moved) for each in value]
        if sorted(made) != made and sorted(value) == value:
            raise Stuck("names layers, and their order is different now")
        return made
    first = 0 if key in LAYER_NUMBERS else moved.first
    if first == UNKNOWN and not moved.alike:
        raise Stuck("names layers by numbers that may start at 0 or 1")
    found = []
    for i, layer in enumerate(moved.layers):
        numbers = own(i)
        numbers = numbers if isinstance(numbers, list) else value
        if layer + first in numbers:
            found.append(i + first)
    before = [each for each in value if each - first < moved.depth]
    return value if moved.alike and sorted(before) == found else found


def _entries(key: str, value: list[Any], moved: Moved, own: Own, named: bool) -> list[Any]:
    """A list with an entry for each layer; what stands behind these stays there."""
    depth = moved.depth
    made = [copy.deepcopy(_entry(own(i), value, n, depth)) for i, n in enumerate(moved.layers)]
    made += value[depth:]
    plain = PER_LAYER.fullmatch(key) or all(isinstance(each, ENTRY_KINDS) for each in value)
    if made != value and not plain and not named:
        raise Stuck(
            f"has {depth} entries, the old number of layers, and it is unclear which layers they describe"
        )
    return made


def _entry(own: Any, donor: Sequence[Any], layer: int, depth: int) -> Any:
    if isinstance(own, type(donor)) and len(own) > layer and len(own) >= min(depth, len(donor)):
        return own[layer]
    return donor[min(layer, len(donor) - 1)]


def _words(key: str, value: list[str], moved: Moved, own: Own) -> list[Any]:
    """Kinds of layers of which some follow each other again and again, or names that end with the number of a layer."""
    depth = moved.depth
    for each in value:
        _check_name(each, moved)
    named = [NAMED.fullmatch(each) for each in value]
    if re.search(r"feature|out|layer|stage|hook|tap|block|name", key) and any(named):
        return _named(key, value, moved)
    if repeats(key, value):
        if len(value) > depth:
            return _entries(key, value, moved, own, True)
        if any(value[i % len(value)] != value[n % len(value)] for i, n in enumerate(moved.layers)):
            raise Stuck(f"repeats {len(value)} layer types, and the order is different now")
    return value


def _check_name(value: str, moved: Moved) -> None:
    """What names a tensor or a module of one layer has to name it still."""
    found = LAYER_NAME.match(value)
    head = found[1] if found else ""
    if found and (moved.prefix.endswith(head) or head.endswith(moved.prefix)) and head:
        layer = int(found[2])
        if layer < moved.depth and [i for i, n in enumerate(moved.layers) if n == layer] != [layer]:
            raise Stuck(f"names '{value}', a layer that moved")


def _named(key: str, value: list[str], moved: Moved) -> list[str]:
    plain = [each for each in value if not NAMED.fullmatch(each)]
    stem = value[-1].rstrip("0123456789")
    for first in (0, 1):
        if value == plain + [f"{stem}{first + i}" for i in range(moved.depth)]:
            return plain + [f"{stem}{first + i}" for i in range(len(moved.layers))]
    made = []
    for each in value:
        found = NAMED.fullmatch(each)
        number = int(found["number"]) if found else -1
        made.append(f"{found['word']}{_tap(key, number, moved)}" if found and number <= moved.depth else each)  # fmt: skip
    return made


def _as_runs(like: list[Any], entries: list[str]) -> list[Any]:
    listed = isinstance(like[0][0], list)
    groups = [(kind, len(list(run))) for kind, run in groupby(entries)]
    return [[[kind] if listed else kind, count] for kind, count in groups]


# Text, maps


def _text(key: str, value: str, moved: Moved, own: Own) -> Any:
    depth = moved.depth
    _check_name(value, moved)
    if NUMBERS.fullmatch(key) and LISTED.fullmatch(value):
        last = max(map(int, re.findall("[0-9]+", value)))
        if last <= depth and not (moved.alike or (last < depth - 1 and moved.keeps(last + 1))):
            raise Stuck("names layers by their numbers")
    letters = len(set(value)) <= min(ALPHABET, max(2, len(value) // 2)) and not value.isdigit()
    if SHARE.fullmatch(key) and re.fullmatch(r"[0-9]+([:/][0-9]+)+", value):
        _check_period(sum(map(int, re.split("[:/]", value))), moved)
    told = letters and re.search(r"pattern|layers?|blocks?|hybrid|types|layout|schedule", key)
    if not told and key not in PER_LAYER_TEXT:
        return value
    if len(value) in (depth, depth + moved.behind):
        made = "".join(_entry(own(i), value, n, depth) for i, n in enumerate(moved.layers))
        return made + value[depth:]
    if 1 < len(value) < depth and re.search("pattern|layout|schedule", key):
        if any(value[i % len(value)] != value[n % len(value)] for i, n in enumerate(moved.layers)):
            raise Stuck(f"repeats {len(value)} layer types, and the order is different now")
    return value


def _by_number(value: dict[Any, Any], moved: Moved, own: Own) -> dict[Any, Any]:
    """A map by number of layer, with numbers as long as they were."""
    if not all(int(each) < moved.depth for each in value):
        return value
    padded = any(len(str(each)) > 1 and str(each).startswith("0") for each in value)
    width = len(str(len(moved.layers) - 1)) if padded else 1
    made: dict[Any, Any] = {}
    for i, layer in enumerate(moved.layers):
        mine = own(i)
        mine = mine if isinstance(mine, dict) else value
        entries = {int(each): entry for each, entry in mine.items() if DIGITS.fullmatch(str(each))}
        if layer in entries:
            name = next(iter(value))
            made[i if isinstance(name, int) else str(i).zfill(width)] = copy.deepcopy(
                entries[layer]
            )
    return made
