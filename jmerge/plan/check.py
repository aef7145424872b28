"""Does the recipe suit its method? Models, base, layers and parameters: what needs no checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jmerge.arch.fields import KNOWN as KNOWN_FIELDS
from jmerge.arch.fields import REFUSABLE, TOKEN_ID
from jmerge.errors import InvalidValueError
from jmerge.methods.spec import REGISTRY, Method, Parameter, Required, unknown_method
from jmerge.methods.wrap import can_wrap
from jmerge.names import did_you_mean, nearest
from jmerge.plan.problems import PlanProblem, error, warning
from jmerge.recipe.recipe import OutSlice, Parameters, Recipe, Source
from jmerge.recipe.refs import UNKNOWN, ModelRef
from jmerge.recipe.settings import Setting, convert
from jmerge.recipe.yamltree import Path, show_path

# Parameters of MergeKit's methods: known, so without effect rather than wrong where a method does not take them.
KNOWN = tuple(
    "weight density gamma epsilon scale t normalize rescale lambda int8_mask nuslerp_row_wise nuslerp_flatten "
    "filter_wise max_iter tol normalize_weights eps r alpha select_topk".split()
)


class Checked(NamedTuple):
    """What a recipe shows by itself."""

    problems: list[PlanProblem]
    sound: bool  # planning can continue, to find what else is wrong: no more than numbers are


def check_recipe(recipe: Recipe) -> Checked:
    """What the method alone shows to be wrong with a recipe, or to have no effect."""
    problems = [warning("JM019", "has no effect", path) for path in recipe.notes]
    problems += [*_adapters(recipe), *_map_problems(recipe), *_otherwise(recipe)]
    problems += _allowed_conflicts(recipe)
    method = REGISTRY.get(recipe.method)
    if not recipe.method:
        return Checked(problems, False)  # the parser says so
    if method is None:
        problems.append(error("JM201", unknown_method(recipe.method), ("merge_method",)))
        return Checked(problems, False)
    problems += _wrapping(recipe, method)
    for _, out_slice in recipe.slices():
        if all(source.ref != UNKNOWN for source in out_slice.sources):
            problems += [*_base_problems(recipe, method, out_slice), *_source_problems(out_slice)]
    sound = not any(problem.is_error for problem in problems)
    return Checked([*problems, *parameter_problems(recipe, method)], sound)


def _adapters(recipe: Recipe) -> Iterator[PlanProblem]:
    fill = recipe.tokenizer.token_models() if recipe.tokenizer else ()
    for ref in dict.fromkeys((*recipe.models(), *fill)):
        if ref.lora is not None:
            message = f"'{ref}': adapters cannot be applied yet; merge '{ref.lora}' into it first"
            yield error("JM117", message, recipe.first_path(ref))


def _map_problems(recipe: Recipe) -> Iterator[PlanProblem]:
    """A model has one map wherever it is listed, and the donor, whose names the output has, none."""
    donor = recipe.models()[0]
    for _, out_slice in recipe.slices():
        for source in out_slice.sources:
            path = (*source.path, "map")
            if not source.prefixes:
                continue
            if source.ref == donor:
                message = f"the output has the names of {donor}; write the map of the other models"
                yield error("JM217", f"{message}, from their names to its", path)
            elif source.prefixes != recipe.prefixes(source.ref):
                message = f"'{source.ref}' has another map elsewhere in the recipe"
                yield error("JM217", message, path)
            for old, new in source.prefixes.items():
                stars = [prefix.split(".").count("*") for prefix in (old, new)]
                if stars not in ([0, 0], [1, 1]):
                    message = "expected one '*', the number of the layer, on both sides or on none"
                    yield error("JM217", f"{message}, found '{old}' and '{new}'", (*path, old))


def _otherwise(recipe: Recipe) -> Iterator[PlanProblem]:
    """Whether there is a base where the recipe wants its tensors, a source where slices have sources of their own."""
    partial = recipe.only or recipe.excluded or recipe.otherwise
    if recipe.otherwise == "base" and any(out.base is None for _, out in recipe.slices()):
        message = "there is no base_model; add one, or write 'otherwise: first'"
        yield error("JM220", message, ("otherwise",))
    elif partial and recipe.otherwise in (None, "base"):
        for _, out_slice in recipe.slices():
            refs = [source.ref for source in out_slice.sources]
            if out_slice.base is not None and out_slice.base not in refs:
                message = f"tensors that are not merged would come from '{out_slice.base}', which"
                message += " is not a source of this slice; list it, or write 'otherwise: first'"
                yield error("JM220", message, out_slice.sources_path)


def _allowed_conflicts(recipe: Recipe) -> Iterator[PlanProblem]:
    """The fields that `allow_conflicts` names are those that a difference in is refused."""
    for i, name in enumerate(recipe.allow_conflicts):
        path = allowed_path(recipe, i)
        if name not in KNOWN_FIELDS and not TOKEN_ID.fullmatch(name):
            best = nearest(name, KNOWN_FIELDS)
            fields = dict.fromkeys(field.name for field in REFUSABLE.values())
            hint = f"; did you mean '{best}'?" if best else did_you_mean(name, fields, show=99)
            yield error("JM219", f"'{name}' is not a field that is compared{hint}", path)
        elif name not in REFUSABLE:
            message = f"has no effect: models may differ in '{name}' anyway"
            yield warning("JM019", message, path)


def allowed_path(recipe: Recipe, number: int) -> Path:
    """Where a field that `allow_conflicts` names is in the recipe."""
    listed = isinstance(recipe.document.value.get("allow_conflicts"), list)
    return ("allow_conflicts", number) if listed else ("allow_conflicts",)


def _wrapping(recipe: Recipe, method: Method) -> Iterator[PlanProblem]:
    if recipe.wrapped_method == recipe.method or can_wrap(method):
        return
    usable = [name for name, other in sorted(REGISTRY.items()) if can_wrap(other)]
    message = f"'{method.name}' does not merge changes from a base"
    if method.per_model_output:
        message = f"'{method.name}' makes several checkpoints"
    message += f", so it cannot be wrapped; those that do: {', '.join(usable)}"
    yield error("JM204", message, ("wrap",))


def _base_problems(recipe: Recipe, method: Method, out_slice: OutSlice) -> Iterator[PlanProblem]:
    """The base is there when it is needed, and there are as many models as the method merges."""
    path = out_slice.sources_path
    base = base_position(method, out_slice)
    if method.base == "needed" and out_slice.base is None:
        if recipe.document.has(("base_model",)):
            return  # what it says is wrong, which the parser says
        message = f"'{method.name}' needs a base_model; add 'base_model: PATH'"
        yield error("JM202", message, ())
        return
    if method.base != "input" and out_slice.base is not None and base is None:
        message = f"the base model '{out_slice.base}' is not among the sources of this slice"
        yield error("JM202", f"{message}; list it there", path)
        return
    count = len(out_slice.sources) - (base is not None)
    low, high = method.counts
    if count < low or (high is not None and count > high):
        message = f"'{method.name}' merges {method.counts_text()}; found {count}"
        if method.base == "input" and any(not source.listed for source in out_slice.sources):
            message += f", counting base_model '{out_slice.base}'"
        yield error("JM203", message, path)


def _source_problems(out_slice: OutSlice) -> Iterator[PlanProblem]:
    """Sources are listed once, and their layer ranges are ranges of one length."""
    seen: dict[tuple[ModelRef, tuple[int, int] | None], Source] = {}
    for source in out_slice.sources:
        first = seen.setdefault((source.ref, source.layers), source)
        if first is not source:
            message = f"'{source.ref}' is listed here and at {show_path(first.path)}"
            message += "; it takes part as often as it is listed"
            yield warning("JM205", message, source.path)
        if source.layers is not None and not 0 <= source.layers[0] < source.layers[1]:
            message = f"expected 0 <= first < end, found {list(source.layers)}"
            yield error("JM206", message, (*source.path, "layer_range"))
    ranges = [source.layers for source in out_slice.sources if source.layers]
    if len({end - start for start, end in ranges}) > 1:
        found = ", ".join(str(list(layers)) for layers in ranges)
        message = f"all sources of a slice need equally many layers, found {found}"
        yield error("JM206", message, out_slice.sources_path)


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


def parameter_problems(recipe: Recipe, method: Method) -> Iterator[PlanProblem]:
    """Parameters that the method does not have, values that are out of their range or none, and what has no
    effect."""
    for scope in scopes_of(recipe, method):
        for name, setting in scope.parameters.items():
            path = (*scope.path, "parameters", name)
            declared = method.settable.get(name)
            if declared is None:
                yield _not_taken(method, name, path)
            elif scope.of_model and not declared.per_model:
                owner = "slice" if "slices" in scope.path else "recipe"
                message = f"has no effect here: '{name}' is one number for all models"
                yield warning("JM019", f"{message}; move it to 'parameters:' of the {owner}", path)
            elif scope.of_base:
                yield warning("JM019", "has no effect on the base model", path)
            else:
                for code, message in _wrong_values(setting, declared):
                    yield error(code, message, path)
                if name == "density" and all(case.value == 0 for case in setting.cases):
                    whose = "of this model" if scope.of_model else "of any model"
                    message = (
                        f"0 keeps no change {whose}; write 1 to keep all, or leave the model out"
                    )
                    yield warning("JM210", message, path)


def _wrong_values(setting: Setting, declared: Parameter) -> Iterator[tuple[str, str]]:
    """Code and message of what is wrong with the values of a setting. Those between the values of a gradient are right when these are."""
    for case in setting.cases:
        gradient = isinstance(case.value, tuple)
        for value in case.value if isinstance(case.value, tuple) else (case.value,):
            kind = "float" if gradient and declared.kind == "int" else declared.kind
            try:
                problem = declared.refusal(convert(value, kind))
                if problem is not None:
                    yield "JM208", problem
            except InvalidValueError as found:
                yield found.code, str(found)


def missing_parameters(recipe: Recipe) -> Iterator[PlanProblem]:
    """The parameters that the method needs and that stand nowhere; for when planning does not come to see which
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
                    where = scopes[0] if declared.per_model else ()
                    yield error("JM209", missing_text(method, name), where)


def is_misspelt(method: Method, name: str, scopes: Sequence[Parameters]) -> bool:
    """Whether one of the scopes has an unknown name that is likely meant to be this parameter; another check reports it."""
    known = _known(method)
    wrong = {key for parameters in scopes for key in parameters}.difference(known)
    return any(nearest(key, known) == name for key in wrong)


def _seems_there(recipe: Recipe, method: Method, name: str, path: Path) -> bool:
    """Whether the map at `path` has a parameter, or an unknown name that may be meant for it."""
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


def missing_text(method: Method, name: str, tensors: str = "") -> str:
    """What to say of a parameter that the method needs, for some tensors, and that is not there."""
    where = "parameters here, or of the recipe"
    if not method.parameters[name].per_model:
        where = "parameters of the recipe"
    return f"'{method.name}' needs '{name}'{tensors and f' for {tensors}'}; set it under {where}"


def scopes_of(recipe: Recipe, method: Method) -> Iterator[Scope]:
    """Every `parameters` map of a recipe."""
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


def _not_taken(method: Method, name: str, path: Path) -> PlanProblem:
    known = _known(method)
    if name in known:
        return warning("JM019", f"has no effect with '{method.name}'", path)
    best = nearest(name, known)
    hint = f"; did you mean '{best}'?" if best else did_you_mean(name, method.settable)
    return error("JM207", f"not a parameter of '{method.name}'{hint}", path)
