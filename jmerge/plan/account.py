"""The account of inputs: every tensor of every model is read by a step or has a reason not to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from jmerge.arch.infer import Role
from jmerge.plan.heads import Heads
from jmerge.plan.steps import Unused
from jmerge.plan.views import View
from jmerge.recipe.recipe import Module, Recipe


def account(
    view: View,
    recipe: Recipe,
    modules: Mapping[str, Module],
    heads: Heads,
    left: Mapping[tuple[int, str], str],
) -> Iterator[Unused | str]:
    """Each tensor of a model that no step reads: an `Unused` with the reason, or its bare name when there is none.

    modules: of the output, with what the recipe says of them.
    left: by number of the model and name, why tensors are not merged.
    """
    for name, role in view.layout.roles.items():
        if name not in view.used:
            reason = left.get((view.number, name)) or _reason(
                view, name, role, recipe, modules, heads
            )
            yield Unused(model=view.number, name=name, reason=reason) if reason else name


def _reason(
    view: View,
    name: str,
    role: Role,
    recipe: Recipe,
    modules: Mapping[str, Module],
    heads: Heads,
) -> str | None:
    """Why no step reads the tensor; None when nothing explains it."""
    everywhere = [s for _, out in recipe.slices() for s in out.sources if s.ref == view.ref]
    called = view.modules[name]
    module = modules.get(called)
    slices = module.slices if module else ()
    sources = [s for out_slice in slices for s in out_slice.sources if s.ref == view.ref]
    if not everywhere:
        return "the model gives only names, config and files"
    if not slices:
        return f"module '{called}' is not in the recipe"
    if not sources:
        return f"the model is no source of module '{called}'"
    if role.buffer:
        return "a buffer: taken from another model"
    if role.layer is not None and all(source.layers for source in sources):
        return f"layer {role.layer} is in no layer_range"
    if heads.tied_away(view, name):
        return "tied away: equal to the embedding, and the donor stores no head"
    if heads.all_tied and name in view.layout.heads:
        return "tied: equal to the embedding, which is merged for both"
    if role.layer is None and len(slices) > 1:
        return f"the model is no source of the {role.part} slice"
    return None
