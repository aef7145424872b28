"""Models that store modules in another form than the donor, seen in its form: experts packed or one by one, projections
fused or apart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

from jmerge.arch.forms import (
    Key,
    Pair,
    Refused,
    Sizes,
    blocks,
    find_pairs,
    given_sizes,
    missing,
    shape_of,
    solve,
    view_of,
)
from jmerge.arch.layouts import Tensor
from jmerge.dtypes import BITS, TensorSpec
from jmerge.plan.inputs import Assembled, Box, Read
from jmerge.plan.models import read_of, takes_over
from jmerge.plan.notes import Notes
from jmerge.plan.views import Template, View, spell
from jmerge.recipe.refs import ModelRef


def convert_views(
    views: Mapping[ModelRef, View], templates: Mapping[str, Template], notes: Notes
) -> dict[str, Template]:
    """Change what views have in another form than the donor into its form, and return the templates that remain.

    Modules that the donor does not have take the form of the first model that does. A conversion is a warning; one that
    cannot be is a fault.
    """
    listed = list(views.values())
    made = dict(templates)
    known: set[str] = set()  # what models before the one that is looked up have
    for number, first in enumerate(listed):
        wanted = {name: shape for name, shape in _shapes(first).items() if name not in known}
        for view in listed[number + 1 :]:
            own = {name: shape for name, shape in _shapes(view).items() if name not in known}
            configs = view.checkpoint.config, first.checkpoint.config
            for found in find_pairs(own, configs[0], wanted, configs[1]):
                if isinstance(found, Refused):
                    message = f"{found.own} of {view.ref} is stored as {found.donor} in {first.ref}"
                    path = notes.recipe.first_path(view.ref)
                    notes.fault(f"{message}: {found.why}", path)
                else:
                    made |= _Conversion(view, first, found, notes).run(made)
        known |= wanted.keys()
    left = {template for view in listed for template, _ in view.names}
    return {name: template for name, template in made.items() if name in left}


def _shapes(view: View) -> dict[str, tuple[int, ...]]:
    """The shape of every template in the first layer that has it."""
    shapes: dict[str, tuple[int, ...]] = {}
    for (template, _), name in view.names.items():
        shapes.setdefault(template, view.spec(name).shape)
    return shapes


class _Conversion:
    """One module of one model."""

    def __init__(self, view: View, donor: View, pair: Pair, notes: Notes) -> None:
        self.view = view
        self.donor = donor
        self.own, self.wanted = pair.own, pair.donor
        self.notes = notes

    def run(self, templates: Mapping[str, Template]) -> dict[str, Template]:
        """Convert the module in all layers, and return the templates of what is made."""
        like = templates[next(iter(self.wanted.templates.values()))]
        if self.view.quantised.reason:
            if takes_over(self.notes.recipe):  # other recipes are refused
                self._fault("quantised weights cannot be brought into that form")
            return {}
        if self.own.experts != self.wanted.experts:
            self._fault(f"it has {self.own.experts} experts and not {self.wanted.experts}")
            return {}
        keys = {template: key for key, template in self.own.templates.items()}
        layers: dict[int | None, dict[Key, str]] = {}
        for (template, layer), name in self.view.names.items():
            if template in keys:
                layers.setdefault(layer, {})[keys[template]] = name
        made: dict[str, Template] = {}
        told: list[Assembled] = []
        for layer, names in layers.items():
            reads = {key: read_of(self.view, name) for key, name in names.items()}
            found = self._layer(layer, reads)
            if found is None:
                return {}
            used = {box.read.name for item in found.values() for box in item.boxes}
            for key, name in names.items():
                if name in used:
                    del self.view.names[self.own.templates[key], layer]
            for template, item in found.items():
                self.view.names[template, layer] = item.name
                self.view.converted[item.name] = item
                made[template] = templates.get(template) or dataclasses.replace(like, name=template)
            told += found.values()
        count = f" ({len(told)} tensors)" if len(told) > 1 else ""
        message = f"{self._words()}: what it has is brought into that form while it is read{count}"
        self.notes.warn(message, self.notes.recipe.first_path(self.view.ref))
        return made

    def _layer(self, layer: int | None, reads: Mapping[Key, Read]) -> dict[str, Assembled] | None:
        """The tensors of one layer by template; None when they cannot be, which is noted."""
        experts = self.own.experts
        lacking = missing(self.own.form, reads, experts)
        if (first := next(lacking, None)) is not None:
            self._lacks(layer, first, sum(1 for _ in lacking))
            return None
        sizes = self._sizes(reads)
        if sizes is None:
            shapes = ", ".join(f"{read.name} is {list(read.spec.shape)}" for read in _few(reads))
            self._fault(f"the shapes do not fit ({shapes})")
            return None
        found: dict[str, Assembled] = {}
        for tensor in self.wanted.form.tensors:
            if not tensor.needed and not self.own.form.parts.issuperset(tensor.parts):
                continue
            for expert in range(experts) if tensor.numbered else (None,):
                parts = list(blocks(tensor, expert, self.own.form, sizes))
                absent = [part.key for part in parts if part.key not in reads]
                if absent and not tensor.needed and len(absent) == len(parts):
                    continue
                if absent:
                    self._lacks(layer, absent[0], len(absent) - 1)
                    return None
                template = self.wanted.template(tensor, expert)
                boxes = tuple(
                    Box(read=reads[key], start=start, strides=strides, box=box)
                    for key, start, strides, box in parts
                )
                item = self._item(self._spelt(template, layer), tensor, boxes, sizes)
                if item is None:
                    return None
                found[template] = item
        return found

    def _sizes(self, reads: Mapping[Key, Read]) -> Sizes | None:
        shapes = {key: read.spec.shape for key, read in reads.items()}
        given = given_sizes(self.own.form, shapes, self.view.checkpoint.config)
        if not self.own.form.heads:
            config = self.donor.checkpoint.config
            given = given_sizes(self.wanted.form, self.wanted.shapes, config)
        if given is None:
            return None
        if self.own.experts:
            given["E"] = self.own.experts
        sizes = solve(self.own.form, shapes, given)
        return sizes if sizes is not None and all(sizes.values()) else None

    def _item(
        self, name: str, tensor: Tensor, boxes: tuple[Box, ...], sizes: Sizes
    ) -> Assembled | None:
        dtypes = list(dict.fromkeys(box.read.spec.dtype for box in boxes))
        if len(dtypes) > 1 or BITS[dtypes[0]] % 8:
            self._fault(f"{name} would be made of {' and '.join(dtypes)}")
            return None
        shape, view = shape_of(tensor, sizes), view_of(tensor, sizes)
        covered = sum(math.prod(end - first for first, end in box.box) for box in boxes)
        assert covered == math.prod(shape), f"{name} is not covered by its parts"
        spec = TensorSpec(dtypes[0], shape)
        return Assembled(model=self.view.number, name=name, view=view, boxes=boxes, spec=spec)

    def _lacks(self, layer: int | None, key: Key, more: int) -> None:
        name = self._spelt(self.own.template(*key), layer)
        lacking = f"{name} and {more} more are" if more else f"{name} is"
        self._fault(f"{lacking} missing, so the checkpoint is incomplete")

    def _spelt(self, template: str, layer: int | None) -> str:
        prefix = template.partition("{}")[0].removesuffix(".")
        return spell(template, self.view.stacks.get(prefix), layer)

    def _words(self) -> str:
        own, wanted = (next(iter(each.templates.values())) for each in (self.own, self.wanted))
        own, wanted = (each.replace("{}", "*", 1) for each in (own, wanted))
        words = f"{self.view.ref} has {self.own.form.words} ({own})"
        return f"{words}, {self.donor.ref} {self.wanted.form.words} ({wanted})"

    def _fault(self, message: str) -> None:
        path = self.notes.recipe.first_path(self.view.ref)
        self.notes.fault(f"{self._words()}: {message}", path)


def _few(reads: Mapping[Key, Read]) -> Iterator[Read]:
    """One tensor of each kind."""
    told = set()
    for (tensor, _), read in reads.items():
        if tensor not in told:
            told.add(tensor)
            yield read
