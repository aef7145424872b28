"""How models store their tensors: what cannot be merged as it is stored, and what is read in the donor's layout.

Models may have experts packed or one by one, and projections fused or apart. They may be quantised, or one process's part
of a model in training.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jmerge.arch.infer import FIRST, LAST, Role
from jmerge.arch.storage import (
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
from jmerge.arch.storage_table import Tensor
from jmerge.dtypes import BITS, TensorSpec
from jmerge.plan.inputs import Assembled, Box, Read
from jmerge.plan.pairing import Template, View
from jmerge.plan.problems import PlanProblem, error, warning
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef

TOOLS = (
    "it is one process's part of a sharded training state; put the parts together with DeepSpeed's "
    "'python zero_to_fp32.py CHECKPOINT OUT --safe_serialization' (ZeRO-3) or 'accelerate "
    "merge-weights' (FSDP), and merge what that writes"
)
# What FSDP calls the part of a module's weights that a process holds.
FLAT = re.compile(r"(^|\.)_?flat_param(_\d+)?$")


class Converted(NamedTuple):
    """The models with the storage layouts of the donor."""

    views: dict[ModelRef, View]
    templates: dict[str, Template]  # that remain
    problems: list[PlanProblem]  # a conversion is a warning; one that cannot be is an error


def convert_views(
    views: Mapping[ModelRef, View], templates: Mapping[str, Template], recipe: Recipe
) -> Converted:
    """The views with what they store in another layout than the donor in its layout.

    Modules that the donor does not have take the layout of the first model that does.
    """
    listed = list(views.values())
    made = dict(templates)
    problems: list[PlanProblem] = []
    known: set[str] = set()  # what models before the one that is looked up have
    for number, first in enumerate(views):
        donor = next(view for view in listed if view.ref == first)
        wanted = {name: shape for name, shape in _shapes(donor).items() if name not in known}
        for at in range(number + 1, len(listed)):
            view = listed[at]
            path = recipe.first_path(view.ref)
            own = {name: shape for name, shape in _shapes(view).items() if name not in known}
            configs = view.checkpoint.config, donor.checkpoint.config
            for found in find_pairs(own, configs[0], wanted, configs[1]):
                if isinstance(found, Refused):
                    message = f"{found.own} of {view.ref} is stored as {found.donor} in {donor.ref}"
                    problems.append(error("JM218", f"{message}: {found.why}", path))
                    continue
                words = _words(view, donor, found)
                if view.quantised.reason:
                    if takes_over(recipe):  # other recipes are refused
                        message = f"{words}: quantised weights cannot be brought into that form"
                        problems.append(error("JM218", message, path))
                    continue
                try:
                    items = _Conversion(view, donor, found).items()
                except _ImpossibleError as reason:
                    problems.append(error("JM218", f"{words}: {reason}", path))
                    continue
                like = made[next(iter(found.donor.templates.values()))]
                for template, _ in items:
                    made.setdefault(template, dataclasses.replace(like, name=template))
                view = listed[at] = _with_items(view, found, items)
                count = f" ({len(items)} tensors)" if len(items) > 1 else ""
                message = f"{words}: what it has is brought into that form while it is read{count}"
                problems.append(warning("JM231", message, path))
        known |= wanted.keys()
    left = {template for view in listed for template, _ in view.names}
    kept = {name: template for name, template in made.items() if name in left}
    return Converted({view.ref: view for view in listed}, kept, problems)


def _shapes(view: View) -> dict[str, tuple[int, ...]]:
    """The shape of every template in the first layer that has it."""
    shapes: dict[str, tuple[int, ...]] = {}
    for (template, _), name in view.names.items():
        if template not in shapes:
            shapes[template] = view.spec(name).shape
    return shapes


def _words(view: View, donor: View, pair: Pair) -> str:
    """In which layouts two models store a module."""
    names = (next(iter(each.templates.values())) for each in (pair.own, pair.donor))
    own, wanted = (name.replace("{}", "*", 1) for name in names)
    words = f"{view.ref} has {pair.own.layout.words} ({own})"
    return f"{words}, {donor.ref} {pair.donor.layout.words} ({wanted})"


def _with_items(view: View, pair: Pair, items: Mapping[tuple[str, int | None], Assembled]) -> View:
    """The view with assembled tensors in place of those that they are made of."""
    used = {read.name for item in items.values() for read in item.reads}
    templates = set(pair.own.templates.values())
    names = {
        key: name for key, name in view.names.items() if name not in used or key[0] not in templates
    }
    names |= {key: item.name for key, item in items.items()}
    converted = {**view.converted, **{item.name: item for item in items.values()}}
    return dataclasses.replace(view, names=names, converted=converted)


class _ImpossibleError(ValueError):
    """Why a module cannot be converted."""


@dataclasses.dataclass(frozen=True)
class _Conversion:
    """One module of one model in the layout in which another model has it."""

    view: View
    donor: View
    pair: Pair

    def items(self) -> dict[tuple[str, int | None], Assembled]:
        """The tensors of the module in all layers; _ImpossibleError where they cannot be made."""
        own, wanted = self.pair.own, self.pair.donor
        if own.experts != wanted.experts:
            raise _ImpossibleError(f"it has {own.experts} experts and not {wanted.experts}")
        keys = {template: key for key, template in own.templates.items()}
        layers: dict[int | None, dict[Key, Read]] = {}
        for (template, layer), name in self.view.names.items():
            if template in keys:
                layers.setdefault(layer, {})[keys[template]] = self.view.read(name)
        return {
            (template, layer): item
            for layer, reads in layers.items()
            for template, item in self._layer(layer, reads)
        }

    def _layer(
        self, layer: int | None, reads: Mapping[Key, Read]
    ) -> Iterator[tuple[str, Assembled]]:
        """The tensors of one layer by template."""
        own, wanted = self.pair.own, self.pair.donor
        self._refuse_missing(layer, list(missing(own.layout, reads, own.experts)))
        sizes = self._sizes(reads)
        if sizes is None:
            shapes = ", ".join(f"{read.name} is {list(read.spec.shape)}" for read in _few(reads))
            raise _ImpossibleError(f"the shapes do not fit ({shapes})")
        for tensor in wanted.layout.tensors:
            if not tensor.needed and not own.layout.parts.issuperset(tensor.parts):
                continue
            for expert in range(own.experts) if tensor.numbered else (None,):
                parts = list(blocks(tensor, expert, own.layout, sizes))
                absent = [part.key for part in parts if part.key not in reads]
                if absent and not tensor.needed and len(absent) == len(parts):
                    continue
                self._refuse_missing(layer, absent)
                template = wanted.template(tensor, expert)
                boxes = tuple(
                    Box(read=reads[key], start=start, strides=strides, box=box)
                    for key, start, strides, box in parts
                )
                yield template, self._item(self.view.spelt(template, layer), tensor, boxes, sizes)

    def _sizes(self, reads: Mapping[Key, Read]) -> Sizes | None:
        own, wanted = self.pair.own, self.pair.donor
        shapes = {key: read.spec.shape for key, read in reads.items()}
        given = given_sizes(own.layout, shapes, self.view.checkpoint.config)
        if not own.layout.heads:
            given = given_sizes(wanted.layout, wanted.shapes, self.donor.checkpoint.config)
        if given is None:
            return None
        if own.experts:
            given["E"] = own.experts
        sizes = solve(own.layout, shapes, given)
        return sizes if sizes is not None and all(sizes.values()) else None

    def _item(self, name: str, tensor: Tensor, boxes: tuple[Box, ...], sizes: Sizes) -> Assembled:
        dtypes = list(dict.fromkeys(box.read.spec.dtype for box in boxes))
        if len(dtypes) > 1 or BITS[dtypes[0]] % 8:
            raise _ImpossibleError(f"{name} would be made of {' and '.join(dtypes)}")
        shape, view = shape_of(tensor, sizes), view_of(tensor, sizes)
        covered = sum(math.prod(end - first for first, end in box.box) for box in boxes)
        assert covered == math.prod(shape), f"{name} is not covered by its parts"
        spec = TensorSpec(dtypes[0], shape)
        return Assembled(model=self.view.number, name=name, view=view, boxes=boxes, spec=spec)

    def _refuse_missing(self, layer: int | None, absent: Sequence[Key]) -> None:
        if absent:
            name = self.view.spelt(self.pair.own.template(*absent[0]), layer)
            lacking = f"{name} and {len(absent) - 1} more are" if absent[1:] else f"{name} is"
            raise _ImpossibleError(f"{lacking} missing, so the checkpoint is incomplete")


def _few(reads: Mapping[Key, Read]) -> Iterator[Read]:
    """One tensor of each kind."""
    told = set()
    for (tensor, _), read in reads.items():
        if tensor not in told:
            told.add(tensor)
            yield read


def takes_over(recipe: Recipe) -> bool:
    """Whether a recipe only takes tensors over as they are, so that it is all the same what they stand for."""
    scopes = [recipe.parameters]
    for module, out_slice in recipe.slices():
        scopes += [module.parameters, out_slice.parameters]
        scopes += [source.parameters for source in out_slice.sources]
    return recipe.method == "passthrough" and not any("scale" in scope for scope in scopes)


def unusable(
    views: Sequence[View], guests: Sequence[View], recipe: Recipe
) -> Iterator[PlanProblem]:
    """Revisions of models that have none, parts of models, and quantised weights that are not copied as they are.

    guests: models that only fill tokens.
    """
    copies = takes_over(recipe)
    casts = bool(recipe.dtype or recipe.out_dtype)
    for view in (*views, *guests):
        ref = view.ref
        path = recipe.first_path(ref)
        if ref.revision is not None and view.checkpoint.source.revision is None:
            message = f"'{ref.path}' has no revision '{ref.revision}': only models of the Hub have"
            yield error("JM104", f"{message}; write the path alone", path)
        if reason := why_sharded(view, (other for other in views if other is not view)):
            yield error("JM119", f"'{ref}': {reason}", path)
        reason = view.quantised.reason
        if reason and not copies:
            hint = "merge the unquantised model (only plain passthrough can copy it)"
            yield error("JM222", f"'{ref}': {reason}; {hint}", path)
        elif reason and casts:
            hint = "remove dtype and out_dtype to copy its tensors as they are"
            yield error("JM222", f"'{ref}': {reason}; {hint}", path)
        elif view.quantised.left_over:
            kept = "" if view is not views[0] else "; the output's says nothing of it"
            message = f"'{ref}': {view.quantised.left_over_text()}{kept}"
            yield warning("JM231", message, path)
    if copies:
        yield from _unlike(views, recipe)


def _unlike(views: Sequence[View], recipe: Recipe) -> Iterator[PlanProblem]:
    """Copies of quantised layers beside others under one config.json."""
    sources = {source.ref for _, out_slice in recipe.slices() for source in out_slice.sources}
    donor, *rest = views
    for view in rest:
        if view.ref in sources and bool(view.quantised.reason) != bool(donor.quantised.reason):
            one, other = (view, donor) if view.quantised.reason else (donor, view)
            message = f"'{one.ref}' is quantised and '{other.ref}' is not"
            hint = "take all layers from models that are stored alike"
            message += f", and config.json can say one only; {hint}"
            yield error("JM222", message, recipe.first_path(view.ref))


def why_sharded(view: View, others: Iterable[View]) -> str | None:
    """Why a model is taken for such a part, and what to do; None where it is whole.

    A tensor of shape [0] stands for one that another process holds. A module without elements by design has mostly one
    of shape [0, n], and is merged like others. So [0] is a shard's where the same tensor has elements in another layer
    or model, where several kinds of weights are so, or where its name is that of an embedding, a norm or a head. Another
    one alone may be made so, and so are those of a layer that has matrices without elements: its width is none.
    """
    for name in view.names.values():
        if "flat_param" in name and FLAT.search(name):
            return f"{name} is many weights in one: {TOOLS}"
    roles = view.layout.roles  # none of what was brought into another layout
    without = [name for name in view.names.values() if 0 in view.spec(name).shape and name in roles]
    narrow = {_layer(roles[name]) for name in without if len(view.spec(name).shape) > 1}
    empty: dict[str, str] = {}  # template -> the first that is empty
    count = 0
    for (template, _), name in view.names.items():
        role = roles.get(name)
        if role is not None and (role.buffer or _layer(role) in narrow):
            continue
        if view.spec(name).shape == (0,):
            empty.setdefault(template, name)
            count += 1
    if not empty:
        return None
    whole = _with_elements((view, *others), empty)
    found = next((name for template, name in empty.items() if template in whole), None)
    weights = [name for name in empty.values() if name.endswith("weight")]
    known = [name for name in weights if any(map(_is_known, name.split(".")))]
    if found is None and not known and len(weights) < 2:
        return None
    total = len(view.checkpoint.index)
    name = found or weights[0]
    return f"{count} of its {total} tensors are empty ({name} is [0]): {TOOLS}"


def _layer(role: Role) -> tuple[str | None, int | None]:
    """The layer that a tensor is of; all around the layers count as one."""
    return role.stack, role.layer


def _is_known(word: str) -> bool:
    """Whether a part of a name is that of a module around the layers, or of a norm."""
    return bool(FIRST.fullmatch(word) or LAST.fullmatch(word) or "norm" in word)


def _with_elements(views: Iterable[View], templates: Collection[str]) -> set[str]:
    """Those of `templates` of which a model has a tensor that is not empty."""
    return {
        template
        for view in views
        for (template, _), name in view.names.items()
        if template in templates and view.spec(name).size
    }
