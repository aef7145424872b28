"""Which layout a module of a model has, and where the elements of a tensor in one layout lie in the tensors of another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterator, Mapping
from functools import cache
from typing import NamedTuple

from jmerge.arch.infer import NUMBER, Config
from jmerge.arch.match import reduce_name
from jmerge.arch.storage_table import (
    GROUPS,
    OF_A_PART,
    Group,
    StorageLayout,
    Tensor,
    heads_of,
    kind_of,
)

Shape = tuple[int, ...]
Key = tuple[Tensor, int | None]  # a tensor of a layout, of which expert
Sizes = dict[str, int]  # by letter; with the part after it where parts may differ


class Module(NamedTuple):
    """The tensors of a module in one layout."""

    home: str  # its name in templates
    group: Group
    layout: StorageLayout
    templates: Mapping[Key, str]
    shapes: Mapping[Key, Shape]  # in the first layer that has them

    @property
    def experts(self) -> int:
        """How many experts it has, as far as names and shapes tell; 0 when these are no experts."""
        found = [0]
        for (tensor, expert), shape in self.shapes.items():
            found.append(0 if expert is None else expert + 1)
            found.append(shape[0] if tensor.axes[0] == "E" else 0)
        return max(found)

    @property
    def stored(self) -> set[tuple[str, Shape]]:
        """Its tensors."""
        return {(name, self.shapes[key]) for key, name in self.templates.items()}

    @property
    def complete(self) -> bool:
        """Whether it has all it needs."""
        return next(missing(self.layout, self.templates, self.experts), None) is None

    def template(self, tensor: Tensor, expert: int | None) -> str:
        """What a tensor of its layout is called here."""
        name = tensor.name.replace("{}", str(expert))
        return f"{self.home}.{name}" if self.home else name


class Block(NamedTuple):
    """Where a part of a tensor lies in another; see `steps.Box`."""

    key: Key  # the tensor of the other layout
    start: int
    strides: tuple[int, ...]
    box: tuple[tuple[int, int], ...]


class Pair(NamedTuple):
    """The module of a model, and the donor's in another layout."""

    own: Module
    donor: Module


class Refused(NamedTuple):
    """A module that two models store in two ways, one of which is not known."""

    own: str  # one of its tensors
    donor: str
    why: str


def find_pairs(
    own: Mapping[str, Shape], own_config: Config, donor: Mapping[str, Shape], config: Config
) -> Iterator[Pair | Refused]:
    """Modules that a model (its templates by the donor's prefixes) stores in another layout than the donor."""
    for ours, theirs in zip(_modules(own), _modules(donor), strict=True):
        for home, modules in ours.items():
            if home in theirs:
                found = _pair(modules, own_config, theirs[home], config)
                if found is not None:
                    yield found


def missing(layout: StorageLayout, found: Container[Key], experts: int) -> Iterator[Key]:
    """The tensors that a layout needs and that are not among those `found`."""
    for tensor in layout.tensors:
        for expert in range(experts) if tensor.numbered else (None,):
            if tensor.needed and (tensor, expert) not in found:
                yield tensor, expert


def solve(
    layout: StorageLayout, shapes: Mapping[Key, Shape], given: Mapping[str, int]
) -> Sizes | None:
    """The size of every letter, or None when the shapes contradict the layout or each other.

    given: sizes that are known already.
    """
    sizes, before = dict(given), -1
    while len(sizes) > before:
        before = len(sizes)
        for (tensor, _), shape in shapes.items():
            if len(shape) != len(tensor.axes):
                return None
            for word, length in zip(tensor.axes, shape, strict=True):
                if not _fits(word, length, tensor.parts, sizes):
                    return None
    return sizes


def given_sizes(layout: StorageLayout, shapes: Mapping[Key, Shape], config: Config) -> Sizes | None:
    """The sizes that config.json tells of a fused layout; None where they do not make up its rows."""
    if not layout.heads:
        return {}
    rows = next(shape[0] for shape in shapes.values())
    heads = heads_of(config, rows)
    if heads is None:
        return None
    sizes = {"N": heads.keys, "D": heads.size}
    for part in ("q", "k", "v"):
        count = heads.queries if part == "q" else heads.keys
        for each in (part, f"{part} bias"):
            sizes[f"R {each}"] = count * heads.size
            sizes[f"S {each}"] = count // heads.keys
    return sizes


def shape_of(tensor: Tensor, sizes: Sizes) -> Shape:
    """The shape of a tensor."""
    return tuple(math.prod(axis.size for axis in axes) for axes in _axes(tensor, sizes))


def view_of(tensor: Tensor, sizes: Sizes) -> Shape:
    """Its shape with axes of several letters cut apart, but for parts one after the other."""
    return tuple(axis.size for axes in _axes(tensor, sizes) for axis in axes)


def blocks(
    tensor: Tensor, expert: int | None, layout: StorageLayout, sizes: Sizes
) -> Iterator[Block]:
    """What a tensor, of one expert, consists of when the parts are stored in `layout`."""
    axes = [axis for word in _axes(tensor, sizes) for axis in word]
    for source in layout.tensors:
        if (source.axes, source.parts) == (tensor.axes, tensor.parts):  # another name is all
            whole = [math.prod(axis.size for axis in axes[at + 1 :]) for at in range(len(axes))]
            box = [(0, axis.size) for axis in axes]
            yield Block((source, expert), 0, tuple(whole), tuple(box))
            return
    for part in tensor.parts:
        source = next(each for each in layout.tensors if part in each.parts)
        apart = source.numbered and not tensor.numbered
        for number in range(sizes["E"]) if apart else (expert,):
            start, steps = _place(source, part, number, sizes)
            strides, box = [], []
            for axis in axes:
                first = axis.first(part, number)
                strides.append(steps.get(axis.letter, 0))
                box.append((first, first + axis.extent(part, number, sizes)))
            key = source, number if source.numbered else None
            yield Block(key, start, tuple(strides), tuple(box))


class _Axis(NamedTuple):
    """What is counted along one axis of a view."""

    letter: str  # empty: parts alone
    parts: Mapping[str, int] | None  # where each begins, if several lie along it
    size: int

    def first(self, part: str, expert: int | None) -> int:
        """Where a part of an expert, or of all, begins."""
        if self.letter == "E":
            return expert or 0
        return self.parts[part] if self.parts is not None else 0

    def extent(self, part: str, expert: int | None, sizes: Sizes) -> int:
        """How much of it is one part of an expert, or of all."""
        single = self.letter == "" or (self.letter == "E" and expert is not None)
        return 1 if single else _size(self.letter, part, sizes)


def _axes(tensor: Tensor, sizes: Sizes) -> list[list[_Axis]]:
    """The axes of its view, for each of its own."""
    found = []
    for word in tensor.axes:
        axes = []
        for at, letter in enumerate(word):
            if letter == "P":
                inner = word[at + 1 : at + 2]
                lengths = [_size(inner, part, sizes) if inner else 1 for part in tensor.parts]
                starts = dict(zip(tensor.parts, itertools.accumulate([0, *lengths]), strict=False))
                axes.append(_Axis(inner, starts, sum(lengths)))
            elif at == 0 or word[at - 1] != "P":
                axes.append(_Axis(letter, None, _size(letter, tensor.parts[0], sizes)))
        found.append(axes)
    return found


def _place(tensor: Tensor, part: str, expert: int | None, sizes: Sizes) -> tuple[int, Sizes]:
    """The first element of a part of an expert, or of all, in a tensor, and the steps along each letter."""
    axes = [axis for word in _axes(tensor, sizes) for axis in word]
    start, step, steps = 0, 1, {}
    for axis in reversed(axes):
        start += axis.first(part, expert) * step
        if axis.letter and (axis.letter != "E" or expert is None):
            steps[axis.letter] = step
        step *= axis.size
    return start, steps


def _size(letter: str, part: str, sizes: Sizes) -> int:
    return sizes[_named(letter, part)]


def _named(letter: str, part: str) -> str:
    return f"{letter} {part}" if letter in OF_A_PART else letter


def _fits(word: str, length: int, parts: tuple[str, ...], sizes: Sizes) -> bool:
    """Whether an axis can have a length; what follows from that is put down in `sizes`."""
    outer, several, inner = word.partition("P")
    inside = [[_named(letter, part) for letter in inner] for part in parts]
    outside = [_named(letter, parts[0]) for letter in outer]
    unknown = {name for names in (outside, *inside) for name in names} - sizes.keys()
    if len(unknown) > 1:
        return True  # later, perhaps
    (name,) = unknown or ("",)
    shares = inside if several else [[]]
    known = math.prod(sizes[each] for each in outside if each != name)
    known *= sum(math.prod(sizes[each] for each in names if each != name) for names in shares)
    if not unknown:
        return known == length
    if any(name not in names for names in shares) and name not in outside:
        return True
    if known == 0 or length % known:
        return False
    sizes[name] = length // known
    return True


def _modules(templates: Mapping[str, Shape]) -> list[dict[str, list[Module]]]:
    """For each line of `GROUPS`, the modules of a model in every layout whose names they have, by a name of the module that
    spellings share."""
    found: dict[tuple[int, str, int, int], dict[Key, str]] = {}
    known = _names()
    for template, shape in templates.items():
        for home, name, expert in _cut(template):
            for line, at, number, tensor in known.get(name, ()):
                if len(shape) == len(tensor.axes):
                    found.setdefault((line, home, at, number), {})[tensor, expert] = template
    homes: dict[tuple[int, str], set[str]] = {}
    for line, home, _, _ in found:
        homes.setdefault((line, reduce_name(f"{home}.")), set()).add(home)
    made: list[dict[str, list[Module]]] = [{} for _ in GROUPS]
    for (line, home, at, number), names in found.items():
        shared = reduce_name(f"{home}.")
        group, shapes = GROUPS[line][at], {key: templates[name] for key, name in names.items()}
        module = Module(home, group, group.layouts[number], names, shapes)
        alone = len(homes[line, shared]) == 1
        made[line].setdefault(shared if alone else home, []).append(module)
    return made


def _cut(template: str) -> Iterator[tuple[str, str, int | None]]:
    """The ways to cut a template into the name of a module and that of a tensor, with the number of the expert."""
    words = template.split(".")
    yield ".".join(words[:-2]), ".".join(words[-2:]), None
    if len(words) > 3 and words[-4] == "experts" and NUMBER.fullmatch(words[-3]):
        yield ".".join(words[:-4]), ".".join(["experts", "{}", *words[-2:]]), int(words[-3])


@cache
def _names() -> dict[str, list[tuple[int, int, int, Tensor]]]:
    """By the name of a tensor, where it is in the table: line, group, layout."""
    found: dict[str, list[tuple[int, int, int, Tensor]]] = {}
    for line, groups in enumerate(GROUPS):
        for at, group in enumerate(groups):
            for number, layout in enumerate(group.layouts):
                for tensor in layout.tensors:
                    found.setdefault(tensor.name, []).append((line, at, number, tensor))
    return found


def _pair(
    ours: list[Module], our_config: Config, theirs: list[Module], config: Config
) -> Pair | Refused | None:
    """The one way to see a model's module in the donor's layout; None when they agree."""
    own, donor = _possible(ours, our_config), _possible(theirs, config)
    names = [{frozenset(module.templates) for module in side} for side in (ours, theirs)]
    if names[0] & names[1] and not (
        len(own) == len(donor) == 1 and own[0].layout is not donor[0].layout
    ):
        return None
    pairs = [
        Pair(one, other)
        for one in own
        for other in donor
        if one.group is other.group and one.layout is not other.layout
    ]
    agree = [pair for pair in pairs if pair.own.stored == pair.donor.stored]
    proven = [_proven(own, our_config), _proven(donor, config)]
    if len(pairs) == 1 and pairs[0].donor.complete and not agree and all(proven):
        return pairs[0]
    if any(one.layout is other.layout for one in own for other in donor):
        return None
    sides = (ours, our_config, proven[0]), (theirs, config, proven[1])
    for side, its, known in sides if not agree else ():
        if not known:
            kinds = ", ".join(sorted(kind_of(its))) or "no model_type"
            why = f"the layout of {_first(side)} is unknown for {kinds}"
            return Refused(_first(ours), _first(theirs), why)
    if agree:
        words = [each.layout.words for each in agree[0]]
        why = "names and shapes agree, but according to config.json it is "
        why += f"{words[0]} in one model and {words[1]} in the other"
    elif len(pairs) == 1:
        module = pairs[0].donor
        lacking = module.template(*next(missing(module.layout, module.templates, module.experts)))
        why = f"{lacking} is missing there"
    elif pairs:
        why = "shapes and config.json allow several layouts"
    else:
        why = "their rows are in different orders"
    return Refused(_first(ours), _first(theirs), why)


def _proven(possible: list[Module], config: Config) -> bool:
    """Whether there is a layout it may have, and each is known of its kind."""
    layouts = [each.layout for each in possible]
    return bool(layouts) and all(not f.proven or f.proven & kind_of(config) for f in layouts)


def _first(side: list[Module]) -> str:
    return next(iter(side[0].templates.values()))


def _possible(modules: list[Module], config: Config) -> list[Module]:
    """Those whose layout the model may have, by its kind, by what is there, and by its shapes."""
    kinds = kind_of(config)
    known = [each for each in modules if each.layout.kinds & kinds]
    found = known or [each for each in modules if not each.layout.kinds]
    whole = [each for each in found if each.complete]
    if not whole:  # what it lacks is to be told
        return sorted(found, key=lambda each: -len(each.templates))[:1]
    return [each for each in whole if solve(each.layout, each.shapes, {}) is not None]
