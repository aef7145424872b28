"""Do a recipe's parameters suit its method? Names, values and what is missing: what needs no checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jmerge.methods.spec import REGISTRY, Method, Parameter, Required
from jmerge.names import did_you_mean, nearest
from jmerge.plan.notes import Notes
from jmerge.recipe.recipe import OutSlice, Parameters, Recipe
from jmerge.recipe.refs import UNKNOWN
from jmerge.recipe.settings import Setting, convert
from jmerge.recipe.yamltree import Path

# Parameters of MergeKit's methods: known, so without effect rather than wrong where a method does not take them.
KNOWN = tuple(
    "weight density gamma epsilon scale t normalize rescale lambda int8_mask nuslerp_row_wise nuslerp_flatten "
    "filter_wise max_iter tol normalize_weights eps r alpha select_topk".split()
)


class Scope(NamedTuple):
    """A `parameters` map of a recipe."""

    parameters: Parameters
    path: Path  # of what holds it
    of_model: bool = False  # it belongs to one source
    of_base: bool = False  # which is the base


def base_position(method: Method, out_slice: OutSlice) -> int | None:
    """Which source of a slice is the base for `method`; None when there is none or it is an ordinary input."""
    if method.base == "input" or out_slice.base is None:
        return None
    refs = [source.ref for source in out_slice.sources]
    return refs.index(out_slice.base) if out_slice.base in refs else None


def check_parameters(recipe: Recipe, method: Method, notes: Notes) -> None:
    """Note parameters that the method does not have, values that are out of their range or none, and what has no
    effect."""
    for scope in _scopes(recipe, method):
        for name, setting in scope.parameters.items():
            path = (*scope.path, "parameters", name)
            declared = method.settable.get(name)
            if declared is None:
                _check_name(method, name, path, notes)
            elif scope.of_model and not declared.per_model:
                owner = "slice" if "slices" in scope.path else "recipe"
                message = f"has no effect here: '{name}' is one number for all models"
                notes.warn(f"{message}; move it to 'parameters:' of the {owner}", path)
            elif scope.of_base:
                notes.warn("has no effect on the base model", path)
            else:
                for problem in problems(setting, declared):
                    notes.fault(problem, path)
                if name == "density" and all(case.value == 0 for case in setting.cases):
                    whose = "of this model" if scope.of_model else "of any model"
                    message = (
                        f"0 keeps no change {whose}; write 1 to keep all, or leave the model out"
                    )
                    notes.warn(message, path)


def problems(setting: Setting, declared: Parameter) -> Iterator[str]:
    """What is wrong with the values of a setting. Those between the values of a gradient are right when these are."""
    for case in setting.cases:
        gradient = isinstance(case.value, tuple)
        for value in case.value if isinstance(case.value, tuple) else (case.value,):
            kind = "float" if gradient and declared.kind == "int" else declared.kind
            try:
                problem = declared.problem(convert(value, kind))
            except ValueError as error:
                problem = str(error)
            if problem is not None:
                yield problem


def note_missing(recipe: Recipe, notes: Notes) -> None:
    """Note the parameters that the method needs and that stand nowhere; for when planning does not come to see which
    tensors need them."""
    method = REGISTRY.get(recipe.method)
    if method is None:
        return
    for name, declared in method.settable.items():
        if not isinstance(declared.default, Required):
            continue
        for module, out_slice in recipe.slices():
            outer = [out_slice.path, module.path, ()]
            base = base_position(method, out_slice)
            owners = [source for i, source in enumerate(out_slice.sources) if i != base]
            for owner in owners if declared.per_model else owners[:1]:
                scopes = [owner.path, *outer] if declared.per_model else outer
                if owner.ref != UNKNOWN and not any(
                    _seems_there(recipe, method, name, path) for path in scopes
                ):
                    notes.fault(missing(method, name), scopes[0] if declared.per_model else ())


def is_misspelt(method: Method, name: str, scopes: Sequence[Parameters]) -> bool:
    """Whether one of the scopes has a name that is none and is likely meant to be this parameter, which is told."""
    known = _known(method)
    wrong = {key for parameters in scopes for key in parameters}.difference(known)
    return any(nearest(key, known) == name for key in wrong)


def _seems_there(recipe: Recipe, method: Method, name: str, path: Path) -> bool:
    """Whether the map at `path` has a parameter, or what is wrong and may be meant for it, which is told."""
    holder: Any = recipe.document.value
    for part in path:
        holder = holder[int(part)] if isinstance(holder, list) else (holder or {}).get(part)
    if not isinstance(holder, dict):
        return False
    parameters = holder.get("parameters") or {}
    if not isinstance(parameters, dict) or name in parameters:
        return True
    if any(nearest(key, [name]) for key in parameters if key not in _known(method)):
        return True
    return name in holder or any(
        nearest(key, [name, "parameters"]) for key in holder if key != "parameters"
    )


def missing(method: Method, name: str, tensors: str = "") -> str:
    """What to say of a parameter that the method needs, for some tensors, and that is not there."""
    where = "parameters here, or of the recipe"
    if not method.parameters[name].per_model:
        where = "parameters of the recipe"
    return f"'{method.name}' needs '{name}'{tensors and f' for {tensors}'}; set it under {where}"


def _scopes(recipe: Recipe, method: Method) -> Iterator[Scope]:
    yield Scope(recipe.parameters, ())
    for module in recipe.modules:
        if module.path:
            yield Scope(module.parameters, module.path)
        for out_slice in module.slices:
            yield Scope(out_slice.parameters, out_slice.path)
            base = base_position(method, out_slice)
            for i, source in enumerate(out_slice.sources):
                yield Scope(source.parameters, source.path, True, i == base)


def _known(method: Method) -> list[str]:
    """Names of parameters of any method, those of this one first."""
    others = (name for other in REGISTRY.values() for name in (*other.settable, *other.no_effect))
    return [*method.settable, *KNOWN, *others]


def _check_name(method: Method, name: str, path: Path, notes: Notes) -> None:
    known = _known(method)
    if name in known:
        notes.warn(f"has no effect with '{method.name}'", path)
        return
    best = nearest(name, known)
    hint = f"; did you mean '{best}'?" if best else did_you_mean(name, method.settable)
    notes.fault(f"not a parameter of '{method.name}'{hint}", path)
