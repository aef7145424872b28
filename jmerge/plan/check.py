"""Does the recipe suit its method? Numbers of models, the base, layers: what needs no checkpoint."""

from __future__ import annotations

from jmerge.methods.spec import REGISTRY, Method, unknown_method
from jmerge.methods.wrap import can_wrap
from jmerge.plan.conflicts import check_allowed
from jmerge.plan.coverage import check_otherwise
from jmerge.plan.notes import Notes
from jmerge.plan.parameters import base_position, check_parameters
from jmerge.plan.rename import check_once
from jmerge.recipe.recipe import OutSlice, Recipe, Source
from jmerge.recipe.refs import UNKNOWN, ModelRef
from jmerge.recipe.yamltree import show_path


def check_recipe(recipe: Recipe, notes: Notes) -> bool:
    """Note the faults of a recipe that its method alone shows, and what has no effect.

    Returns:
      Whether planning can go on, to find what else is wrong: no more than numbers are.
    """
    before = len(notes.faults)
    for path in recipe.notes:
        notes.warn("has no effect", path)
    fill = recipe.tokenizer.token_models() if recipe.tokenizer else ()
    for ref in dict.fromkeys((*recipe.models(), *fill)):
        if ref.lora is not None:
            message = f"'{ref}': adapters cannot be applied yet; merge '{ref.lora}' into it first"
            notes.fault(message, recipe.first_path(ref))
    check_once(recipe, notes)
    check_otherwise(recipe, notes)
    check_allowed(recipe, notes)
    method = REGISTRY.get(recipe.method)
    if not recipe.method:
        return False  # which is told
    if method is None:
        notes.fault(unknown_method(recipe.method), ("merge_method",))
        return False
    if recipe.wrapped_method != recipe.method and not can_wrap(method):
        usable = [name for name, other in sorted(REGISTRY.items()) if can_wrap(other)]
        message = f"'{method.name}' does not merge changes from a base"
        if method.per_model_output:
            message = f"'{method.name}' makes several checkpoints"
        message += ", so it cannot be wrapped"
        notes.fault(f"{message}; those that do: {', '.join(usable)}", ("wrap",))
    for _, out_slice in recipe.slices():
        if all(source.ref != UNKNOWN for source in out_slice.sources):
            _check_base(method, out_slice, notes)
            _check_sources(out_slice, notes)
    sound = len(notes.faults) == before
    check_parameters(recipe, method, notes)
    return sound


def _check_base(method: Method, out_slice: OutSlice, notes: Notes) -> None:
    """The base is there when it is needed, and there are as many models as the method merges."""
    path = out_slice.sources_path
    base = base_position(method, out_slice)
    if method.base == "needed" and out_slice.base is None:
        if notes.recipe.document.has(("base_model",)):
            return  # what it says is wrong, which is told
        notes.fault(f"'{method.name}' needs a base_model; add 'base_model: PATH'", ())
        return
    if method.base != "input" and out_slice.base is not None and base is None:
        message = f"the base model '{out_slice.base}' is not among the sources of this slice"
        notes.fault(f"{message}; list it there", path)
        return
    count = len(out_slice.sources) - (base is not None)
    low, high = method.counts
    if count < low or (high is not None and count > high):
        message = f"'{method.name}' merges {method.counts_text()}; found {count}"
        if method.base == "input" and any(not source.listed for source in out_slice.sources):
            message += f", counting base_model '{out_slice.base}'"
        notes.fault(message, path)


def _check_sources(out_slice: OutSlice, notes: Notes) -> None:
    """Sources are listed once, and their layer ranges are ranges of one length."""
    seen: dict[tuple[ModelRef, tuple[int, int] | None], Source] = {}
    for source in out_slice.sources:
        first = seen.setdefault((source.ref, source.layers), source)
        if first is not source:
            message = f"'{source.ref}' stands here and at {show_path(first.path)}"
            notes.warn(f"{message}; it takes part as often as it is listed", source.path)
        if source.layers is not None and not 0 <= source.layers[0] < source.layers[1]:
            message = f"expected 0 <= first < end, found {list(source.layers)}"
            notes.fault(message, (*source.path, "layer_range"))
    ranges = [source.layers for source in out_slice.sources if source.layers]
    if len({end - start for start, end in ranges}) > 1:
        found = ", ".join(str(list(layers)) for layers in ranges)
        message = f"all sources of a slice need equally many layers, found {found}"
        notes.fault(message, out_slice.sources_path)
