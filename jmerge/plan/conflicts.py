"""Models whose config.json says something else than the output's will: told, or refused where that breaks them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jmerge.arch.fields import (
    KNOWN,
    REFUSABLE,
    TOKEN_ID,
    Difference,
    Value,
    differences,
    module_differences,
)
from jmerge.arch.infer import KeyPath
from jmerge.names import did_you_mean, nearest
from jmerge.plan.notes import Notes
from jmerge.plan.views import View
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.tokens.output import GENERATION, TokenPlan
from jmerge.tokens.rows import ABSENT


def check_allowed(recipe: Recipe, notes: Notes) -> None:
    """The fields that `allow_conflicts` names are those that a difference in is refused."""
    for i, name in enumerate(recipe.allow_conflicts):
        path = _allowed_path(recipe, i)
        if name not in KNOWN and not TOKEN_ID.fullmatch(name):
            best = nearest(name, KNOWN)
            fields = dict.fromkeys(field.name for field in REFUSABLE.values())
            hint = f"; did you mean '{best}'?" if best else did_you_mean(name, fields, show=99)
            notes.fault(f"'{name}' is not a field that is compared{hint}", path)
        elif name not in REFUSABLE:
            notes.warn(f"has no effect: models may differ in '{name}' anyway", path)


def check_conflicts(views: Mapping[ModelRef, View], notes: Notes) -> None:
    """Compare the configs of all models that give weights with the donor's, in the parts that they give weights to."""
    donor, recipe = next(iter(views.values())), notes.recipe
    allowed = {REFUSABLE[name].name for name in recipe.allow_conflicts if name in REFUSABLE}
    found = {
        ref: list(_differences(view, donor, recipe.tokenizer is not None))
        for ref, view in views.items()
        if view is not donor
    }
    refused = dict.fromkeys(
        each.field.name
        for differing in found.values()
        for each in differing
        if each.verdict == "refused"
    )
    ranged = any(s.layers for _, out_slice in recipe.slices() for s in out_slice.sources)
    for ref, differing in found.items():
        told = []
        for each in differing:
            if each.verdict == "refused" and each.field.name not in allowed:
                message = f"{_words(each, ref, donor)}; {each.field.why}. To merge nevertheless, "
                message += f"with {donor.ref}'s: 'allow_conflicts: [{', '.join(refused)}]'"
                notes.fault(message, recipe.first_path(ref))
            elif not (ranged and isinstance(each.own.value, list)):  # layers have moved
                told.append(_briefly(each))
        _tell("config.json", told, ref, donor, notes)
        made = differences(views[ref].checkpoint.generation, (), donor.checkpoint.generation, ())
        if views[ref].used and recipe.tokenizer is None:
            _tell("generation_config.json", [_briefly(each) for each in made], ref, donor, notes)
    for i, name in enumerate(recipe.allow_conflicts):
        if name in REFUSABLE and REFUSABLE[name].name not in refused:
            notes.warn(f"has no effect: no model differs in '{name}'", _allowed_path(recipe, i))


def tell_special_tokens(
    views: Mapping[ModelRef, View], tokens: TokenPlan, config: Mapping[str, Any], notes: Notes
) -> None:
    """Warn of models whose texts end, begin or are padded with other tokens than the output's say: by the tokens, as
    ids are each model's own.

    Args:
      tokens: those of the output.
      config: its config.json.
    """
    alignment = tokens.alignment
    assert alignment is not None  # only told where tokens are aligned
    made = tokens.edits.written.get(GENERATION)
    donor, chosen = (list(views.values())[i] for i in (0, alignment.donor))
    generation = donor.checkpoint.generation if made is None else json.loads(made)
    words = alignment.vocabulary.by_id()
    output = {i: word for i, word in enumerate(words) if word is not None}
    for ref, view in views.items():
        left = alignment.donor != 0 and ref == notes.recipe.first_slice.base  # for the other's
        if view is chosen or left or not view.used:
            continue
        ids = alignment.rows.own[view.number]
        own = {int(row): output[i] for i, row in enumerate(ids) if row != ABSENT and i in output}
        told: dict[str, None] = {}
        for path, there in _homes(view, donor):
            parts = view.checkpoint.config, path, config, there
            told |= dict.fromkeys(_special(*parts, own, output))
        for each in _special(view.checkpoint.generation, (), generation, (), own, output):
            told[f"in {GENERATION} {each}"] = None
        if told:
            message = (
                f"its special tokens differ from those of {chosen.ref}, which the output has: "
            )
            notes.warn(message + ", ".join(told), notes.recipe.first_path(ref))


def _special(
    own: Mapping[str, Any],
    home: KeyPath,
    output: Mapping[str, Any],
    output_home: KeyPath,
    own_words: Mapping[int, str],
    words: Mapping[int, str],
) -> Iterator[str]:
    """What two configs say otherwise of special tokens that both name."""
    named = _by_token(own, own_words), home, _by_token(output, words), output_home
    for each in differences(*named):
        values = each.own.value, each.donor.value
        if TOKEN_ID.fullmatch(each.field.name) and None not in values:
            yield _briefly(each)


def _by_token(config: Mapping[str, Any], words: Mapping[int, str]) -> dict[str, Any]:
    """A config whose ids of special tokens are the tokens; a token that the output lacks keeps its id."""
    made: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            value = _by_token(value, words)
        elif TOKEN_ID.fullmatch(key):
            ids = value if isinstance(value, list) else [value]
            found = [words.get(i, i) if isinstance(i, int) else i for i in ids]
            value = found[0] if len(found) == 1 else found
        made[key] = value
    return made


def _tell(file: str, told: Sequence[str], ref: ModelRef, donor: View, notes: Notes) -> None:
    if told:
        message = f"{file} differs from that of {donor.ref}, which the output has: "
        notes.warn(message + ", ".join(told), notes.recipe.first_path(ref))


def _briefly(each: Difference) -> str:
    return f"{_at(each.own)} {_show(each.own)} (output: {_show(each.donor)})"


def _differences(view: View, donor: View, aligned: bool) -> Iterator[Difference]:
    told: set[tuple[KeyPath, KeyPath]] = set()
    for home, donor_home in _homes(view, donor):
        for each in differences(view.checkpoint.config, home, donor.checkpoint.config, donor_home):
            if each.field.name == "model_type" and view.prefixes:
                continue  # it is another structure, which is why it is mapped
            if aligned and TOKEN_ID.fullmatch(each.field.name):
                continue  # `tell_special_tokens` compares the tokens
            if (each.own.path, each.donor.path) not in told:
                told.add((each.own.path, each.donor.path))
                yield each
    if view.used:
        yield from _of_modules(view, donor)


def _of_modules(view: View, donor: View) -> Iterator[Difference]:
    """Between the modules of two Sentence Transformers models, the first of a kind with the first, and so on."""
    others = list(donor.checkpoint.modules)
    for module in view.checkpoint.modules:
        other = next((each for each in others if each.kind == module.kind), None)
        if other is not None:
            others.remove(other)
            path, there = (filter(None, (each.folder,)) for each in (module, other))
            yield from module_differences(module.config, other.config, (*path,), (*there,))


def _homes(view: View, donor: View) -> dict[tuple[KeyPath, KeyPath], None]:
    """The parts of the configs that describe what the model gives weights to: its own and the donor's."""
    prefixes: dict[str, None] = {}
    for (template, layer), name in view.names.items():
        if name in view.used and layer is not None:
            prefixes[template.partition("{}")[0].removesuffix(".")] = None
    pairs = {
        (view.stacks[prefix].home, donor.stacks[prefix].home): None
        for prefix in prefixes
        if prefix in donor.stacks
    }
    if view.used and not view.prefixes:
        pairs[(), ()] = None
    return pairs


def _words(each: Difference, ref: ModelRef, donor: View) -> str:
    first, second = _at(each.own), _at(each.donor)
    there = "" if first == second else f"{second} "
    return f"{first} is {_show(each.own)} in {ref} and {there}{_show(each.donor)} in {donor.ref}"


def _at(value: Value) -> str:
    return ".".join(value.path)


def _show(value: Value) -> str:
    text = str(value.value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _allowed_path(recipe: Recipe, number: int) -> tuple[Any, ...]:
    listed = isinstance(recipe.document.value.get("allow_conflicts"), list)
    return ("allow_conflicts", number) if listed else ("allow_conflicts",)
