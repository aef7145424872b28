"""Tensors of a comparison in order and in groups: by change, part, layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from jmerge.diff.compare import Compared, Difference
from jmerge.diff.sums import Sums, add_up


def parts(tensors: Iterable[Compared]) -> dict[str, list[Sums]]:
    """The sums of the tensors of every part, by its name."""
    groups: dict[str, list[Sums]] = {}
    for each in tensors:
        groups.setdefault(each.pair.place.part, []).append(each.sums)
    return groups


def most_changed(tensors: Iterable[Compared]) -> list[Compared]:
    """Those that changed, by relative change; first those that were zero."""
    changed = (each for each in tensors if each.sums.changed)
    return sorted(changed, key=lambda each: (_first(each.sums), each.pair.name))


def by_part(tensors: Iterable[Compared]) -> list[tuple[str, int, Sums]]:
    """Every part by relative change, first those that were zero: its name, how many tensors it has, and their sums."""
    found = [(part, len(sums), add_up(sums)) for part, sums in parts(tensors).items()]
    return sorted(found, key=lambda row: _first(row[2]))


def _first(sums: Sums) -> float:
    """Sorts what changed most to the front."""
    return float("-inf") if sums.relative is None else -sums.relative


def stacks(found: Difference) -> dict[str, list[Compared]]:
    """The tensors of every stack of layers, by its prefix in A."""
    groups: dict[str, list[Compared]] = {}
    for each in found.tensors:
        if each.pair.place.stack is not None:
            groups.setdefault(each.pair.place.stack, []).append(each)
    return groups


def by_layer(tensors: Iterable[Compared]) -> Iterator[tuple[int, Sums, dict[str, Sums]]]:
    """Every layer of a stack's tensors in order, its sums, and those of its parts."""
    layers: dict[int, list[Compared]] = {}
    for each in tensors:
        if each.pair.place.layer is not None:
            layers.setdefault(each.pair.place.layer, []).append(each)
    for layer in sorted(layers):
        whole = add_up(each.sums for each in layers[layer])
        yield layer, whole, {part: add_up(sums) for part, sums in parts(layers[layer]).items()}
