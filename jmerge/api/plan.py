"""`plan`: a recipe, and the headers of its models, to what a merge will do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jmerge.api.arguments import check_recipe as check_argument
from jmerge.api.arguments import whole
from jmerge.arch.ties import find_ties
from jmerge.ckpt.donor import check_donor_files
from jmerge.ckpt.find import find_source
from jmerge.ckpt.memory import MemorySource
from jmerge.ckpt.open import Checkpoint, open_checkpoint
from jmerge.ckpt.remote import redacted
from jmerge.errors import CheckpointError, RecipeError, raise_all
from jmerge.names import nearest
from jmerge.plan.build import infer_layouts, plan_checked
from jmerge.plan.check import check_recipe, missing_parameters
from jmerge.plan.files import carried_files
from jmerge.plan.pairing import View
from jmerge.plan.problems import Said, split
from jmerge.plan.steps import Plan
from jmerge.plan.storage import unusable
from jmerge.recipe.recipe import Examined, Recipe, examine_dict, examine_file
from jmerge.recipe.refs import UNKNOWN, ModelRef

AnyRecipe = str | os.PathLike[str] | Mapping[str, Any] | Recipe


def plan(recipe: AnyRecipe, *, seed: int = 0) -> Plan:
    """Decide what a merge will do from headers alone, and report every mistake in recipe and models at once.

    Args:
      recipe: the path of a YAML file, a dict as for `Recipe.from_dict`, or a `Recipe`.
      seed: the seed of random methods.

    Returns:
      The plan, as plain data: each of `steps` makes one tensor, `outputs` has the dtypes and shapes, `warnings` the
      warnings.

    Raises:
      RecipeError, CheckpointError, PlanError: the mistakes, one line each; no weight has been read.
      TypeError: an argument has the wrong type.
    """
    check_argument(recipe)
    seed = whole("seed", seed)
    parsed, problems = _examined(recipe)
    if parsed is None:
        raise RecipeError(*dict.fromkeys(problems))
    checked, sound = check_recipe(parsed)
    said: list[Said] = [*problems, *checked]
    sound = sound and not problems
    checkpoints = {}
    fill = parsed.tokenizer.token_models() if parsed.tokenizer else ()
    for ref in dict.fromkeys((*parsed.models(), *fill)):
        try:
            if ref != UNKNOWN:
                checkpoints[ref] = _open(parsed, ref)
        except CheckpointError as error:
            said += error.problems
            sound = False
    if not sound:
        said += [*missing_parameters(parsed), *_check_opened(parsed, checkpoints)]
        raise_all(RecipeError, *split(parsed, said))
    try:
        layouts = infer_layouts(checkpoints)
    except CheckpointError as error:
        raise CheckpointError(*error.problems, *split(parsed, said)[0]) from error
    tied = find_ties(checkpoints, {ref: layouts[ref] for ref in parsed.models()})
    made = plan_checked(parsed, said, checkpoints, layouts, tied, seed)
    carried = carried_files(made)
    return replace(made, taken=carried.taken, left=carried.left)


def _examined(recipe: AnyRecipe) -> Examined:
    """The recipe as far as it can be understood, and its problems."""
    if isinstance(recipe, Recipe):
        return recipe, []
    return examine_dict(recipe) if isinstance(recipe, Mapping) else examine_file(recipe)


def _check_opened(recipe: Recipe, checkpoints: Mapping[ModelRef, Checkpoint]) -> list[Said]:
    """Which models cannot be merged by any recipe, to be told with what else is wrong."""
    said: list[Said] = []
    views = []
    for number, (ref, checkpoint) in enumerate(checkpoints.items()):
        try:
            layout = infer_layouts({ref: checkpoint})[ref]
        except CheckpointError as error:
            said += error.problems
            continue
        names = {(role.template, role.layer): name for name, role in layout.roles.items()}
        views.append(View(ref, number, checkpoint, layout, False, {}, names))
    return [*said, *unusable(views, (), recipe)] if views else said


def _open(recipe: Recipe, ref: ModelRef) -> Checkpoint:
    where = recipe.first_path(ref)
    if ref in recipe.given:
        return _given(recipe, ref)
    try:
        source = find_source(ref.path, ref.revision)
    except CheckpointError as error:
        (problem,) = error.problems
        hint = (
            ""
            if ";" in problem.message
            else _where_else(recipe, Path(os.path.expanduser(ref.path)))
        )
        raise CheckpointError(
            recipe.problem(
                f"'{redacted(ref.path)}' {problem.message}{hint}", where, code=problem.code
            )
        ) from error
    try:
        return _checked(recipe, ref, open_checkpoint(source))
    except CheckpointError as error:
        raise CheckpointError(
            *(recipe.problem(problem.text, where, code=problem.code) for problem in error.problems)
        ) from error


def _given(recipe: Recipe, ref: ModelRef) -> Checkpoint:
    """A model that stands in the recipe itself, under the name that the plan has for it."""
    try:
        checkpoint = open_checkpoint(recipe.given[ref])
        if isinstance(checkpoint.source, MemorySource):
            checkpoint = open_checkpoint(checkpoint.source.named(ref.path))
        return _checked(recipe, ref, checkpoint)
    except CheckpointError as error:
        where = recipe.first_path(ref)
        raise CheckpointError(
            *(
                recipe.problem(problem._replace(file="").text, where, code=problem.code)
                for problem in error.problems
            )
        ) from error


def _checked(recipe: Recipe, ref: ModelRef, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint; CheckpointError where the files are no good that the output would have of it."""
    if ref == recipe.models()[0]:
        weights = [file.name for file in checkpoint.files]
        check_donor_files(checkpoint.source, checkpoint.modules, weights)
    return checkpoint


def _where_else(recipe: Recipe, path: Path) -> str:
    """A hint for a model that is not where the recipe says."""
    if "\\" in str(path) and os.path.isdir(slashed := str(path).replace("\\", "/")):
        return f"; use forward slashes on this system: '{slashed}'"
    if not path.is_absolute() and os.path.isdir(Path(recipe.file).parent / path):
        return f"; relative paths start at the working directory, but the model is at {Path(recipe.file).parent / path}"
    if os.path.isdir(path.parent) and str(path.parent) != ".":
        best = nearest(path.name, [p.name for p in path.parent.iterdir() if p.is_dir()])
        if best:
            return f"; did you mean '{path.parent / best}'?"
    return ""
