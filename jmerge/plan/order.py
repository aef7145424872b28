"""A new order of layers: whether config.json can say it, and whether what loads the model will expect it."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from jmerge.arch.config import Layers, Unsaid, told_of_layers
from jmerge.arch.infer import Stack
from jmerge.plan.views import View

SHOWN = 6  # layers that a message names
SHARED_LIST = re.compile(
    r"(.*\{\}\.(?:.+\.)?\w*shared\w*\.(?:[^0-9.][^.]*\.)*[^0-9.][^.]*)\.([0-9]+)\."
)


class Origin(NamedTuple):
    """Where an output layer comes from."""

    view: View
    stack: Stack  # of the view
    layer: int  # 0-based place in it

    @property
    def layers(self) -> Layers:
        """What config.json is told of it."""
        return Layers(self.view.checkpoint.config, self.stack, self.layer)


class _Known(NamedTuple):
    """A layer of an input, or of the output: what config.json says of it, its place, and what it has of a tensor."""

    told: Hashable
    place: int
    depth: int  # layers of its model
    has: Hashable  # the tensor's shape; None without it


def order_faults(
    said: Iterable[Unsaid], origins: Sequence[Origin], templates: Iterable[str]
) -> Iterator[str]:
    """Why the output cannot have its layers in this order, in words; nothing when it can.

    Args:
      said: what no rule of the donor's config.json says of it, see `unsaid`.
      origins: of the output's layers.
      templates: of the stack's trained tensors.
    """
    for key, ons, instead, written, why, fixed in said:
        if written:
            continue
        if fixed:
            yield f"config.json's '{key}' {why}; keep the layers that there are, in their order"
            continue
        if why:
            yield (
                f"config.json's '{key}' {why}; pick layers in another order, or take it out of the donor's config.json "
                "and write what is right into the output's"
            )
            continue
        where = f"config.json's '{key}' tells kinds of layers by their number"
        fix = f", or write '{instead}' into config.json if its class reads that" if instead else ""
        yield f"{where}, and no value of it tells that those are {_list(ons)}; pick layers in another order{fix}"
    models = {origin.view.ref: origin for origin in origins}
    told = {ref: _told(origin) for ref, origin in models.items()}
    templates = tuple(templates)
    yield from _shared_lists(models.values(), origins, templates)
    for template in templates:
        having = {ref: _shapes(origin, template) for ref, origin in models.items()}
        if all(len(set(own)) == 1 for own in having.values()):
            continue
        inputs = {
            (ref, i): _Known(told[ref][i], i, origin.stack.depth, having[ref][i])
            for ref, origin in models.items()
            for i in range(origin.stack.depth)
            if any(having[ref])
        }
        output = [
            _Known(told[ref][layer], place, len(origins), having[ref][layer])
            for place, (ref, layer) in enumerate((o.view.ref, o.layer) for o in origins)
        ]
        if not _by_place(tuple(inputs.values()), output):
            ref = next(ref for ref, own in having.items() if len(set(own)) > 1)
            shapes = having[ref]
            rarest = min({shape for shape in shapes if shape is not None}, key=shapes.count)
            own = [i for i, shape in enumerate(shapes) if shape == rarest]
            new = [known.place for known in output if known.has == rarest]
            where = f"layers {_list(own)} of {ref} have '{template}'"
            where += f" as {list(rarest)}" if len(set(shapes) - {None}) > 1 else ""
            yield (
                f"only {where}, by their place, as config.json does not tell them apart; "
                f"here it would be in {_list(new)}; pick layers in another order"
            )
            return  # other tensors of the same layers would be told as well


def _shared_lists(
    models: Iterable[Origin], origins: Sequence[Origin], templates: Iterable[str]
) -> Iterator[str]:
    """Modules that layers of a kind share, with a list of one entry for each of these layers, and now there are more of
    them or fewer (Zamba 2's adapters)."""
    lists: dict[str, set[int]] = {}
    for template in templates:
        if found := SHARED_LIST.match(template):
            lists.setdefault(found[1], set()).add(int(found[2]))
    for name, entries in lists.items():
        first = next(each for each in templates if each.startswith(f"{name}."))
        counts = {len(origin.view.layers_with.get(first, ())) for origin in models}
        now = sum(each.layer in each.view.layers_with.get(first, ()) for each in origins)
        if counts == {len(entries)} and now != len(entries):
            yield (
                f"'{name}' has an entry for each of the {len(entries)} layers that share it, and "
                f"here {now} would; pick as many of these layers as there were"
            )


def order_warnings(said: Iterable[Unsaid]) -> Iterator[str]:
    """What whoever loads the output has to know for its layers to be of the right kinds; said: as of `order_faults`."""
    for key, _, instead, written, *_ in said:
        if written:
            where = f"no '{key}' tells the kinds of the layers in their new order"
            yield f"{where}, so config.json gets '{instead}'; what loads the model has to read that"


def _by_place(inputs: Sequence[_Known], output: Sequence[_Known]) -> bool:
    """Whether the output has a tensor, and of its shape, in the layers that would be expected to have it.

    What config.json says of a layer decides. Where that does not explain the inputs, the place does too: whether a layer
    is among the first few, or the last few, of which few are at most half, and as few as explain the inputs. So T5's first
    layer has the positions of all.
    """
    if _explains(inputs, [], lambda known: known.told):
        return True
    shallowest = min(known.depth for known in inputs)
    first = [partial(_among_first, few=few) for few in range(1, shallowest // 2 + 1)]
    last = [partial(_among_last, few=few) for few in range(1, (shallowest + 1) // 2)]
    fewest = (
        next((key for key in keys if _explains(inputs, [], key)), None) for keys in (first, last)
    )
    same_depth = len({known.depth for known in (*inputs, *output)}) == 1
    return any(key is not None and _explains(inputs, output, key) for key in fewest) or (
        same_depth and _explains(inputs, output, lambda known: (known.told, known.place))
    )


def _among_first(known: _Known, few: int) -> Hashable:
    return known.told, known.place < few


def _among_last(known: _Known, few: int) -> Hashable:
    return known.told, known.place >= known.depth - few


def _explains(
    inputs: Iterable[_Known], output: Iterable[_Known], key: Callable[[_Known], Hashable]
) -> bool:
    """Whether all inputs with one key have the tensor or none has, and each of the output is like an input with its key."""
    has: dict[Hashable, Hashable] = {}
    return all(has.setdefault(key(known), known.has) == known.has for known in inputs) and all(
        has.get(key(known)) == known.has for known in output
    )


def _shapes(origin: Origin, template: str) -> list[tuple[int, ...] | None]:
    """Of a tensor in each layer of the stack an output layer comes from; None where it is not."""
    view = origin.view
    names = (view.names.get((template, i)) for i in range(origin.stack.depth))
    return [None if name is None else tuple(view.spec(name).shape) for name in names]


def _told(origin: Origin) -> list[Hashable]:
    """What config.json says of each layer of the stack an output layer comes from."""
    view = origin.view
    told = told_of_layers(view.checkpoint.config, origin.stack, view.beside)
    return [tuple((key, said[i]) for key, said in told.items()) for i in range(origin.stack.depth)]


def _list(layers: Sequence[int]) -> str:
    if not layers:
        return "none"
    more = ", ..." if len(layers) > SHOWN else ""
    return ", ".join(map(str, layers[:SHOWN])) + more
