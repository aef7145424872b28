"""Does the recipe suit its method? Names of parameters, numbers of models, the base: what needs no checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

from jmerge.errors import Fault
from jmerge.methods.spec import REGISTRY, Method
from jmerge.names import did_you_mean
from jmerge.recipe.recipe import OutSlice, Parameters, Recipe, Source
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import Path, show_path

# Parameters of MergeKit's methods: known, so without effect rather than wrong where a method does not take them.
KNOWN = (
    *(
        "weight",
        "density",
        "gamma",
        "epsilon",
        "scale",
        "t",
        "normalize",
        "rescale",
        "lambda",
        "int8_mask",
    ),
    *(
        "nuslerp_row_wise",
        "nuslerp_flatten",
        "filter_wise",
        "max_iter",
        "tol",
        "normalize_weights",
        "eps",
    ),
    *("r", "alpha", "select_topk"),
)


def check_recipe(recipe: Recipe) -> tuple[list[Fault], list[Fault]]:
    """Faults of a recipe that its method alone shows, and warnings about what has no effect."""
    faults, warnings = list(_unsupported(recipe)), []
    for path in recipe.notes:
        warnings.append(recipe.fault("has no effect", path))
    method = REGISTRY.get(recipe.method)
    if method is None:
        hint = did_you_mean(recipe.method, REGISTRY, show=30)
        faults.append(
            recipe.fault(f"'{recipe.method}' is not a merge method{hint}", ("merge_method",))
        )
        return faults, warnings
    for scope, path, per_model in _scopes(recipe):
        for name in scope:
            where = (*path, "parameters", name)
            if name in method.parameters:
                if not per_model and not scope[name].cases:
                    continue
                if per_model and not method.parameters[name].per_model:
                    message = f"has no effect here: '{name}' is one number for all models; move it to 'parameters:' of the "
                    warnings.append(
                        recipe.fault(message + ("slice" if "slices" in path else "recipe"), where)
                    )
            elif name in method.no_effect or name in KNOWN or _known_elsewhere(name):
                warnings.append(recipe.fault(f"has no effect with '{method.name}'", where))
            else:
                hint = did_you_mean(name, method.parameters)
                faults.append(recipe.fault(f"not a parameter of '{method.name}'{hint}", where))
    for _, out_slice in recipe.slices():
        found, noted = _check_sources(recipe, method, out_slice)
        faults += found
        warnings += noted
    return faults, warnings


def base_position(method: Method, out_slice: OutSlice) -> int | None:
    """Which source of a slice is the base for `method`; None when there is none or it is an ordinary input."""
    if method.base == "input" or out_slice.base is None:
        return None
    return next(
        (i for i, source in enumerate(out_slice.sources) if source.ref == out_slice.base), None
    )


def _scopes(recipe: Recipe) -> Iterator[tuple[Parameters, Path, bool]]:
    yield recipe.parameters, (), False
    for module in recipe.modules:
        if module.path:
            yield module.parameters, module.path, False
        for out_slice in module.slices:
            yield out_slice.parameters, out_slice.path, False
            for source in out_slice.sources:
                yield source.parameters, source.path, True


def _known_elsewhere(name: str) -> bool:
    return any(name in method.parameters for method in REGISTRY.values())


def _check_sources(
    recipe: Recipe, method: Method, out_slice: OutSlice
) -> tuple[list[Fault], list[Fault]]:
    faults, warnings = [], []
    where = out_slice.path if out_slice.sources[0].layers else (*out_slice.path, "models")
    base = base_position(method, out_slice)
    if method.base == "needed" and out_slice.base is None:
        faults.append(
            recipe.fault(f"'{method.name}' needs a base_model; add 'base_model: PATH'", ())
        )
    elif method.base != "input" and out_slice.base is not None and base is None:
        message = f"the base model '{out_slice.base}' is not among the sources of this slice; list it there"
        faults.append(recipe.fault(message, where))
    else:
        count = len(out_slice.sources) - (base is not None)
        low, high = method.counts
        if count < low or (high is not None and count > high):
            message = f"'{method.name}' merges {method.counts_text()}; found {count}"
            if any(not source.listed for source in out_slice.sources) and method.base == "input":
                message += f", counting base_model '{out_slice.base}'"
            faults.append(recipe.fault(message, where))
    seen: dict[tuple[ModelRef, object], Source] = {}
    for source in out_slice.sources:
        first = seen.setdefault((source.ref, source.layers), source)
        if first is not source:
            message = f"'{source.ref}' stands here and at {show_path(first.path)}; it takes part as often as it is listed"
            warnings.append(recipe.fault(message, source.path))
        if source.layers is not None:
            start, end = source.layers
            if not 0 <= start < end:
                message = f"expected 0 <= first < end, found [{start}, {end}]"
                faults.append(recipe.fault(message, (*source.path, "layer_range")))
    lengths = {source.layers[1] - source.layers[0] for source in out_slice.sources if source.layers}
    if len(lengths) > 1:
        ranges = ", ".join(
            str(list(source.layers)) for source in out_slice.sources if source.layers
        )
        faults.append(
            recipe.fault(f"all sources of a slice need equally many layers, found {ranges}", where)
        )
    return faults, warnings


def _unsupported(recipe: Recipe) -> Iterator[Fault]:
    for ref in recipe.models():
        if ref.lora is not None:
            yield recipe.fault(
                f"'{ref}': adapters cannot be applied yet; merge '{ref.lora}' into it first",
                recipe.first_path(ref),
            )
