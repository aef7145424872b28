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
