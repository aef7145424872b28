"""`map:` rules: the names of a model of another structure, such as a text model's, as those of the output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jmerge.arch.infer import Layout
from jmerge.names import did_you_mean
from jmerge.plan.notes import Notes
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef


def rename(template: str, prefixes: Mapping[str, str]) -> str:
    """The template with the longest prefix that fits replaced; as it is where none does."""
    fitting = [prefix for prefix in prefixes if template.startswith(prefix)]
    if not fitting:
        return template
    longest = max(fitting, key=len)
    return prefixes[longest] + template[len(longest) :]


def check_once(recipe: Recipe, notes: Notes) -> None:
    """A model has one map wherever it is listed, and the donor, whose names the output has, none."""
    donor = recipe.models()[0]
    for _, out_slice in recipe.slices():
        for source in out_slice.sources:
            path = (*source.path, "map")
            if not source.prefixes:
                continue
            if source.ref == donor:
                message = f"the output has the names of {donor}; write the map of the other models"
                notes.fault(f"{message}, from their names to its", path)
            elif source.prefixes != recipe.prefixes(source.ref):
                notes.fault(f"'{source.ref}' has another map elsewhere in the recipe", path)


def check_against(layouts: Mapping[ModelRef, Layout], recipe: Recipe, notes: Notes) -> None:
    """Every rule fits tensors of its model, and no two of its tensors get one name."""
    for ref, layout in layouts.items():
        prefixes = recipe.prefixes(ref)
        if not prefixes:
            continue
        path = next(
            (*source.path, "map")
            for _, out_slice in recipe.slices()
            for source in out_slice.sources
            if source.ref == ref and source.prefixes
        )
        templates = dict.fromkeys(role.template for role in layout.roles.values())
        for prefix in prefixes:
            if not any(template.startswith(prefix) for template in templates):
                hint = did_you_mean(prefix, beginnings(templates))
                notes.fault(f"no tensor of {ref} begins with '{prefix}'{hint}", (*path, prefix))
        names: dict[str, str] = {}
        for template in templates:
            name = rename(template, prefixes)
            if names.setdefault(name, template) != template:
                message = f"gives two tensors of {ref} one name: {names[name]} and {template}"
                notes.fault(f"{message} become {name}", path)
                break


def beginnings(templates: Iterable[str]) -> list[str]:
    """What rules may begin with: the words before layer numbers, dots included."""
    found: dict[str, None] = {}
    for template in templates:
        words = template.partition("{}")[0].split(".")
        for end in range(1, len(words)):
            found[".".join(words[:end]) + "."] = None
    return list(found)


def suggest(templates: Iterable[str], donor: Iterable[str]) -> str | None:
    """The rule that makes most layer templates of a model templates of the donor, as a recipe writes it."""
    known = [template for template in donor if "{}" in template]
    votes: dict[tuple[str, str], int] = {}
    for template in templates:
        if "{}" not in template:
            continue
        head, tail = template.split("{}", 1)
        for other in known:
            there, rest = other.split("{}", 1)
            if rest == tail and there != head:
                rule = _without_end(head, there)
                votes[rule] = votes.get(rule, 0) + 1
    if not votes:
        return None
    best = max(votes, key=lambda rule: votes[rule])
    old, new = (part or "''" for part in best)
    return f"map: {{{old}: {new}}}"


def _without_end(head: str, there: str) -> tuple[str, str]:
    """Two beginnings without the words that end both."""
    one, two = head.split("."), there.split(".")
    while len(one) > 1 and len(two) > 1 and one[-2:] == two[-2:]:
        one, two = [*one[:-2], ""], [*two[:-2], ""]
    return ".".join(one), ".".join(two)
