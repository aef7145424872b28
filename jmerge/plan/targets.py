"""Which tensors the output has, and of which layers of which sources each is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from jmerge.arch.families import find_module
from jmerge.arch.infer import Stack
from jmerge.arch.ties import is_headless
from jmerge.names import did_you_mean
from jmerge.plan.inputs import Stored
from jmerge.plan.pairing import Template, View, spell
from jmerge.plan.problems import PlanProblem, error, warning
from jmerge.recipe.recipe import Module, OutSlice, Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import show_path

Views = Mapping[ModelRef, View]  # the donor's first
Found = Sequence[
    tuple[int, Stored]
]  # the sources that have a tensor: position in the slice, where it is


class Place(NamedTuple):
    """Where in the output a tensor is made: the slice, its sources' layers (None: loose) and the depth."""

    module: Module
    out_slice: OutSlice
    layers: tuple[int | None, ...]  # one for each source
    t: float  # relative depth: 0 for the first layer of the slice and for loose tensors, 1 for the last


class Target(NamedTuple):
    """A tensor that the output may have."""

    name: str
    template: Template
    place: Place
    depth: float  # in the output's stack of blocks: 0 for the first and for loose tensors, 1 for the last
    found: Found  # not empty


class Unmentioned(NamedTuple):
    """A tensor of one of the donor's modules that the recipe leaves out."""

    name: str
    template: Template
    layer: int | None
    module: str


class OutStack(NamedTuple):
    """A stack of layers of the output."""

    name: str  # of its module
    module: Module
    prefix: str
    stack: Stack  # of the first model that has it
    places: list[Place]  # of its layers


@dataclass(frozen=True)
class Heads:
    """The output heads of the input models, some of which may be tied.

    When all models are tied, the head is stored as the donor stores it, and is what their embeddings become. When any has
    a head of its own, a head is written, and the tied models contribute their embedding to it. Models that have no head,
    such as classifiers, contribute nothing.
    """

    views: Views

    @cached_property
    def _donor(self) -> View:
        return next(iter(self.views.values()))

    @cached_property
    def _names(self) -> set[str]:
        return {head for view in self.views.values() for head in view.heads}

    @cached_property
    def all_tied(self) -> bool:
        """Whether the head of every model is its embedding."""
        return all(view.tied for view in self.views.values())

    @cached_property
    def _dropped(self) -> bool:
        return self.all_tied and not self._donor.layout.heads

    def stand_in(self, view: View, template: Template) -> str | None:
        """The tensor that a model without the head `template` contributes to it: its embedding, or None."""
        if self._dropped or template.name not in self._names:
            return None
        return view.layout.embeddings[0] if view.tied and not view.layout.heads else None

    def tied_away(self, view: View, name: str) -> bool:
        """Whether the stored head `name` is left out: equal to the embedding, and the donor stores none."""
        return self._dropped and name in view.layout.heads

    def twin(self, template: str) -> str | None:
        """The embedding that the head `template` is in all models, so that it is merged like it; None when it is not."""
        if self.all_tied and template in self._donor.layout.heads[:1]:
            return self._donor.layout.embeddings[0]
        return None

    def has_place(self, template: str) -> bool | None:
        """Whether the donor's class has a place for the head `template`; None when that is no head."""
        if template not in self._names:
            return None
        donor = self._donor
        return bool(donor.layout.heads) or not is_headless(donor.config, donor.layout)

    def written_with_table(self, written: Container[str]) -> tuple[str, str] | None:
        """Head and embedding when both are written and any model ties them, whose equality decides the tie.

        Where every model has a head of its own, what config.json says of the tie stays: it did not concern that head.
        """
        heads = [head for view in self.views.values() for head in view.heads if head in written]
        tables = [name for name in self._donor.layout.embeddings if name in written]
        if not heads or not tables or not any(view.tied for view in self.views.values()):
            return None
        return heads[0], tables[0]

    def untied(self, head: str) -> Iterator[PlanProblem]:
        """The warning of models that disagree, for the head that is written."""
        lacking = [str(v.ref) for v in self.views.values() if v.tied and not v.layout.heads]
        if lacking and not self.all_tied:
            message = f"{head} is written because not every model ties it to the embedding"
            stands = f"the embedding stands in for it in {', '.join(lacking)}"
            yield warning("JM231", f"{message}; {stands}", ())


def find_modules(views: Views, recipe: Recipe) -> tuple[dict[str, Module], list[PlanProblem]]:
    """The donor's modules that the recipe merges with what it says of them, and what is wrong with it."""
    donor = next(iter(views.values()))
    known = donor.layout.modules
    modules: dict[str, Module] = {}
    problems = []
    for module in recipe.modules:
        if module.name is not None:
            meant = find_module(module.name, known)
            if meant is not None and meant in modules:
                message = f"'{meant}' is at {show_path(modules[meant].path)} too"
                problems.append(error("JM223", message, module.path))
            elif meant is not None:
                modules[meant] = module
            else:
                hint = did_you_mean(module.name, known)
                message = f"not a module of {donor.ref}{hint}"
                problems.append(error("JM223", message, module.path))
        elif (
            module.slices[0].sources[0].layers
            and sum(1 for each in known if donor.layout.main_stack(each)) > 1
        ):
            message = f"{donor.ref} has several stacks of layers; put slices under 'modules:'"
            problems.append(error("JM223", f"{message} ({', '.join(known)})", ("slices",)))
        else:
            modules |= dict.fromkeys(known, module)
    for name, module in modules.items():
        for out_slice in module.slices:
            problems += _range_problems(views, name, out_slice)
    return modules, problems


def _range_problems(views: Views, module: str, out_slice: OutSlice) -> Iterator[PlanProblem]:
    """Sources that do not have the layers, and models of different depths where the recipe picks no layers."""
    main = next(iter(views.values())).layout.main_stack(module)
    having: list[View] = []
    for source in out_slice.sources:
        stack = views[source.ref].stacks.get(main.prefix) if main else None
        depth = stack.depth if stack else 0
        if stack:  # a model without the whole module lacks its tensors, which is another matter
            having.append(views[source.ref])
        if source.layers is not None and source.layers[1] > depth:
            message = f"{source.ref} has {depth} layers, so no layer {source.layers[1] - 1}"
            yield error("JM206", message, (*source.path, "layer_range"))
    depths = {str(view.ref): view.stacks[main.prefix].depth for view in having} if main else {}
    if main and out_slice.sources[0].layers is None and len(set(depths.values())) > 1:
        found = ", ".join(f"{ref} has {depth}" for ref, depth in depths.items())
        message = f"all models need equally many layers, but {found}"
        shapes = (_first_difference(view, having[0], main.prefix) for view in having[1:])
        if shape := next(filter(None, shapes), None):
            message += f", and layers of different sizes cannot be merged ({shape})"
        else:
            message += "; pick layers with 'slices:'"
        yield error("JM206", message, (*out_slice.path, "models"))


def _first_difference(one: View, other: View, prefix: str) -> str | None:
    """The shapes of the first tensor of a stack's first layer that two models have in two shapes; None when none is."""
    for (template, layer), name in one.names.items():
        own = other.names.get((template, layer))
        if layer != 0 or own is None or not template.startswith(prefix):
            continue
        shape, wanted = (list(view.spec(each).shape) for view, each in ((one, name), (other, own)))
        if shape != wanted:
            return f"{name} is {shape} in {one.ref} and {wanted} in {other.ref}"
    return None


def out_stacks(
    views: Views, templates: Iterable[Template], modules: Mapping[str, Module]
) -> list[OutStack]:
    """The stacks of layers of the output, module by module."""
    donor = next(iter(views.values()))
    layered = [template for template in templates if template.stack is not None]
    found = []
    for name, module in modules.items():
        main = donor.layout.main_stack(name)
        for prefix in dict.fromkeys(t.stack for t in layered if t.module == name):
            assert prefix is not None
            stack = next(v.stacks[prefix] for v in views.values() if prefix in v.stacks)
            ranged = main is not None and prefix == main.prefix
            places = _places(views, module, prefix, ranged)
            found.append(OutStack(name, module, prefix, stack, places))
    return found


def _places(views: Views, module: Module, prefix: str, ranged: bool) -> list[Place]:
    """Every output layer of a stack. One that layer ranges do not count keeps its layers, as in the first slice."""
    places = []
    for out_slice in module.slices if ranged else module.slices[:1]:
        spans = []
        for source in out_slice.sources:
            own = views[source.ref].stacks.get(prefix)
            whole = (0, own.depth if own else 0)
            spans.append(source.layers if source.layers and ranged else whole)
        count = max(end - start for start, end in spans)
        for k in range(count):
            t = k / (count - 1) if count > 1 else 1.0
            places.append(Place(module, out_slice, tuple(start + k for start, _ in spans), t))
    return places


def find_targets(
    views: Views,
    templates: Sequence[Template],
    modules: Mapping[str, Module],
    stacks: Iterable[OutStack],
    heads: Heads,
) -> Iterator[Target]:
    """Every tensor that a source has, in the order of the output: what comes first in a forward pass, layers, the rest."""

    def loose(part: str, number: int) -> Iterator[Target]:
        for name, module in modules.items():
            out_slice = module.slices[number]
            place = Place(module, out_slice, (None,) * len(out_slice.sources), 0.0)
            sources = [views[source.ref] for source in out_slice.sources]
            for template in templates:
                if template.stack is None and template.part == part and template.module == name:
                    if found := _find(sources, template, place.layers, heads):
                        yield Target(template.name, template, place, 0.0, found)

    yield from loose("first", 0)
    for module, _, prefix, stack, places in stacks:
        inside = [each for each in templates if each.stack == prefix and each.module == module]
        for layer, place in enumerate(places):
            depth = layer / (len(places) - 1) if len(places) > 1 else 0.0
            sources = [views[source.ref] for source in place.out_slice.sources]
            for template in inside:
                if found := _find(sources, template, place.layers, heads):
                    name = spell(template.name, stack, layer)
                    yield Target(name, template, place, depth, found)
    yield from loose("last", -1)


def _find(
    sources: Iterable[View], template: Template, layers: Sequence[int | None], heads: Heads
) -> Found:
    """The sources that have a tensor."""
    found = []
    for i, (view, layer) in enumerate(zip(sources, layers, strict=True)):
        name = view.names.get((template.name, layer))
        if name is None:
            name = heads.stand_in(view, template)
        elif heads.tied_away(view, name):
            name = None
        if name is not None:
            found.append((i, view.stored(name)))
    return found


def find_unmentioned(
    donor: View, templates: Mapping[str, Template], modules: Mapping[str, Module]
) -> Iterator[Unmentioned]:
    """The tensors of the donor's modules that the recipe leaves out."""
    for (template, layer), name in donor.names.items():
        module = donor.layout.roles[name].module
        if module not in modules:
            yield Unmentioned(name, templates[template], layer, module)


def unmentioned_problems(donor: View, found: Iterable[Unmentioned]) -> Iterator[PlanProblem]:
    """How many tensors of each module that the recipe leaves out are copied."""
    for module, count in Counter(each.module for each in found).items():
        message = f"module '{module}' is not in the recipe"
        message += f"; its {count} tensors are copied from {donor.ref}"
        yield warning("JM221", message, ("modules",))
