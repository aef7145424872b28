"""What merges of the families' models must make, in numpy float64: from the tensors of the input files, by their literal
names. Nothing of jmerge is used here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from familykit import Family, Tensors
from safetensors.numpy import load_file

# Methods: the recipe, and the same in numpy


@dataclass(frozen=True, kw_only=True)
class Method:
    """A recipe for models a, b, c and what it makes of one tensor of each, in float64."""

    recipe: dict[str, Any]
    merge: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """The point at the share `t` of the arc from a to b; of the line where both are one number, which has no arc."""
    if a.size == 1:
        return (1 - t) * a + t * b
    angle = np.arccos((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def ties(
    models: list[np.ndarray], base: np.ndarray, weights: list[float], density: float
) -> np.ndarray:
    """Largest changes of each model, a vote on the sign, the mean of those that agree (arXiv 2306.01708)."""
    total, votes = [], []
    for model, weight in zip(models, weights, strict=True):
        change = (model - base).ravel()
        largest = np.argsort(-np.abs(change), kind="stable")[: max(1, int(density * change.size))]
        kept = np.zeros_like(change)
        kept[largest] = weight * change[largest]
        total.append(kept.reshape(base.shape))
        votes.append(np.where(total[-1] != 0, weight, 0.0))
    sign = np.where(sum(total) >= 0, 1.0, -1.0)
    agree = [each * sign > 0 for each in total]
    divisor = sum(vote * each for vote, each in zip(votes, agree, strict=True))
    merged = sum(np.where(each, x, 0.0) for each, x in zip(agree, total, strict=True))
    return base + merged / np.where(divisor == 0, 1.0, divisor)


def entry(model: str, **parameters: float) -> dict[str, Any]:
    """An item of `models`."""
    return {"model": model, "parameters": parameters} if parameters else {"model": model}


METHODS = {
    "linear": Method(
        recipe={
            "merge_method": "linear",
            "models": [entry("a", weight=0.4), entry("b", weight=0.6)],
        },
        merge=lambda a, b, c: 0.4 * a + 0.6 * b,
    ),
    "slerp": Method(
        recipe={
            "merge_method": "slerp",
            "base_model": "a",
            "models": [entry("a"), entry("b")],
            "parameters": {"t": 0.3},
        },
        merge=lambda a, b, c: slerp(a, b, 0.3),
    ),
    "task_arithmetic": Method(
        recipe={
            "merge_method": "task_arithmetic",
            "base_model": "c",
            "models": [entry("a", weight=0.7), entry("b", weight=-0.2)],
        },
        merge=lambda a, b, c: c + 0.7 * (a - c) - 0.2 * (b - c),
    ),
    "ties": Method(
        recipe={
            "merge_method": "ties",
            "base_model": "c",
            "models": [entry("a", weight=0.7, density=0.6), entry("b", weight=0.4, density=0.6)],
        },
        merge=lambda a, b, c: ties([a, b], c, [0.7, 0.4], 0.6),
    ),
}


def stack_recipe(family: Family) -> dict[str, Any]:
    """Layers of a under layers of b in every module with layers; others are whole, a's or b's."""
    recipe: dict[str, Any] = {"merge_method": "passthrough"}
    modules = {}
    for part in family.parts:
        if part.layers:
            slices = [
                {"sources": [{"model": model, "layer_range": list(layers)}]}
                for model, layers in zip("ab", part.ranges, strict=True)
            ]
            modules[part.module] = {"slices": slices}
        else:
            modules[part.module] = {"models": [entry("a" if part.before else "b")]}
    return recipe | (modules[None] if None in modules else {"modules": modules})


def stack_tensors(family: Family, a: Tensors, b: Tensors) -> Tensors:
    """What the recipe of `stack_recipe` makes."""
    wanted: Tensors = {}
    for part in family.parts:
        wanted |= {name: a[name] for name in part.before}
        wanted |= {name: b[name] for name in part.after}
        origins = [
            (model, i)
            for model, layers in zip((a, b), part.ranges, strict=True)
            for i in range(*layers)
        ]
        for k, (model, i) in enumerate(origins if part.layers else []):
            old, new = f"{part.layers}.{i}.", f"{part.layers}.{k}."
            wanted |= {
                new + name.removeprefix(old): x for name, x in model.items() if name.startswith(old)
            }
    return wanted


def read_model(folder: Path) -> Tensors:
    """Every tensor of a checkpoint folder, by name."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors
