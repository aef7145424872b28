"""Models that cannot be one merge: nothing of one is called like anything of the other, or their layers differ in size."""

from __future__ import annotations

from collections.abc import Mapping

from jmerge.plan.notes import Notes
from jmerge.plan.views import View
from jmerge.recipe.refs import ModelRef


def check_common(views: Mapping[ModelRef, View], notes: Notes) -> None:
    """Every source has tensors in common with the donor, and layers where both have some."""
    donor = next(iter(views.values()))
    known = _layered(donor)
    sources = {source.ref for _, out_slice in notes.recipe.slices() for source in out_slice.sources}
    for ref, view in views.items():
        own = _layered(view)
        if ref in sources and known and own and not known.keys() & own.keys():
            first, wanted = (next(iter(names)).replace("{}", "0", 1) for names in (own, known))
            message = f"no layer of {ref} is called like one of {donor.ref} ({first}, {wanted})"
            notes.fault(f"{message}; their structures differ", notes.recipe.first_path(ref))
        elif ref in sources and not view.names.keys() & donor.names.keys():
            first, wanted = (next(iter(each.names.values()), "nothing") for each in (view, donor))
            message = f"nothing of {ref} is called like anything of {donor.ref} ({first}, {wanted})"
            hint = "write a 'map' beside the model that gives its names as they are there"
            notes.fault(f"{message}; {hint}", notes.recipe.first_path(ref))


def first_difference(one: View, other: View, prefix: str) -> str | None:
    """The shapes of the first tensor of a stack's first layer that two models have in two shapes; None when none is."""
    for (template, layer), name in one.names.items():
        own = other.names.get((template, layer))
        if layer != 0 or own is None or not template.startswith(prefix):
            continue
        shape, wanted = (list(view.spec(each).shape) for view, each in ((one, name), (other, own)))
        if shape != wanted:
            return f"{name} is {shape} in {one.ref} and {wanted} in {other.ref}"
    return None


def _layered(view: View) -> dict[str, None]:
    return {template: None for template, layer in view.names if layer is not None}
