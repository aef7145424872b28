"""What methods ask of a plan that look at whole models, or that make several checkpoints."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from jmerge.methods.spec import Method
from jmerge.plan.notes import Notes
from jmerge.plan.parameters import base_position
from jmerge.plan.steps import Step
from jmerge.recipe.recipe import OutSlice, Recipe
from jmerge.recipe.refs import ModelRef

# What stands beside the folders of several checkpoints.
TAKEN = ("jmerge.lock.json", "jmerge.tokens.jsonl", "journal.jsonl", "mergekit_config.yml")


def check_slices(recipe: Recipe, method: Method, notes: Notes) -> None:
    """All slices merge the same models in the same order, where these are looked at as wholes."""
    if not (method.of_model or method.per_model_output):
        return
    slices = [out_slice for _, out_slice in recipe.slices()]
    for out_slice in slices[1:]:
        if _models(out_slice, method) != _models(slices[0], method):
            message = f"'{method.name}' looks at whole models, so every slice needs the same models"
            notes.fault(f"{message} in the same order", out_slice.path)


def group(steps: Iterable[Step], method: Method, notes: Notes) -> list[Step]:
    """The steps, those of a method that looks at whole models as one group with one arithmetic."""
    found = list(steps)
    members = [step for step in found if step.method == method.name]
    if not method.of_model or not members:
        return found
    for key, declared in method.parameters.items():
        values = dict.fromkeys(step.numbers[key] for step in members)
        if declared.even and len(values) > 1:
            one, two, *_ = values
            message = f"'{key}' is about whole models, so it must be the same for all tensors"
            notes.fault(f"{message}; found {_show(one)} and {_show(two)}", ("merge_method",))
    wide = any(step.arithmetic.itemsize == 8 for step in members)
    return [
        dataclasses.replace(step, group=method.name, widened=wide)
        if step.method == method.name
        else step
        for step in found
    ]


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
            numbers={**step.numbers, "task": float(task)} if step.numbers else {},
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
