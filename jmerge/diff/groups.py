"""Tensors of a comparison in order and in groups: by change, part, layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from jmerge.diff.compare import Compared, Difference
from jmerge.diff.pairs import Pair
from jmerge.diff.sums import Sums, add_up


def grouped(
    tensors: Iterable[Compared], key: Callable[[Pair], str | int | None]
) -> dict[str | int, Sums]:
    """The sums over the tensors of every group, by its key; those whose key is None are in none."""
    groups: dict[str | int, list[Sums]] = {}
    for each in tensors:
        name = key(each.pair)
        if name is not None:
            groups.setdefault(name, []).append(each.sums)
    return {name: add_up(group) for name, group in groups.items()}


def most_changed(tensors: Iterable[Compared]) -> list[Compared]:
    """Those that changed, by relative change; first those that were zero."""

    def order(each: Compared) -> tuple[float, str]:
        relative = each.sums.relative
        return (float("-inf") if relative is None else -relative, each.pair.name)

    return sorted((each for each in tensors if each.sums.changed), key=order)


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
        parts = grouped(layers[layer], lambda pair: pair.place.part)
        yield layer, whole, {str(part): sums for part, sums in parts.items()}
