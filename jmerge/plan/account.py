"""The account of inputs: every tensor of every model is read by a step or has a reason not to be."""

from __future__ import annotations

from collections.abc import Iterator

from jmerge.plan.heads import Heads
from jmerge.plan.steps import Unused
from jmerge.plan.views import View
from jmerge.recipe.recipe import Recipe


def account(view: View, recipe: Recipe, heads: Heads) -> Iterator[Unused | str]:
    """Each tensor of a model that no step reads: an `Unused` with the reason, or its bare name when there is none."""
    sources = [s for _, out in recipe.slices() for s in out.sources if s.ref == view.ref]
    modules = {module.name for module in recipe.modules}
    ranged = bool(sources) and all(source.layers for source in sources)
    several = any(len(module.slices) > 1 for module in recipe.modules)
    for name, role in view.layout.roles.items():
        if name in view.used:
            continue
        if not sources:
            reason = "the model gives only names, config and files"
        elif None not in modules and role.module not in modules:
            reason = f"module '{role.module}' is not in the recipe"
        elif role.buffer:
            reason = "a buffer: taken from another model"
        elif role.layer is not None and ranged:
            reason = f"layer {role.layer} is in no layer_range"
        elif heads.tied_away(view, name):
            reason = "tied away: equal to the embedding, and the donor stores no head"
        elif role.layer is None and several:
            reason = f"the model is no source of the {role.part} slice"
        else:
            yield name
            continue
        yield Unused(model=view.number, name=name, reason=reason)
