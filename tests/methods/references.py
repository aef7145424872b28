"""The merge methods in plain float64 numpy, written from papers and formulas; nothing of jmerge is used here.

Each takes models [models, *shape], the base [*shape] or None, and the numbers that a recipe sets, by their names
there; defaults are those of MergeKit 0.1.5. It gives the merged tensor, base and all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def each(values: tuple[float, ...], models: np.ndarray) -> np.ndarray:
    """One number a model, shaped to multiply models [models, *shape]."""
    return np.reshape(np.asarray(values, np.float64), (-1, *[1] * (models.ndim - 1)))


def linear(models: np.ndarray, base: None, numbers: Mapping[str, Any]) -> np.ndarray:
    """sum w_m X_m, divided by sum w_m under `normalize` (default true)."""
    result = (each(numbers["weight"], models) * models).sum(axis=0)
    return result / sum(numbers["weight"]) if numbers.get("normalize", True) else result


def slerp(models: np.ndarray, base: np.ndarray, numbers: Mapping[str, Any]) -> np.ndarray:
    """[sin((1-t) a) B + sin(t a) C] / sin a for the angle a between B and C; a straight line where |cos a| > 0.9995.

    A norm up to 1e-8 counts as 1.
    """
    (model,), t = models, numbers["t"]
    norms = [np.sqrt((tensor**2).sum()) for tensor in (base, model)]
    first, second = (norm if norm > 1e-8 else 1.0 for norm in norms)
    cosine = np.clip((base / first * (model / second)).sum(), -1, 1)
    if abs(cosine) > 0.9995:
        return (1 - t) * base + t * model
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * base + np.sin(t * angle) * model) / np.sin(angle)


def task_arithmetic(models: np.ndarray, base: np.ndarray, numbers: Mapping[str, Any]) -> np.ndarray:
    """B + lambda sum w_m (X_m - B); the sum is divided by sum w_m under `normalize` (default false), unless that is
    nearer to zero than 1e-8."""
    change = (each(numbers["weight"], models) * (models - base)).sum(axis=0)
    share = sum(numbers["weight"])
    if numbers.get("normalize", False) and abs(share) >= 1e-8:
        change = change / share
    return base + numbers.get("lambda", 1.0) * change


def passthrough(models: np.ndarray, base: None, numbers: Mapping[str, Any]) -> np.ndarray:
    """The only model X, or scale X where `scale` is set."""
    (model,), scale = models, numbers.get("scale")
    return model if scale is None else scale[0] * model


def largest(change: np.ndarray, density: tuple[float, ...]) -> np.ndarray:
    """The trunc(density n) largest of each model's changes, one at least of a positive share; equal ones by place."""
    kept = np.zeros_like(change)
    flat, out = change.reshape(len(change), -1), kept.reshape(len(change), -1)
    for i, share in enumerate(density):
        count = 0 if share <= 0 else min(flat.shape[1], max(1, int(share * flat.shape[1])))
        chosen = np.argsort(-np.abs(flat[i]), kind="stable")[:count]
        out[i][chosen] = flat[i][chosen]
    return kept


def restored(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """What is left of each model's changes, times what gives it the L1 norm it had; norms below 1e-7 stay."""
    axes = tuple(range(1, before.ndim))
    norms = [np.abs(changes).sum(axis=axes, keepdims=True) for changes in (before, after)]
    usable = np.minimum(*norms) >= 1e-7
    return after * np.where(usable, norms[0] / np.where(usable, norms[1], 1), 1)


def agreed(change: np.ndarray, weight: tuple[float, ...], normalize: bool) -> np.ndarray:
    """sum of the w_m D_m that have the sign of sum w_m D_m (zero counts as positive); divided by their sum of w_m."""
    votes = each(weight, change) * change
    agree = np.sign(votes) == np.where(votes.sum(axis=0) >= 0, 1, -1)
    merged, share = ((agree * values).sum(axis=0) for values in (votes, each(weight, change)))
    return merged / np.where(share == 0, 1, share) if normalize else merged


def ties(models: np.ndarray, base: np.ndarray, numbers: Mapping[str, Any]) -> np.ndarray:
    """B + lambda times what agrees of the largest changes; normalize defaults to true, rescale to false."""
    weight, change = numbers["weight"], models - base
    kept = largest(change, numbers.get("density", (1.0,) * len(weight)))
    kept = restored(change, kept) if numbers.get("rescale", False) else kept
    return base + numbers.get("lambda", 1.0) * agreed(kept, weight, numbers.get("normalize", True))


def uniform(key: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """mix(mix(i ^ k0) + k1) of 24 bits, for every flat index i below 2^32 of a tensor."""

    def mix(x: np.ndarray) -> np.ndarray:
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
        return x ^ (x >> np.uint32(16))

    index = np.arange(np.prod(shape, dtype=int), dtype=np.uint32)
    return ((mix(mix(index ^ key[0]) + key[1]) >> np.uint32(8)) * 2.0**-24).reshape(shape)


def dropped(change: np.ndarray, numbers: Mapping[str, Any], keys: np.ndarray) -> np.ndarray:
    """DARE: each change kept with chance `density`, and the norms restored unless `rescale` is false."""
    chance = each(numbers.get("density", (1.0,) * len(change)), change)
    drawn = np.stack([uniform(key, change.shape[1:]) for key in keys])
    kept = np.where(drawn < chance, change, 0)
    return restored(change, kept) if numbers.get("rescale", True) else kept


def dare_linear(
    models: np.ndarray, base: np.ndarray, numbers: Mapping[str, Any], keys: np.ndarray
) -> np.ndarray:
    """Task arithmetic of what is left of the changes."""
    return task_arithmetic(base + dropped(models - base, numbers, keys), base, numbers)


def dare_ties(
    models: np.ndarray, base: np.ndarray, numbers: Mapping[str, Any], keys: np.ndarray
) -> np.ndarray:
    """B + lambda times what agrees of what is left of the changes; normalize defaults to false."""
    kept = dropped(models - base, numbers, keys)
    merged = agreed(kept, numbers["weight"], numbers.get("normalize", False))
    return base + numbers.get("lambda", 1.0) * merged
