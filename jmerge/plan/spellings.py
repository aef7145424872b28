"""Two spellings of one tensor that nothing known pairs: refused, with the `map` that pairs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jmerge.arch.families import find_module
from jmerge.arch.guess import Known, guess_numbered, guess_pairs, guess_places
from jmerge.arch.infer import Layout
from jmerge.arch.match import stack_of
from jmerge.ckpt.open import Checkpoint
from jmerge.plan.pairing import (
    Template,
    View,
    build_views,
    general_names,
    map_path,
    one_spelling,
    prefixes_of,
    rename,
    starred,
)
from jmerge.plan.problems import PlanProblem, error, excepting, patterns_of, scalar
from jmerge.plan.storage import Converted, convert_views
from jmerge.plan.unmerged import Coverage
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef


class Spelling(NamedTuple):
    """What one model has under other names than the donor."""

    view: View
    pairs: Mapping[str, str]  # template, as known spellings have it -> the donor's
    numbered: Mapping[str, str]  # names of tensors of layers that one of the two does not number
    prefixes: Mapping[str, str]  # the whole map that pairs them


class Pairing(NamedTuple):
    """The models of a recipe through the donor's names."""

    views: dict[ModelRef, View]
    templates: dict[str, Template]
    problems: list[PlanProblem]  # of storage layouts
    spellings: list[
        PlanProblem
    ]  # names that nothing known pairs; views are as if their maps were there


def pair(
    checkpoints: Mapping[ModelRef, Checkpoint],
    layouts: Mapping[ModelRef, Layout],
    tied: Mapping[ModelRef, bool],
    recipe: Recipe,
    *,
    guess: bool,
) -> Pairing:
    """The models of a recipe, with names, storage layouts and maps as the donor has them.

    guess: look for names that may be those of one tensor; not where the recipe's maps are wrong.
    """

    def look(prefixes: Mapping[ModelRef, Mapping[str, str]]) -> Converted:
        views, templates = build_views(checkpoints, layouts, tied, prefixes)
        return convert_views(views, templates, recipe)

    prefixes: dict[ModelRef, Mapping[str, str]]
    prefixes = {ref: prefixes_of(recipe, ref) for ref in checkpoints}
    seen, problems = look(prefixes), []
    if guess and (found := other_spellings(seen.views, recipe)):
        donor = next(iter(seen.views.values()))
        problems = list(_spelling_problems(found, donor, recipe))
        seen = look(prefixes | {each.view.ref: each.prefixes for each in found})
    return Pairing(seen.views, seen.templates, seen.problems, problems)


def other_spellings(views: Mapping[ModelRef, View], recipe: Recipe) -> list[Spelling]:
    """The models with leftovers that match leftovers of the donor in ending and shape, and that a recipe does not
    leave out on both sides."""
    donor, *others = views.values()
    coverage = Coverage(recipe)

    def is_out(name: str) -> bool:
        return coverage.excluded(name) is not None

    known = {template for template, _ in donor.names}
    modules = {template: donor.modules[name] for (template, _), name in donor.names.items()}
    sources = _sources(recipe, donor.layout.modules)
    found = []
    for view in others:
        own = {template for template, _ in view.names}
        mine = _left(view, known)
        theirs = _left(donor, own)
        if not (mine and theirs):
            continue  # as for most models, which have thousands of names
        generals = general_names(view.layout, view.prefixes)
        both = {template: template for template in own & known}
        both |= {  # a stack of which some tensors are known is paired, under whatever name
            generals[name].template: template
            for (template, layer), name in view.names.items()
            if template in known and name in generals  # others are put together of several
            if ("{}" in generals[name].template) == ("{}" in template)
        }
        guessed = guess_pairs(mine, theirs, both)
        found_there = set(guessed.values())
        rest = (
            {name: each for name, each in mine.items() if name not in guessed},
            {there: each for there, each in theirs.items() if there not in found_there},
        )
        guessed |= guess_places(*rest, own, known)
        pairs = {
            name: there
            for name, there in guessed.items()
            if view.ref in sources.get(modules[there], ())
            and not (is_out(_first(view, name)) and is_out(_first(donor, there)))
        }
        numbered = {
            name: there
            for name, there in _numbered(view, donor, mine, theirs, pairs).items()
            if not (is_out(name) and is_out(there))
        }
        if pairs or numbered:
            rules = _rules(view, pairs, known)
            rules |= _rules_of_names(view, numbered, rules)
            found.append(Spelling(view, pairs, numbered, rules))
    return found


def _spelling_problems(
    spellings: Iterable[Spelling], donor: View, recipe: Recipe
) -> Iterator[PlanProblem]:
    """The errors: with the map alone where no layer of a model is called like one of the donor's, else with the line
    that leaves both out, too."""
    layers = {template: None for template, layer in donor.names if layer is not None}
    for view, pairs, numbered, prefixes in spellings:
        path = map_path(view.ref, recipe)
        rules = ", ".join(f"{scalar(old)}: {scalar(new)}" for old, new in starred(prefixes))
        rule = f"write 'map: {{{rules}}}' beside the model"
        own = {template: None for template, layer in view.names if layer is not None}
        if layers and own and not layers.keys() & own.keys():
            first, wanted = (next(iter(each)).replace("{}", "0", 1) for each in (own, layers))
            message = (
                f"no layer of {view.ref} is called like one of {donor.ref} ({first}, {wanted})"
            )
            yield error("JM216", f"{message}; {rule}", path)
            continue
        both = {_first(view, name): _first(donor, there) for name, there in pairs.items()}
        both |= numbered
        name, there = next(iter(both.items()))
        message = f"{name} of {view.ref} and {there} of {donor.ref}"
        more = f" (and {len(both) - 1} more pairs)" if len(both) > 1 else ""
        alike = "end alike" if name.split(".")[-1] == there.split(".")[-1] else "stand in one place"
        message += f" {alike} and have one shape{more}, and neither model has the other's"
        out = [view.spelt(*key) for key in view.names if key[0] in pairs]
        out += [donor.spelt(*key) for key in donor.names if key[0] in set(pairs.values())]
        out += [*numbered, *numbered.values()]
        rest = {each.spelt(*key) for each in (view, donor) for key in each.names} - {*out}
        line = excepting(patterns_of(out, rest))
        hint = f"if they are the same tensors, {rule}; if not, leave both out with {line}"
        yield error("JM216", f"{message}: {hint}", path)


def _sources(recipe: Recipe, modules: Sequence[str]) -> dict[str, set[ModelRef]]:
    """The models of which a recipe makes each of the donor's modules."""
    found: dict[str, set[ModelRef]] = {}
    for module in recipe.modules:
        meant = modules if module.name is None else [find_module(module.name, modules)]
        refs = {source.ref for out_slice in module.slices for source in out_slice.sources}
        found |= {name: refs for name in meant if name is not None}
    return found


def _left(view: View, known: set[str]) -> dict[str, Known]:
    """Templates of a model that are none of `known`; neither buffers nor what lies in folders of its own."""
    layout, folders = view.layout, tuple(f"{each}/" for each in view.checkpoint.folders)
    left: dict[str, Known] = {}
    for (template, _), name in view.names.items():
        role = layout.roles.get(name)
        if template in known or template in left or role is None or role.buffer:
            continue
        if not folders or not name.startswith(folders):
            kind = (
                "embedding" if name in layout.embeddings else "head" if name in layout.heads else ""
            )
            left[template] = Known(view.spec(name).shape, kind)
    return left


def _rules(view: View, pairs: Mapping[str, str], known: set[str]) -> dict[str, str]:
    """The map of a model that gives what is guessed the donor's names, and leaves what is known where it is.

    It brings the rest of a stack along: once a map pairs some tensors of it, what is known of its name does not hold.
    """
    final = {name: template for (template, _), name in view.names.items()}
    plain = one_spelling(view.layout)
    wanted: dict[str, str | None] = {}  # its own templates -> the donor's; None: the donor has none
    guessed: dict[str, str] = {}
    for name, role in view.layout.roles.items():
        raw, template = plain[role.template], final.get(name, "")
        wanted.setdefault(raw, pairs.get(template) or (template if template in known else None))
        if template in pairs:
            guessed[raw] = pairs[template]
    stacks = {stack_of(raw) for raw in guessed} - {None}
    along = {raw: meant for raw, meant in wanted.items() if meant and stack_of(raw) in stacks}
    rules = dict(view.prefixes)
    for raw, meant in (guessed | along).items():
        if rename(raw, rules) != meant:
            fitting = (
                each for each in _rules_for(raw, meant) if _holds(*each, rules, wanted, known)
            )
            old, new = next(fitting, (raw, meant))
            rules[old] = new
    return rules


def _rules_for(raw: str, meant: str) -> Iterator[tuple[str, str]]:
    """Rules that make one name of another, the shortest first: without the words that end both, then with them."""
    one, other = raw.split("."), meant.split(".")
    same = 0
    while same < min(len(one), len(other)) and one[-1 - same] == other[-1 - same]:
        same += 1
    for count in range(same, 0, -1):
        old, new = one[: len(one) - count], other[: len(other) - count]
        yield "".join(f"{word}." for word in old), "".join(f"{word}." for word in new)
    yield raw, meant


def _holds(
    old: str,
    new: str,
    rules: Mapping[str, str],
    wanted: Mapping[str, str | None],
    known: set[str],
) -> bool:
    """Whether a rule gives all that it is the longest to fit the name that is wanted, and nothing else the donor's."""
    for raw, meant in wanted.items():
        if raw.startswith(old) and not any(
            len(each) > len(old) and raw.startswith(each) for each in rules
        ):
            name = new + raw[len(old) :]
            if name in known if meant is None else name != meant:
                return False
    return True


def _numbered(
    view: View,
    donor: View,
    mine: Mapping[str, Known],
    theirs: Mapping[str, Known],
    pairs: Mapping[str, str],
) -> dict[str, str]:
    """Pairs of names of which one is of a numbered layer and the other is not, among what is left."""
    taken = set(pairs.values())
    sides: list[dict[bool, dict[str, Known]]] = []
    for each, left in ((view, mine), (donor, theirs)):
        side: dict[bool, dict[str, Known]] = {False: {}, True: {}}
        for key in each.names:
            template, layer = key
            if template in left and template not in pairs and template not in taken:
                side[layer is not None][each.spelt(*key)] = left[template]
        sides.append(side)
    own, donors = sides
    return {
        name: there
        for layered in (False, True)
        for name, there in guess_numbered(own[layered], donors[not layered]).items()
    }


def _rules_of_names(
    view: View, pairs: Mapping[str, str], rules: Mapping[str, str]
) -> dict[str, str]:
    """Rules for names of tensors, each the shortest that brings along nothing else of the model."""
    names = {view.spelt(*key): own for key, own in view.names.items()}
    wanted: dict[str, str | None] = {own: pairs.get(called) for called, own in names.items()}
    made: dict[str, str] = {}
    for raw, meant in wanted.items():
        if meant is not None and rename(raw, made) != meant:
            fitting = (
                each for each in _rules_for(raw, meant) if _holds(*each, rules, wanted, set())
            )
            old, new = next(fitting, (raw, meant))
            made[old] = new
    return made


def _first(view: View, template: str) -> str:
    """What a template is called in the first layer that has it."""
    return view.spelt(*next(key for key in view.names if key[0] == template))
