"""What there is to know about the merge methods, in words, from their declarations."""

from __future__ import annotations

from jmerge.methods.spec import REGISTRY, Method, Parameter, Required
from jmerge.names import did_you_mean


def methods_text() -> str:
    """A line for each method."""
    width = max(map(len, REGISTRY))
    lines = [
        f"{name:<{width}}  {_first_sentence(REGISTRY[name].summary)}" for name in sorted(REGISTRY)
    ]
    return "\n".join([*lines, "", "jmerge methods NAME says more about one."])


def method_text(name: str) -> str:
    """All about one method; ValueError when there is none of that name."""
    if name not in REGISTRY:
        hint = did_you_mean(name, sorted(REGISTRY), show=40)
        raise ValueError(f"'{name}' is not a merge method{hint}")
    method = REGISTRY[name]
    lines = [f"{method.name}: {method.title}", "", method.summary, ""]
    lines += [f"  {method.formula}", "", f"Merges   {_inputs(method)}", f"Use it   {method.when}"]
    lines += [f"Paper    {method.paper}"] if method.paper else []
    lines += ["", "Parameters"]
    width = max([10, *map(len, method.parameters)])
    lines += [_parameter(key, declared, width) for key, declared in method.parameters.items()]
    if method.no_effect:
        lines.append(f"  accepted without effect: {', '.join(method.no_effect)}")
    lines += ["", "A recipe", "", *(f"  {line}" for line in minimal_recipe(method).splitlines())]
    return "\n".join(lines)


def minimal_recipe(method: Method) -> str:
    """A short recipe that uses the method."""
    lines = [f"merge_method: {method.name}"]
    lines += ["base_model: models/base"] if method.base == "needed" else []
    own = {key: p for key, p in method.parameters.items() if p.per_model and _shown(p)}
    shared = {key: p for key, p in method.parameters.items() if not p.per_model and _shown(p)}
    lines.append("models:")
    _, high = method.counts
    for name in ("a", "b")[: high or 2]:
        lines.append(f"  - model: models/{name}")
        if own:
            lines.append("    parameters:")
            lines += [f"      {key}: {_example(declared)}" for key, declared in own.items()]
    if shared:
        lines.append("parameters:")
        lines += [f"  {key}: {_example(declared)}" for key, declared in shared.items()]
    return "\n".join([*lines, "dtype: bfloat16"]) + "\n"


def _shown(declared: Parameter) -> bool:
    return isinstance(declared.default, Required) or bool(declared.count) or declared.high == 1.0


def _example(declared: Parameter) -> float:
    return 0.5


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
    bounds = ""
    if declared.low is not None or declared.high is not None:
        low, high = declared.low, declared.high
        bounds = f", from {low:g} to {high:g}" if high is not None else f", at least {low:g}"
    scope = "for each model" if declared.per_model else "one for all"
    return f"  {key:<{width}} {declared.doc} ({scope}, {shown}{bounds})"


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".") + "."
