"""`map:` rules: the names of a model of another structure, such as a text model's, as those of the output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from jmerge.arch.infer import Layout
from jmerge.names import did_you_mean
from jmerge.plan.notes import Notes
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import Path


def rename(template: str, prefixes: Mapping[str, str]) -> str:
    """The template with the longest prefix that fits replaced; as it is where none does."""
    fitting = [prefix for prefix in prefixes if template.startswith(prefix)]
    if not fitting:
        return template
    longest = max(fitting, key=len)
    return prefixes[longest] + template[len(longest) :]


def prefixes_of(recipe: Recipe, ref: ModelRef) -> dict[str, str]:
    """The map of a model as templates are renamed by it: `*` is the layer's number."""
    return {_numbered(old): _numbered(new) for old, new in recipe.prefixes(ref).items()}


def starred(prefixes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The rules of a map as recipes write them."""
    for old, new in prefixes.items():
        yield old.replace("{}", "*", 1), new.replace("{}", "*", 1)


def _numbered(prefix: str) -> str:
    return ".".join("{}" if word == "*" else word for word in prefix.split("."))


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
            for old, new in source.prefixes.items():
                stars = [prefix.split(".").count("*") for prefix in (old, new)]
                if stars not in ([0, 0], [1, 1]):
                    message = "expected one '*', the number of the layer, on both sides or on none"
                    notes.fault(f"{message}, found '{old}' and '{new}'", (*path, old))


def map_path(ref: ModelRef, recipe: Recipe) -> Path:
    """Where the map of a model stands, or the model that has none."""
    path = recipe.first_path(ref)
    return (*path[:-1], "map") if recipe.prefixes(ref) else path


def check_against(layouts: Mapping[ModelRef, Layout], recipe: Recipe, notes: Notes) -> None:
    """Every rule fits tensors of its model, and no two of its tensors get one name."""
    for ref, layout in layouts.items():
        prefixes = prefixes_of(recipe, ref)
        if not prefixes:
            continue
        path = next(
            (*source.path, "map")
            for _, out_slice in recipe.slices()
            for source in out_slice.sources
            if source.ref == ref and source.prefixes
        )
        templates = dict.fromkeys(role.template for role in layout.roles.values())
        for prefix in recipe.prefixes(ref):
            begins = _numbered(prefix)
            if not any(each.startswith(begins) for each in (*templates, *layout.roles)):
                hint = did_you_mean(prefix, beginnings(templates))
                notes.fault(f"no tensor of {ref} begins with '{prefix}'{hint}", (*path, prefix))
        names: dict[tuple[str, int | None], str] = {}
        for role in layout.roles.values():
            name = rename(role.template, prefixes)
            other = names.setdefault((name, role.layer), role.template)
            if other != role.template:
                message = f"gives two tensors of {ref} one name: {other} and {role.template}"
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
