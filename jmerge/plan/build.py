"""A recipe and the headers of its models to a `Plan`: the passes in their order, and the one place that collects problems.

Each pass takes values and returns values, with the problems that it found among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import filterfalse
from typing import NamedTuple

from jmerge.arch.config import Layers
from jmerge.arch.infer import Layout, infer_layout
from jmerge.arch.ties import is_tied_unstored
from jmerge.ckpt.open import Checkpoint
from jmerge.errors import CheckpointError, PlanError, RecipeError, raise_all
from jmerge.methods.wrap import find_method
from jmerge.plan.check import check_recipe, missing_parameters
from jmerge.plan.files import conflicts, file_problems, new_config, other_special_tokens
from jmerge.plan.groups import (
    account,
    for_each_model,
    group,
    slice_problems,
    uneven,
    used_by,
    with_keys,
)
from jmerge.plan.hyperparameters import check_resolved
from jmerge.plan.layers import arrange
from jmerge.plan.outcomes import (
    Draw,
    Finding,
    Lacking,
    MapKey,
    Maps,
    MergedWithout,
    OtherShape,
    Outcome,
    SameName,
    Scene,
    tell,
)
from jmerge.plan.pairing import Template, View, config_of, map_problems, strangers
from jmerge.plan.problems import PlanProblem, Said, error, is_error, split
from jmerge.plan.resolve import Scheme, Wider
from jmerge.plan.spellings import pair
from jmerge.plan.steps import InputFile, InputModel, Plan, Step, Unused, into_folders, placed_name
from jmerge.plan.storage import unusable
from jmerge.plan.targets import (
    Heads,
    Target,
    Unmentioned,
    find_modules,
    find_targets,
    find_unmentioned,
    out_stacks,
    unmentioned_problems,
)
from jmerge.plan.unmerged import Counter, NotMerged, NotWritten, OtherKind, Strange
from jmerge.plan.vocabulary import Tables, Used, other_templates, other_tokens, row_problems
from jmerge.recipe.recipe import Module, Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.tokens.output import TokenPlan, plan_tokens
from jmerge.tokens.rows import TableRows
from jmerge.version import VERSION


def build_plan(
    recipe: Recipe,
    checkpoints: Mapping[ModelRef, Checkpoint],
    *,
    layouts: Mapping[ModelRef, Layout] | None = None,
    tied: Mapping[ModelRef, bool] | None = None,
    seed: int = 0,
) -> Plan:
    """The plan of `recipe` on these opened checkpoints.

    Args:
      recipe: from `Recipe.from_file` and the like.
      checkpoints: an opened checkpoint for each of `recipe.models()`, and for each model that only fills tokens.
      layouts: their structure, where it is known already; by default it is inferred.
      tied: models whose output head is their embedding; by default those that store no head.
      seed: of the random methods; recorded in the plan.

    Reads the models' tokenizers: for the recipe's `tokenizer` and `chat_template`, and without them to warn of others
    than the output's.

    Raises:
      PlanError: the recipe does not suit its method or the models; holds every problem found.
    """
    problems, sound = check_recipe(recipe)
    for ref in recipe.tokenizer.token_models() if recipe.tokenizer else ():
        if ref not in checkpoints:
            message = f"'{ref}' fills tokens, so it has to be opened too"
            problems.append(error("JM236", message, recipe.first_path(ref)))
            sound = False
    if not sound:
        stop(recipe, [*problems, *missing_parameters(recipe)])
    layouts = layouts or infer_layouts(checkpoints)
    if tied is None:
        tied = {
            ref: is_tied_unstored(config_of(ref, checkpoints[ref]), layouts[ref]) for ref in layouts
        }
    return plan_checked(recipe, problems, checkpoints, layouts, tied, seed)


def infer_layouts(checkpoints: Mapping[ModelRef, Checkpoint]) -> dict[ModelRef, Layout]:
    """The structure of each checkpoint; CheckpointError when one cannot be a model's."""
    layouts = {}
    for ref, checkpoint in checkpoints.items():
        specs = {name: entry.spec for name, entry in checkpoint.index.items()}
        try:
            layouts[ref] = infer_layout(specs, config_of(ref, checkpoint), checkpoint.folders)
        except CheckpointError as failure:
            problems = (problem._replace(file=str(checkpoint.path)) for problem in failure.problems)
            raise CheckpointError(*problems) from failure
    return layouts


def stop(recipe: Recipe, problems: Iterable[Said]) -> None:
    """Raise PlanError where there is an error among the problems, with all of them."""
    raise_all(PlanError, *split(recipe, problems))


def plan_checked(
    recipe: Recipe,
    problems: Iterable[Said],
    checkpoints: Mapping[ModelRef, Checkpoint],
    layouts: Mapping[ModelRef, Layout],
    tied: Mapping[ModelRef, bool],
    seed: int,
) -> Plan:
    """As `build_plan`, for a recipe that `check_recipe` found sound, with the `problems` so far."""
    said = [*problems, *file_problems(checkpoints, recipe)]
    models = recipe.models()  # the donor first
    fill = recipe.tokenizer.token_models() if recipe.tokenizer else ()
    every = tuple(dict.fromkeys((*models, *fill)))  # as `Alignment.models`
    guests = [
        View(ref, number, checkpoints[ref], layouts[ref], not layouts[ref].heads, {})
        for number, ref in enumerate(every)
        if ref not in models
    ]
    tokens: TokenPlan | None = None
    try:
        tokens = plan_tokens(recipe, {ref: checkpoints[ref] for ref in every}, layouts)
    except RecipeError as failure:
        said += failure.problems  # told with what else is wrong

    merged = {ref: layouts[ref] for ref in models}
    of_maps = list(map_problems(merged, recipe))
    guess = not any(map(is_error, (*said, *of_maps)))
    opened = {ref: checkpoints[ref] for ref in models}
    pairing = pair(opened, merged, tied, recipe, guess=guess)
    of_models = list(unusable(tuple(pairing.views.values()), guests, recipe))
    if any(map(is_error, of_models)):  # they explain whatever else there is to find
        stop(recipe, [*said, *of_maps, *filterfalse(is_error, pairing.problems), *of_models])
    of_pairing = [*of_maps, *pairing.problems, *of_models]
    if not any(map(is_error, of_pairing)):
        of_pairing += strangers(pairing.views, recipe)

    heads = Heads(pairing.views)
    tables = None
    if recipe.tokenizer is not None:
        alignment = tokens.alignment if tokens else None
        tables = Tables(recipe.tokenizer, pairing.views, guests, heads, alignment)
        of_pairing += tables.config_problems()
    modules, of_modules = find_modules(pairing.views, recipe)
    method = find_method(recipe.wrapped_method)
    of_pairing += [*of_modules, *slice_problems(recipe, method)]
    said += [*of_pairing, *pairing.spellings]
    if any(map(is_error, of_pairing)):
        stop(recipe, [*said, *missing_parameters(recipe)])

    scheme = Scheme(recipe, method, pairing.views, heads, tables)
    made = _resolve_all(scheme, pairing.templates, modules)
    unused, of_steps = _check_all(scheme, made, guests, whole=not any(map(is_error, said)))
    stop(recipe, [*said, *of_steps])
    return _assemble(scheme, made, guests, tokens, unused, seed, [*said, *of_steps])


class _Made(NamedTuple):
    """What became of all tensors that the output may have."""

    modules: Mapping[str, Module]  # that the recipe merges
    targets: list[Target]
    unmentioned: list[Unmentioned]
    outcomes: list[Outcome]
    steps: dict[str, Step]  # in the order of the output
    draws: dict[str, Draw]  # of random methods, by step
    maps: Maps
    used: Used
    new_layers: Mapping[str, Sequence[Layers]]
    of_layers: list[PlanProblem]

    @property
    def findings(self) -> list[Finding]:
        """What was found of single tensors."""
        return [finding for outcome in self.outcomes for finding in outcome.findings]

    def scene(self, scheme: Scheme) -> Scene:
        """What the findings are told against."""
        names = dict.fromkeys(target.name for target in self.targets)
        return Scene(scheme.recipe, scheme.views, names)


def _resolve_all(
    scheme: Scheme, templates: Mapping[str, Template], modules: Mapping[str, Module]
) -> _Made:
    """Every target and what becomes of it."""
    listed, views = tuple(templates.values()), scheme.views
    donor = next(iter(views.values()))
    stacks = out_stacks(views, listed, modules)
    targets = list(find_targets(views, listed, modules, stacks, scheme.heads))
    unmentioned = list(find_unmentioned(donor, templates, modules))
    outcomes: list[Outcome] = []
    made: dict[str, Outcome] = {}
    maps: dict[MapKey, TableRows] = {}
    for target in targets:
        if (first := made.get(target.name)) is not None and first.step is not None:
            cause = SameName(target.place.out_slice.path)
            outcomes.append(Outcome(findings=(Finding(cause, target.name),)))
            continue
        made[target.name] = outcome = scheme.resolve(target, made, maps)
        maps |= outcome.maps
        outcomes.append(outcome)
    for each in unmentioned:
        outcome = scheme.copy_unmentioned(each, maps)
        maps |= outcome.maps
        outcomes.append(outcome)
        if outcome.step is not None:
            made[each.name] = outcome
    steps = {name: each.step for name, each in made.items() if each.step is not None}
    used = used_by(steps.values(), len(views) + len(scheme.tables.guests if scheme.tables else ()))
    layers, of_layers = arrange(stacks, views, listed)
    draws = {name: each.draw for name, each in made.items() if each.draw is not None}
    return _Made(
        modules, targets, unmentioned, outcomes, steps, draws, maps, used, layers, of_layers
    )


def _check_all(
    scheme: Scheme, made: _Made, guests: Sequence[View], *, whole: bool
) -> tuple[tuple[Unused, ...], list[PlanProblem]]:
    """What no step reads, and everything that is wrong with the steps or with tensors that have none.

    whole: nothing is wrong so far, so that every tensor must have been accounted for.
    """
    recipe, views = scheme.recipe, scheme.views
    coverage = scheme.unmerged.coverage
    findings, scene = made.findings, made.scene(scheme)
    asked = [*scene.asked, *(each.name for each in made.unmentioned if coverage.stated)]
    cast = [each.step.name for each in made.outcomes if each.cast and each.step]
    said = [problem for outcome in made.outcomes for problem in outcome.problems]
    said += [*made.of_layers, *tell((SameName,), findings, scene)]
    if not coverage.stated:
        said += unmentioned_problems(next(iter(views.values())), made.unmentioned)
    said += tell((OtherShape, Strange, Lacking), findings, scene)
    said += conflicts(views, made.used, recipe)
    said += coverage.problems(asked)
    said += tell((NotMerged, NotWritten, Wider), findings, scene)
    said += scheme.precision.problems(cast)
    said += tell((OtherKind, Counter), findings, scene)
    resolved = [each for outcome in made.outcomes for each in outcome.resolved]
    said += check_resolved(resolved, scheme.method)
    said += uneven(made.steps.values(), scheme.method)
    whole = whole and not any(map(is_error, said))
    left = {key: why for outcome in made.outcomes for key, why in outcome.left.items()}
    unused = []
    for view in views.values():
        used = made.used[view.number]
        for item in account(view, used, recipe, made.modules, scheme.heads, left):
            if isinstance(item, Unused):
                unused.append(item)
            elif whole:
                message = f"{item} of {view.ref} would be lost; this is a bug in jmerge"
                said.append(error("JM236", message, ()))
    for view in guests:
        for name in view.layout.roles:
            reason = "the model only fills tokens"
            unused.append(Unused(model=view.number, name=name, reason=reason))
    said += row_problems(made.steps.values(), views, recipe)
    if not made.steps and not any(map(is_error, said)):
        said.append(error("JM235", "makes no tensor at all", ()))
    return tuple(unused), said


def _assemble(
    scheme: Scheme,
    made: _Made,
    guests: Sequence[View],
    tokens: TokenPlan | None,
    unused: tuple[Unused, ...],
    seed: int,
    problems: Iterable[Said],
) -> Plan:
    """The plan of these steps, with the warnings among the `problems`."""
    recipe, views, steps = scheme.recipe, scheme.views, made.steps
    donor = next(iter(views.values()))
    every = (*views.values(), *guests)
    outputs = {name: step.spec for name, step in steps.items()}
    config, changes = new_config(donor, outputs, made.new_layers, scheme.tables)
    tied = scheme.heads.written_with_table(steps)
    said = [*problems, *other_tokens(views, made.used, recipe)]
    said += other_templates(views, tokens.donor if tokens else 0, made.used, recipe)
    if tokens and tokens.alignment:
        said += other_special_tokens(views, made.used, tokens, config, recipe)
    said += scheme.heads.untied(tied[0]) if tied else ()
    said += tell((MergedWithout,), made.findings, made.scene(scheme))
    warnings = [*split(recipe, said)[1], *(tokens.notes if tokens else ())]
    warnings.sort(key=lambda warning: (warning.file, warning.line))
    home, folders = donor.checkpoint.home, donor.checkpoint.folders
    final = group(with_keys(steps, made.draws, seed), scheme.method)
    final = for_each_model(final, scheme.method, recipe.first_slice)
    return Plan(
        version=VERSION,
        recipe=recipe.text,
        method=scheme.method.name,
        seed=seed,
        models=tuple(map(_input_model, every)),
        steps=tuple(into_folders(final, home, folders)),
        unused=unused,
        config=config,
        changes=tuple(changes),
        tied=(placed_name(tied[0], home, folders), placed_name(tied[1], home, folders))
        if tied
        else None,
        warnings=tuple(dict.fromkeys(map(str, warnings))),
        home=home,
        modules=tuple(module.kind for module in donor.checkpoint.modules),
        maps=tuple(made.maps.values()),
        tokens=tokens,
        sources={str(view.checkpoint.path): view.checkpoint.source for view in every},
    )


def _input_model(view: View) -> InputModel:
    files = tuple(
        InputFile(name=file.name, size=file.size, header_sha256=file.sha256)
        for file in view.checkpoint.files
    )
    return InputModel(ref=str(view.ref), path=str(view.checkpoint.path), files=files)
