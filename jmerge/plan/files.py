"""What the output has beside its weights: config.json and other files, and models in which they say something else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jmerge.arch.ahead import without_ahead
from jmerge.arch.config import Change, Layers, forget, set_depth, set_dtype, untie
from jmerge.arch.fields import (
    REFUSABLE,
    TOKEN_ID,
    Difference,
    Value,
    differences,
    module_differences,
)
from jmerge.arch.infer import KeyPath
from jmerge.arch.quantised import without_quantisation
from jmerge.ckpt.donor import companions, is_tokenizer_file
from jmerge.ckpt.open import Checkpoint
from jmerge.ckpt.sentence import main_module, read_modules
from jmerge.ckpt.source import inside
from jmerge.ckpt.weights import EXPLICIT
from jmerge.dtypes import TensorSpec, most_stored
from jmerge.plan.check import allowed_path
from jmerge.plan.pairing import View, prefix_of
from jmerge.plan.problems import PlanProblem, error, warning
from jmerge.plan.steps import LeftFile, Plan, TakenFile
from jmerge.plan.targets import Views
from jmerge.plan.vocabulary import Tables, Used
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.tokens.output import GENERATION, TokenPlan
from jmerge.tokens.rows import ABSENT

OTHER_TOKENS = "the tokens are those of {}"
NO_LONGER = "no longer true of the tokens"


def new_config(
    donor: View,
    outputs: Mapping[str, TensorSpec],
    new_layers: Mapping[str, Sequence[Layers]],
    tables: Tables | None,
) -> tuple[dict[str, Any], list[Change]]:
    """config.json of the output and what differs from the donor's; empty where the donor has none.

    Args:
      outputs: the tensors of the output.
      new_layers: by stack, where the layers come from that are not the donor's one by one.
      tables: those of a recipe that aligns tokens.
    """
    if not donor.checkpoint.config:
        return {}, []
    config, changes = forget(donor.config, EXPLICIT, "the weights have the usual names")
    classes = donor.checkpoint.config.get("architectures")
    if config.get("architectures") != classes:
        why = "override_architecture of the recipe"
        changes = [*changes, Change("architectures", classes, config["architectures"], why)]
    for prefix, layers in new_layers.items():
        config, new = set_depth(config, donor.stacks[prefix], layers, donor.beside)
        changes = [*changes, *new]
    if donor.quantised.reason is None:
        config, new = without_quantisation(config)
        changes = [*changes, *new]
    config, ahead = without_ahead(config, outputs)
    config, dtype = set_dtype(config, most_stored(outputs.values()))
    changes = [*changes, *ahead, *dtype]
    if tables is not None:
        config, new = tables.new_config(config)
        changes = [*changes, *new]
    return config, changes


def untied(plan: Plan) -> tuple[dict[str, Any], tuple[Change, ...]]:
    """config.json and changes of a plan whose written head turned out to differ from its embedding."""
    if not plan.config:  # there is none, and none is made up
        return {}, plan.changes
    config, new = untie(dict(plan.config))
    return config, (*plan.changes, *new)


def conflicts(views: Views, used: Used, recipe: Recipe) -> Iterator[PlanProblem]:
    """Configs of models that give weights that differ from the donor's, in the parts that they give weights to."""
    donor = next(iter(views.values()))
    allowed = {REFUSABLE[name].name for name in recipe.allow_conflicts if name in REFUSABLE}
    found = {
        ref: list(_differences(view, donor, used, recipe.tokenizer is not None))
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
                yield error("JM211", message, recipe.first_path(ref))
            elif not (ranged and isinstance(each.own.value, list)):  # layers have moved
                told.append(_briefly(each))
        if told:
            yield _differs("config.json", told, ref, donor, recipe)
        made = list(
            differences(views[ref].checkpoint.generation, (), donor.checkpoint.generation, ())
        )
        if made and used[views[ref].number] and recipe.tokenizer is None:
            told = [_briefly(each) for each in made]
            yield _differs("generation_config.json", told, ref, donor, recipe)
    for i, name in enumerate(recipe.allow_conflicts):
        if name in REFUSABLE and REFUSABLE[name].name not in refused:
            message = f"has no effect: no model differs in '{name}'"
            yield warning("JM019", message, allowed_path(recipe, i))


def other_special_tokens(
    views: Views, used: Used, tokens: TokenPlan, config: Mapping[str, Any], recipe: Recipe
) -> Iterator[PlanProblem]:
    """Models whose texts end, begin or are padded with other tokens than the output's say: by the tokens, as
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
        left = alignment.donor != 0 and ref == recipe.first_slice.base  # for the other's
        if view is chosen or left or not used[view.number]:
            continue
        ids = alignment.rows.own[view.number]
        own = {int(row): output[i] for i, row in enumerate(ids) if row != ABSENT and i in output}
        told: dict[str, None] = {}
        for path, there in _homes(view, donor, used):
            parts = view.checkpoint.config, path, config, there
            told |= dict.fromkeys(_special(*parts, own, output))
        for each in _special(view.checkpoint.generation, (), generation, (), own, output):
            told[f"in {GENERATION} {each}"] = None
        if told:
            message = (
                f"its special tokens differ from those of {chosen.ref}, which the output has: "
            )
            yield warning("JM212", message + ", ".join(told), recipe.first_path(ref))


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


def _differs(
    file: str, told: Sequence[str], ref: ModelRef, donor: View, recipe: Recipe
) -> PlanProblem:
    message = f"{file} differs from that of {donor.ref}, which the output has: {', '.join(told)}"
    return warning("JM212", message, recipe.first_path(ref))


def _briefly(each: Difference) -> str:
    return f"{_at(each.own)} {_show(each.own)} (output: {_show(each.donor)})"


def _differences(view: View, donor: View, used: Used, aligned: bool) -> Iterator[Difference]:
    told: set[tuple[KeyPath, KeyPath]] = set()
    for home, donor_home in _homes(view, donor, used):
        for each in differences(view.checkpoint.config, home, donor.checkpoint.config, donor_home):
            if each.field.name == "model_type" and view.prefixes:
                continue  # it is another structure, which is why it is mapped
            if aligned and TOKEN_ID.fullmatch(each.field.name):
                continue  # `other_special_tokens` compares the tokens
            if (each.own.path, each.donor.path) not in told:
                told.add((each.own.path, each.donor.path))
                yield each
    if used[view.number]:
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


def _homes(view: View, donor: View, used: Used) -> dict[tuple[KeyPath, KeyPath], None]:
    """The parts of the configs that describe what the model gives weights to: its own and the donor's."""
    prefixes: dict[str, None] = {}
    for (template, layer), name in view.names.items():
        if layer is not None and name in used[view.number]:
            prefixes[prefix_of(template)] = None
    pairs = {
        (view.stacks[prefix].home, donor.stacks[prefix].home): None
        for prefix in prefixes
        if prefix in donor.stacks
    }
    if used[view.number] and not view.prefixes:
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


class Carried(NamedTuple):
    """The files of models that come along, and those of the donor that stay behind."""

    taken: tuple[TakenFile, ...]  # in name order
    left: tuple[LeftFile, ...]  # in name order


def carried_files(plan: Plan) -> Carried:
    """The files that come along: the donor's, but those of the tokenizer from the model whose tokens the output has, as
    edited. Lists folders, and reads no more than configs."""
    donor = plan.source(0)
    weights = [file.name for file in plan.models[0].files]
    found = companions(donor, read_modules(donor) if plan.modules else (), weights)
    left, tokens = dict(found.left), plan.tokens
    taken = {name: TakenFile(name, donor, name, None) for name in found.taken}
    if tokens is not None:
        home = f"{plan.home}/" if plan.home else ""
        label = plan.models[tokens.donor]
        owner = plan.source(tokens.donor)
        main = main_module(read_modules(owner))
        place = inside(owner, main.folder if main else "")
        for name in [name for name in taken if is_tokenizer_file(name, plan.home)]:
            del taken[name]
            left[name] = OTHER_TOKENS.format(label.ref)
        for name in companions(place).taken:
            if is_tokenizer_file(name):
                taken[home + name] = TakenFile(home + name, place, name, None)
        for name, data in tokens.edits.written.items():
            taken[home + name] = TakenFile(home + name, place, name, data)
        for name in tokens.edits.left_out:
            if taken.pop(home + name, None) and tokens.donor == 0:
                left[home + name] = NO_LONGER
    return Carried(
        tuple(taken[name] for name in sorted(taken)),
        tuple(LeftFile(name=name, reason=left[name]) for name in sorted(left) if name not in taken),
    )


def file_problems(
    checkpoints: Mapping[ModelRef, Checkpoint], recipe: Recipe
) -> Iterator[PlanProblem]:
    """Files that were passed over, and of a donor without config.json where another model has one."""
    for ref, checkpoint in checkpoints.items():
        for note in checkpoint.notes:
            yield warning("JM130", f"{ref}: {note}", recipe.first_path(ref))
    donor, *others = recipe.models()
    described = [ref for ref in others if checkpoints[ref].config]
    if described and not checkpoints[donor].config:
        message = (
            f"'{donor}' gives the result its files and has no config.json, so the result has none "
            f"and transformers cannot load it; copy that of '{described[0]}' into '{donor}' if it fits"
        )
        yield warning("JM213", message, recipe.first_path(donor))
