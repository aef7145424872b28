"""Which tensor of one model is compared with which of the other, and what cannot be."""

from __future__ import annotations

from typing import NamedTuple

from jmerge.arch.infer import Layout, infer_layout
from jmerge.arch.parts import parts_of, row_of
from jmerge.arch.ties import is_tied_unstored
from jmerge.ckpt.copies import Entry
from jmerge.ckpt.open import Checkpoint
from jmerge.dtypes import NUMPY, TensorSpec
from jmerge.plan.pairing import build_views
from jmerge.plan.targets import Heads
from jmerge.recipe.refs import ModelRef

A, B = ModelRef("A"), ModelRef("B")


class Place(NamedTuple):
    """Where in a model a tensor is."""

    stack: str | None  # prefix of its stack; None outside layers
    layer: int | None  # from 0
    module: str
    part: str  # attention, mlp, ..., see `arch.parts`
    row: str  # its name in the layer; all experts have one
    template: str  # its name with `{}` for the layer's number
    buffer: bool  # computed, not trained


class Lone(NamedTuple):
    """A tensor that only one of the models has."""

    name: str
    spec: TensorSpec
    place: Place


class Pair(NamedTuple):
    """A tensor of A and the one of B that means the same."""

    name: str  # in A; a head that only B stores: in B
    name_a: str
    name_b: str
    a: Entry
    b: Entry
    place: Place

    @property
    def why_not(self) -> str:
        """Why their values cannot be compared; empty when they can."""
        if self.a.spec.shape != self.b.spec.shape:
            return f"shape {list(self.a.spec.shape)} in A, {list(self.b.spec.shape)} in B"
        packed = [s.dtype for s in (self.a.spec, self.b.spec) if not is_number(s.dtype)]
        return f"{packed[0]} is not compared as numbers" if packed else ""


class Pairs(NamedTuple):
    """All tensors of two models."""

    both: tuple[
        Pair, ...
    ]  # in the order of A's files, then of heads that one of them does not store
    only_a: tuple[Lone, ...]
    only_b: tuple[Lone, ...]


def is_number(dtype: str) -> bool:
    """Whether an element of this dtype is one real number that numpy can read."""
    return dtype in NUMPY and dtype != "C64"


def pair_up(a: Checkpoint, b: Checkpoint) -> Pairs:
    """The tensors of `a` and `b`, paired as the planner pairs those of models that it merges: by what they are and by
    layer, and a head that one of them stores with the embedding of the other where that is its head."""
    checkpoints = {A: a, B: b}
    layouts = {
        ref: infer_layout(
            {name: entry.spec for name, entry in each.index.items()}, each.config, each.folders
        )
        for ref, each in checkpoints.items()
    }
    places = {ref: _places(layout) for ref, layout in layouts.items()}
    tied = {ref: is_tied_unstored(checkpoints[ref].config, layouts[ref]) for ref in layouts}
    views, templates = build_views(checkpoints, layouts, tied, {A: {}, B: {}})
    mine, others = views[A], views[B]
    own = {name: key for key, name in mine.names.items()}

    def pair(name: str, name_a: str, name_b: str, side: ModelRef = A) -> Pair:
        return Pair(name, name_a, name_b, a.index[name_a], b.index[name_b], places[side][name])

    found = {name: others.names[key] for name, key in own.items() if key in others.names}
    both = [pair(name, name, other) for name, other in found.items()]
    paired_a, paired_b = set(found), set(found.values())
    heads = Heads(views)
    for name in mine.layout.heads:
        stand_in = heads.stand_in(others, templates[own[name][0]])
        if name not in paired_a and stand_in is not None:
            both.append(pair(name, name, stand_in))
            paired_a.add(name)
    for name, template in zip(others.layout.heads, others.heads, strict=True):
        stand_in = heads.stand_in(mine, templates[template])
        if name not in paired_b and stand_in is not None:
            both.append(pair(name, stand_in, name, B))
            paired_b.add(name)
    only_a, only_b = (
        tuple(
            Lone(name, entry.spec, places[side][name])
            for name, entry in each.index.items()
            if name not in paired
        )
        for side, each, paired in ((A, a, paired_a), (B, b, paired_b))
    )
    return Pairs(tuple(both), only_a, only_b)


def _places(layout: Layout) -> dict[str, Place]:
    parts = parts_of(layout)
    return {
        name: Place(
            role.stack,
            role.layer,
            role.module,
            parts[name],
            row_of(role),
            role.template,
            role.buffer,
        )
        for name, role in layout.roles.items()
    }
