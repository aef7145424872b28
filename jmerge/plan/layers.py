"""Layers that are not the donor's one by one: whether config.json can say it, and what loads the model expects it."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from jmerge.arch.config import Layers, Unsaid, told_of_layers, unsaid
from jmerge.arch.infer import NUMBER, Stack
from jmerge.arch.inner import counted_inside
from jmerge.arch.layer_types import home_of
from jmerge.arch.mentions import words_of
from jmerge.plan.incomplete import missing_alone
from jmerge.plan.pairing import Template, View
from jmerge.plan.problems import PlanProblem, error, warning
from jmerge.plan.targets import OutStack, Place, Views

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
        """What config.json has to say of it."""
        return Layers(self.view.checkpoint.config, self.stack, self.layer)


class _Known(NamedTuple):
    """A layer of an input, or of the output: what config.json says of it, its place, and what it has of a tensor."""

    told: Hashable
    place: int
    depth: int  # layers of its model
    has: Hashable  # the tensor's shape; None without it


def arrange(
    stacks: Iterable[OutStack], views: Views, templates: Sequence[Template]
) -> tuple[dict[str, list[Layers]], list[PlanProblem]]:
    """Where each layer comes from, by prefix of the donor's stacks whose layers are not its own one by one, or not made
    with them; and what is wrong with the layers of models and with their new order."""
    donor = next(iter(views.values()))
    layers: dict[str, list[Layers]] = {}
    problems: list[PlanProblem] = []
    for each in stacks:
        lacking = list(_lacking(each, views))
        problems += lacking
        origins = [_origin(each, place, views) for place in each.places]
        if each.prefix in donor.stacks and not _is_donors(each, origins, donor):
            layers[each.prefix] = [origin.layers for origin in origins]
            trained = [
                template.name
                for template in templates
                if not lacking and template.stack == each.prefix and not template.buffer
            ]
            loose = [template.name for template in templates if template.stack is None]
            problems += _order_problems(each, origins, donor, trained, loose)
    return layers, problems


def _lacking(stack: OutStack, views: Views) -> Iterator[PlanProblem]:
    """What single layers of the models lack."""
    sources = {s.ref: s for out_slice in stack.module.slices for s in out_slice.sources}
    for source in sources.values():
        view = views[source.ref]
        others = [views[ref] for ref in sources if ref != source.ref]
        for each in missing_alone(view, stack.prefix, others):
            yield each.as_problem(view, source.model_path)


def _origin(stack: OutStack, place: Place, views: Views) -> Origin:
    view = views[place.out_slice.sources[0].ref]
    return Origin(view, view.stacks.get(stack.prefix, stack.stack), place.layers[0] or 0)


def _is_donors(stack: OutStack, origins: Sequence[Origin], donor: View) -> bool:
    """Whether the layers are the donor's in their order, or made with those."""
    if [origin.layer for origin in origins] != list(range(stack.stack.depth)):
        return False
    alone = [len(place.out_slice.sources) == 1 for place in stack.places]
    return not any(
        only and origin.view is not donor for only, origin in zip(alone, origins, strict=True)
    )


def _order_problems(
    out: OutStack,
    origins: Sequence[Origin],
    donor: View,
    trained: Sequence[str],
    loose: Sequence[str],
) -> Iterator[PlanProblem]:
    """What is wrong with another number or order of layers.

    Args:
      origins: of the output's layers.
      trained: templates of the stack's trained tensors; none where a model lacks some of them.
      loose: templates of tensors outside of stacks.
    """
    path = out.places[0].out_slice.path[:-1]
    prefix, stack = out.prefix, out.stack
    if len(origins) != stack.depth:
        if not stack.counted:
            message = f"config.json of {donor.ref} has no key that counts the layers of '{prefix}'"
            yield error("JM224", f"{message}, so their number cannot change", path)
        inner = counted_inside(donor.names, stack, prefix, donor.checkpoint.config)
        if inner is not None and stack.keys:
            module, count = inner
            message = f"config.json's '{'.'.join(stack.keys[0])}' counts the layers, and may count the {count} of '{module}' too"
            yield error("JM224", f"{message}; pick as many layers as there were", path)
    if [origin.layer for origin in origins] != list(range(stack.depth)):
        for why in _bound_to_layers(donor, prefix, stack, loose):
            yield error("JM224", f"{why} cannot be rearranged", path)
    layers = [origin.layers for origin in origins]
    said = unsaid(donor.checkpoint.config, stack, layers, donor.beside)
    for message in _unsayable(said):
        yield error("JM224", message, path)
    for message in _strays(origins, trained):
        yield error("JM224", message, path)
    for key, _, instead, written, *_ in said:
        if written:
            message = f"no '{key}' tells the kinds of the layers in their new order, so config.json gets '{instead}'"
            yield warning("JM225", f"{message}; what loads the model has to read that", path)


def _unsayable(said: Iterable[Unsaid]) -> Iterator[str]:
    """What no rule of the donor's config.json can say of the output's layers, in words."""
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
        where = f"config.json's '{key}' gives layer types by their number"
        fix = f", or write '{instead}' into config.json if its class reads that" if instead else ""
        yield f"{where}, and no value of it tells that those are {_list(ons)}; pick layers in another order{fix}"


def _strays(origins: Sequence[Origin], templates: Sequence[str]) -> Iterator[str]:
    """Trained tensors that what loads the model would not expect where the output has them, in words."""
    models = {origin.view.ref: origin for origin in origins}
    told = {ref: _told(origin) for ref, origin in models.items()}
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


def _bound_to_layers(donor: View, prefix: str, stack: Stack, loose: Sequence[str]) -> Iterator[str]:
    """What outside of a stack has something for each of its layers where they are, worded to say what cannot move."""
    ref = donor.ref
    if other := next((name for name in loose if prefix and name.startswith(f"{prefix}.")), None):
        yield f"{ref} numbers '{other}' like its layers, and it is in none, so these"
    doubtful = [other for _, other in stack.doubtful]  # which `unsaid` tells
    if (other := _beside(donor, prefix, loose)) is not None and other not in doubtful:
        yield f"{ref} numbers '{other}' like '{prefix}', and config.json has one key that counts both, so layers"
    config = home_of(donor.checkpoint.config, stack)
    inputs, heads = (
        size if type(size := config.get(key)) is int else 0
        for key in ("hidden_size_per_layer_input", "num_attention_heads")
    )
    around = [(n, donor.spec(n).shape) for (_, layer), n in donor.names.items() if layer is None]
    # Gemma 3n's inputs of layers, the weights by which ESM adds up the attention of all heads
    for name, shape in around:
        size = inputs if inputs > 0 and inputs * stack.depth in shape else 0
        size = heads if not size and heads > 0 and shape == (1, heads * stack.depth) else size
        if size:
            yield f"'{name}' has {size} entries for each layer of {ref}, so layers"
            break
    # YOLOS' positions, which are added between layers
    for name, shape in around:
        long = len(shape) > 2 and 1 < shape[0] in (stack.depth, stack.depth - 1)
        if long and shape[-1] == config.get("hidden_size") and not NUMBER.search(name):
            yield f"'{name}' has an entry for each layer of {ref} or between each two, so layers"
            break


def _beside(donor: View, prefix: str, loose: Sequence[str]) -> str | None:
    """What has a number for each layer of a stack too, outside of it: parts of layers in a list of their own."""
    numbers: dict[str, set[int]] = {}
    for name in loose:
        if found := NUMBER.search(name):
            numbers.setdefault(name[: found.start()].removesuffix("."), set()).add(int(found[0]))
    depth, home = donor.stacks[prefix].depth, prefix[: prefix.rfind(".") + 1]
    own = words_of(prefix)
    for other, counted in numbers.items():
        inside = other.startswith(home)
        if len(counted) == depth > 1 and (
            inside or words_of(other) & own or _has_layers_of(donor, prefix, other)
        ):
            return other
        # what stands between two layers (Informer's convolutions)
        word = other.rpartition(".")[2]
        if len(counted) == depth - 1 > 0 and home and other == home + word and "layer" in word:
            return other
    return None


def _has_layers_of(donor: View, prefix: str, other: str) -> bool:
    """Whether all that a layer of a stack has is in each entry of another list too, in the same shape."""
    names = donor.names
    own = [
        (template.partition("{}")[2], name)
        for (template, layer), name in names.items()
        if layer == 0 and template.startswith(f"{prefix}.{{}}.")
    ]
    twins = [(names.get((f"{other}.0{rest}", None)), name) for rest, name in own]
    return bool(twins) and all(
        twin is not None and donor.spec(twin).shape == donor.spec(name).shape
        for twin, name in twins
    )
