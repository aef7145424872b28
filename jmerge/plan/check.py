"""Does the recipe suit its method? Names of parameters, numbers of models, the base: what needs no checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from jmerge.methods.spec import REGISTRY, Method
from jmerge.methods.wrap import can_wrap
from jmerge.names import did_you_mean, nearest
from jmerge.plan.conflicts import check_allowed
from jmerge.plan.coverage import check_otherwise
from jmerge.plan.notes import Notes
from jmerge.plan.rename import check_once
from jmerge.recipe.recipe import OutSlice, Parameters, Recipe, Source
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import Path, show_path

# Parameters of MergeKit's methods: known, so without effect rather than wrong where a method does not take them.
KNOWN = tuple(
    "weight density gamma epsilon scale t normalize rescale lambda int8_mask nuslerp_row_wise nuslerp_flatten "
    "filter_wise max_iter tol normalize_weights eps r alpha select_topk".split()
)


class Scope(NamedTuple):
    """A `parameters` map of a recipe."""

    parameters: Parameters
    path: Path  # of what holds it
    of_model: bool  # it belongs to one source
    of_base: bool = False  # which is the base


def check_recipe(recipe: Recipe, notes: Notes) -> None:
    """Note the faults of a recipe that its method alone shows, and what has no effect."""
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
    if method is None:
        hint = did_you_mean(recipe.method, sorted(REGISTRY), show=30)
        notes.fault(f"'{recipe.method}' is not a merge method{hint}", ("merge_method",))
        return
    if recipe.wrapped_method != recipe.method and not can_wrap(method):
        usable = [name for name, other in sorted(REGISTRY.items()) if can_wrap(other)]
        message = f"'{method.name}' does not merge changes from a base"
        if method.per_model_output:
            message = f"'{method.name}' makes several checkpoints"
        message += ", so it cannot be wrapped"
        notes.fault(f"{message}; those that do: {', '.join(usable)}", ("wrap",))
    for scope in _scopes(recipe, method):
        _check_names(method, scope, notes)
    for _, out_slice in recipe.slices():
        _check_base(method, out_slice, notes)
        _check_sources(out_slice, notes)


def base_position(method: Method, out_slice: OutSlice) -> int | None:
    """Which source of a slice is the base for `method`; None when there is none or it is an ordinary input."""
    if method.base == "input" or out_slice.base is None:
        return None
    refs = [source.ref for source in out_slice.sources]
    return refs.index(out_slice.base) if out_slice.base in refs else None


def _scopes(recipe: Recipe, method: Method) -> Iterator[Scope]:
    yield Scope(recipe.parameters, (), False)
    for module in recipe.modules:
        if module.path:
            yield Scope(module.parameters, module.path, False)
        for out_slice in module.slices:
            yield Scope(out_slice.parameters, out_slice.path, False)
            base = base_position(method, out_slice)
            for i, source in enumerate(out_slice.sources):
                yield Scope(source.parameters, source.path, True, i == base)


def _check_names(method: Method, scope: Scope, notes: Notes) -> None:
    known = [*KNOWN, *(name for other in REGISTRY.values() for name in other.settable)]
    for name in scope.parameters:
        path = (*scope.path, "parameters", name)
        declared = method.parameters.get(name)
        if declared is not None and not declared.planned:
            if scope.of_model and not declared.per_model:
                owner = "slice" if "slices" in scope.path else "recipe"
                message = f"has no effect here: '{name}' is one number for all models"
                notes.warn(f"{message}; move it to 'parameters:' of the {owner}", path)
            elif scope.of_base:
                notes.warn("has no effect on the base model", path)
        elif name in method.no_effect or name in known:
            notes.warn(f"has no effect with '{method.name}'", path)
        else:
            best = nearest(name, [*method.settable, *known])
            hint = f"; did you mean '{best}'?" if best else did_you_mean(name, method.settable)
            notes.fault(f"not a parameter of '{method.name}'{hint}", path)


def _check_base(method: Method, out_slice: OutSlice, notes: Notes) -> None:
    """The base is there when it is needed, and there are as many models as the method merges."""
    path = out_slice.sources_path
    base = base_position(method, out_slice)
    if method.base == "needed" and out_slice.base is None:
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
