"""What there is to know about the merge methods, in words, from their declarations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jmerge.methods.spec import BROKEN, REGISTRY, Method, Parameter, Required
from jmerge.methods.wrap import CONDITION_DOCS, LINES_PAPER, LINES_PARAMETERS, can_wrap
from jmerge.names import did_you_mean
from jmerge.recipe.settings import CONDITIONS

WRAP = "wrap"  # the key of recipes
WRAPPERS = {
    "condition": f"Scales each model's change before they are merged: {', '.join(CONDITIONS)}.",
    "lines": "Scales the merged change, more in later blocks, by alpha and beta (LiNeS).",
}
WRAPPED_RECIPE = """\
merge_method: task_arithmetic
base_model: models/base
models:
  - model: models/a
  - model: models/b
parameters:
  weight: 0.5
wrap:
  condition: equalize
  lines: {alpha: 0.5, beta: 0.5}
dtype: bfloat16
"""
AROUND = f"Around methods that merge changes from a base, the recipe key `{WRAP}` sets"
FOLDERS = "a folder for each model"


def methods_text() -> str:
    """A line for each method, then for what can be done around them."""
    width = max(map(len, [*REGISTRY, *WRAPPERS]))
    lines = [f"{name:<{width}}  {_gist(REGISTRY[name])}" for name in sorted(REGISTRY)]
    lines += ["", f"{AROUND}:", ""]
    lines += [f"{name:<{width}}  {does}" for name, does in WRAPPERS.items()]
    lines += ["", "jmerge methods NAME says more about a method,"]
    lines[-1] += f" jmerge methods {WRAP} about what goes around it."
    return "\n".join(lines)


def method_text(name: str) -> str:
    """All about one method, or about what can be done around them (`wrap`); ValueError when there is none so called."""
    if name not in REGISTRY:
        if name == WRAP:
            return wrap_text()
        if name in BROKEN:
            raise ValueError(BROKEN[name])
        hint = did_you_mean(name, [*sorted(REGISTRY), WRAP], show=40)
        raise ValueError(f"'{name}' is not a merge method{hint}")
    method = REGISTRY[name]
    lines = [f"{method.name}: {method.title}", "", method.summary, ""]
    lines += [f"  {method.formula}", "", f"Merges   {_inputs(method)}"]
    lines += [f"Makes    {FOLDERS}"] if method.per_model_output else []
    lines += [f"Use it   {method.when}"]
    lines += [f"Paper    {method.paper}"] if method.paper else []
    lines += ["", "Parameters"]
    width = max([10, *map(len, method.settable)])
    lines += [_parameter(key, declared, width) for key, declared in method.settable.items()]
    lines += [] if method.settable else ["  none"]
    if method.no_effect:
        lines.append(f"  accepted without effect: {', '.join(method.no_effect)}")
    return "\n".join([*lines, *_recipe_lines(minimal_recipe(method))])


def wrap_text() -> str:
    """All about what can be done around a method that merges changes from a base."""
    width = max(map(len, [*CONDITIONS, *LINES_PARAMETERS]))
    usable = [name for name, method in sorted(REGISTRY.items()) if can_wrap(method)]
    return "\n".join(
        [
            f"{WRAP}: conditioning and LiNeS",
            "",
            "Conditioning scales each model's change before they are merged, LiNeS scales the merged change by depth. "
            "Norms are those of whole models, so inputs are read once more for them.",
            "",
            "  base + (alpha + beta depth) merge_i(f_i (x_i - base)),   depth: 0 in the first block, 1 in the last",
            "",
            f"Wraps    {', '.join(usable)}",
            "Use it   Models that changed by very different amounts; merges that lost what the base could do.",
            "",
            "condition: what f_i is, by the norm n_i of all changes of a model (default: none)",
            f"  {'none':<{width}} 1",
            *(
                f"  {name:<{width}} {does} ({paper})"
                for name, (does, paper) in CONDITION_DOCS.items()
            ),
            "",
            f"lines: alpha and beta ({LINES_PAPER})",
            *(
                f"  {name.partition('.')[2]:<{width}} {declared.doc} (default: auto)"
                for name, declared in LINES_PARAMETERS.items()
                if not declared.planned
            ),
            *_recipe_lines(WRAPPED_RECIPE),
        ]
    )


def methods_markdown(examples: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """A table of jmerge's own methods, and what can be done around them, for the docs.

    examples: label and link of recipes that use a method, by its name.
    """
    lines = ["| method | what it does | use it for |", "|---|---|---|"]
    for name, method in sorted(REGISTRY.items()):
        if not method.function.__module__.startswith("jmerge."):
            continue  # of a package that happens to be installed
        title = f"[{method.title}]({method.paper})" if method.paper else method.title
        recipes = ", ".join(f"[{label}]({link})" for label, link in examples.get(name, ()))
        when = f"{method.when} Example: {recipes}." if recipes else method.when
        cells = (f"`{name}`: {title}", _gist(method), when)
        lines.append("| " + " | ".join(cell.replace("|", "&#124;") for cell in cells) + " |")
    lines += ["", f"{AROUND} (`jmerge methods {WRAP}` says more):", ""]
    lines += [f"- `{name}`: {does}" for name, does in WRAPPERS.items()]
    return "\n".join(lines) + "\n"


def minimal_recipe(
    method: Method,
    models: Sequence[str] = ("models/a", "models/b"),
    base: str = "models/base",
) -> str:
    """A short recipe that uses the method on as many of the models as it takes."""
    lines = [f"merge_method: {method.name}"]
    lines += [f"base_model: {base}"] if method.base == "needed" else []
    own = {key: p for key, p in method.settable.items() if p.per_model and _shown(p)}
    shared = {key: p for key, p in method.settable.items() if not p.per_model and _shown(p)}
    lines.append("models:")
    _, high = method.counts
    for name in models[:high]:
        lines.append(f"  - model: {name}")
        if own:
            lines.append("    parameters:")
            lines += [f"      {key}: {_example(declared):g}" for key, declared in own.items()]
    if shared:
        lines.append("parameters:")
        lines += [f"  {key}: {_example(declared):g}" for key, declared in shared.items()]
    return "\n".join([*lines, "dtype: bfloat16"]) + "\n"


def _shown(declared: Parameter) -> bool:
    return isinstance(declared.default, Required) or not declared.given or declared.high == 1.0


def _example(declared: Parameter) -> float:
    """A half, but where a share is small by default that."""
    default = declared.default
    return default if isinstance(default, float) and 0 < default < 0.5 else 0.5


def _recipe_lines(text: str) -> list[str]:
    return ["", "A recipe", "", *(f"  {line}" for line in text.splitlines())]


def _gist(method: Method) -> str:
    gist = method.summary.partition(". ")[0].rstrip(".") + "."
    return f"{gist} Makes {FOLDERS}." if method.per_model_output else gist


def _inputs(method: Method) -> str:
    base = {"needed": "; base_model is needed", "optional": "; base_model is optional", "input": ""}
    return method.counts_text() + base[method.base]


def _parameter(key: str, declared: Parameter, width: int) -> str:
    default = declared.default
    if isinstance(default, Required):
        shown = "required"
    elif default is None:
        shown = "default: unset"
    else:
        shown = f"default: {str(default).lower() if isinstance(default, bool) else f'{default:g}'}"
    bounds = f", {declared.range_text()}" if declared.range_text() else ""
    scope = "for each model" if declared.per_model else "one for all"
    return f"  {key:<{width}} {declared.doc} ({scope}, {shown}{bounds})"
