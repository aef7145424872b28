"""Steps as a whole: their random numbers, statistics that they share, several checkpoints, and what none of them reads."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from jmerge.arch.infer import Role
from jmerge.methods.random import make_key
from jmerge.methods.spec import Method
from jmerge.methods.streams import streams
from jmerge.plan.check import base_position
from jmerge.plan.inputs import Assembled
from jmerge.plan.outcomes import Draw
from jmerge.plan.pairing import View
from jmerge.plan.problems import PlanProblem, error
from jmerge.plan.steps import Step, Unused
from jmerge.plan.targets import Heads
from jmerge.recipe.recipe import Module, OutSlice, Recipe
from jmerge.recipe.refs import ModelRef

# What stands beside the folders of several checkpoints.
TAKEN = ("jmerge.lock.json", "jmerge.tokens.jsonl", "journal.jsonl", "mergekit_config.yml")


def slice_problems(recipe: Recipe, method: Method) -> Iterator[PlanProblem]:
    """Slices that do not merge the same models in the same order, where these are looked at as wholes."""
    if not (method.of_model or method.per_model_output):
        return
    slices = [out_slice for _, out_slice in recipe.slices()]
    for out_slice in slices[1:]:
        if _models(out_slice, method) != _models(slices[0], method):
            message = f"'{method.name}' looks at whole models, so every slice needs the same models"
            yield error("JM233", f"{message} in the same order", out_slice.path)


def uneven(steps: Iterable[Step], method: Method) -> Iterator[PlanProblem]:
    """Hyperparameters about whole models that are not the same for all tensors."""
    members = [step for step in steps if step.method == method.name] if method.of_model else []
    for key, declared in method.parameters.items():
        values = dict.fromkeys(step.hyperparameters[key] for step in members)
        if declared.even and len(values) > 1:
            one, two, *_ = values
            message = f"'{key}' is about whole models, so it must be the same for all tensors"
            message += f"; found {_show(one)} and {_show(two)}"
            yield error("JM233", message, ("merge_method",))


def group(steps: Sequence[Step], method: Method) -> list[Step]:
    """The steps, those of a method that looks at whole models as one group with one arithmetic."""
    if not method.of_model:
        return list(steps)
    wide = any(s.arithmetic.itemsize == 8 for s in steps if s.method == method.name)
    return [
        dataclasses.replace(step, group=method.name, widened=wide)
        if step.method == method.name
        else step
        for step in steps
    ]


def with_keys(steps: Mapping[str, Step], draws: Mapping[str, Draw], seed: int) -> list[Step]:
    """The steps with the keys of their random numbers, which depend on the names of all."""
    if not draws:
        return list(steps.values())
    found = dict(zip(steps, streams(list(steps)), strict=True))
    made = dict(steps)
    for name, (tensor, models) in draws.items():
        keys = tuple(make_key(seed, found[tensor], model) for model in models)
        made[name] = dataclasses.replace(steps[name], keys=keys)
    return list(made.values())


def used_by(steps: Iterable[Step], models: int) -> dict[int, set[str]]:
    """The tensors that steps read, by number of the model."""
    used: dict[int, set[str]] = {number: set() for number in range(models)}
    for step in steps:
        for item in step.inputs:
            for read in item.reads:
                used[read.model].add(read.name)
            if isinstance(item, Assembled):
                used[item.model].add(item.name)
    return used


def for_each_model(steps: Sequence[Step], method: Method, out_slice: OutSlice) -> list[Step]:
    """The steps of every checkpoint of a method that makes one for each model, or the steps as they are."""
    if not method.per_model_output:
        return list(steps)
    return [
        dataclasses.replace(
            step,
            name=f"{output}/{step.name}",
            output=output,
            folder=output,
            hyperparameters={**step.hyperparameters, "task": float(task)}
            if step.hyperparameters
            else {},
        )
        for task, output in enumerate(_output_names(out_slice, method))
        for step in steps
    ]


def _output_names(out_slice: OutSlice, method: Method) -> list[str]:
    """A folder for each model: the last part of its path, numbered where that is not enough."""
    names: list[str] = []
    for ref in _models(out_slice, method):
        stem = name = Path(os.path.realpath(os.path.expanduser(ref.path))).name or "model"
        number = 1
        while name in names or name in TAKEN:
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names


def _models(out_slice: OutSlice, method: Method) -> list[ModelRef]:
    """The sources of a slice but for the one that is its base."""
    base = base_position(method, out_slice)
    return [source.ref for i, source in enumerate(out_slice.sources) if i != base]


def _show(value: object) -> str:
    return (
        "[" + ", ".join(f"{each:g}" for each in value) + "]"
        if isinstance(value, tuple)
        else f"{value:g}"
    )


def account(
    view: View,
    used: Collection[str],
    recipe: Recipe,
    modules: Mapping[str, Module],
    heads: Heads,
    left: Mapping[tuple[int, str], str],
) -> Iterator[Unused | str]:
    """Each tensor of a model that no step reads: an `Unused` with the reason, or its bare name when there is none.

    used: the tensors of it that steps read.
    modules: of the output, with what the recipe says of them.
    left: by number of the model and name, why tensors are not merged.
    """
    for name, role in view.layout.roles.items():
        if name not in used:
            reason = left.get((view.number, name)) or _reason(
                view, name, role, recipe, modules, heads
            )
            yield Unused(model=view.number, name=name, reason=reason) if reason else name


def _reason(
    view: View,
    name: str,
    role: Role,
    recipe: Recipe,
    modules: Mapping[str, Module],
    heads: Heads,
) -> str | None:
    """Why no step reads the tensor; None when nothing explains it."""
    everywhere = [s for _, out in recipe.slices() for s in out.sources if s.ref == view.ref]
    called = view.modules[name]
    module = modules.get(called)
    slices = module.slices if module else ()
    sources = [s for out_slice in slices for s in out_slice.sources if s.ref == view.ref]
    if not everywhere:
        return "the model gives only names, config and files"
    if not slices:
        return f"module '{called}' is not in the recipe"
    if not sources:
        return f"the model is not a source of module '{called}'"
    if role.buffer:
        return "a buffer: taken from another model"
    if role.layer is not None and all(source.layers for source in sources):
        return f"layer {role.layer} is in no layer_range"
    if heads.tied_away(view, name):
        return "tied away: equal to the embedding, and the donor stores no head"
    if heads.all_tied and name in view.layout.heads:
        return "tied: equal to the embedding, which is merged for both"
    if role.layer is None and len(slices) > 1:
        return f"the model is not a source of the {role.part} slice"
    return None
