"""What merges of the families' models must make, in numpy float64: from the tensors of the input files, by their literal
names. Nothing of jmerge is used here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from familykit import Family, Tensors
from safetensors.numpy import load_file

HALF_ULP = (
    2.0**-24
)  # of float32: the most by which rounding once changes a number, as a share of it
ROUNDINGS = 8  # that an element goes through at the most, each in the worst direction
LINE = 0.9995  # the size of the cosine above which slerp takes the straight line
COSINE = 16 * HALF_ULP  # how far a cosine of float32 sums and its arc cosine are off at the most
NO_LENGTH = 1e-8  # a vector up to this long has no direction

# Methods: the recipe, and the same in numpy


class Merged(NamedTuple):
    """What a merge in float32 may make of a tensor: each element is `value`, or it is `other` where which of the two
    rests on rounding; but for `slack`, which is what rounding changes."""

    value: np.ndarray
    other: np.ndarray
    slack: np.ndarray

    def right(self, found: np.ndarray) -> np.ndarray:
        """Which elements of a tensor are as they may be."""
        last = np.finfo(found.dtype)
        slack = self.slack + last.eps / 2 * np.abs(self.value) + last.tiny
        near = [np.abs(found - each) <= slack for each in (self.value, self.other)]
        answer: np.ndarray = near[0] | near[1] | (found == self.value)
        return answer

    def either(self) -> int:
        """How many elements may be one number or another."""
        return int(np.count_nonzero(np.abs(self.value - self.other) > self.slack))


@dataclass(frozen=True, kw_only=True)
class Method:
    """A recipe for models a, b, c and what it may make of one tensor of each: one of several results, where a decision
    about the whole tensor rests on rounding. The first is that of exact numbers."""

    recipe: dict[str, Any]
    merge: Callable[[np.ndarray, np.ndarray, np.ndarray], list[Merged]]


def added(*terms: tuple[float, np.ndarray]) -> Merged:
    """The sum of tensors times their factors."""
    parts = [factor * tensor.astype(np.float64) for factor, tensor in terms]
    total = np.asarray(sum(parts))
    return Merged(total, total, rounded(*parts))


def rounded(*parts: np.ndarray) -> np.ndarray:
    """By how much rounding changes a sum."""
    return np.asarray(ROUNDINGS * HALF_ULP * sum(np.abs(part) for part in parts))


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> list[Merged]:
    """The point at the share `t` of the arc from a to b; of the line where they are nearly parallel or opposite, or so
    long that float32 has no number for their squares. The nearer to opposite, the more the cosine's last digits matter.
    """
    vectors = [x.astype(np.float64) for x in (a, b)]
    squares = [(x * x).sum() for x in vectors]
    line = added((1 - t, a), (t, b))
    if max(squares) > np.finfo(np.float32).max:
        return [line]
    lengths = [root if root > NO_LENGTH else 1.0 for root in np.sqrt(squares)]
    cosine = (vectors[0] * vectors[1]).sum() / lengths[0] / lengths[1]
    over = abs(cosine) - LINE
    if over > COSINE:
        return [line]

    def turned(cosine: float) -> Merged:
        angle = np.arccos(cosine)
        return added(
            (np.sin((1 - t) * angle) / np.sin(angle), a), (np.sin(t * angle) / np.sin(angle), b)
        )

    arc = turned(cosine)
    off = [np.abs(turned(cosine + sign * COSINE).value - arc.value) for sign in (-1, 1)]
    arc = arc._replace(slack=arc.slack + np.max(off, axis=0))
    if over <= -COSINE:
        return [arc]
    return [line, arc] if over > 0 else [arc, line]


def ties(
    models: list[np.ndarray], base: np.ndarray, weights: list[float], density: float
) -> list[Merged]:
    """Largest changes of each model, a vote on the sign, the mean of those that agree (arXiv 2306.01708).

    Changes are differences in float32 (rounded once, so that everyone has the same), the lower index first of equal
    ones. A vote is open where the weighted changes cancel to less than what rounding makes of them.
    """
    changes, votes, shares = [], [], []
    for model, factor in zip(models, weights, strict=True):
        change = model.astype(np.float32) - base.astype(np.float32)
        weight = float(np.float32(factor))
        kept = largest(np.abs(change), max(1, int(density * change.size)))
        changes.append(np.where(kept, change.astype(np.float64), 0))
        votes.append(weight * changes[-1])
        shares.append(weight * kept)
    total = np.asarray(sum(votes))
    # each product is rounded, and each sum but the last, which rounds to no other sign
    bound = (len(votes) - 1) * HALF_ULP * np.asarray(sum(np.abs(vote) for vote in votes))
    positive = total >= 0
    ways = []
    for sign in (positive, positive ^ (np.abs(total) <= bound)):
        agree = [np.where(sign, vote > 0, vote < 0) for vote in votes]
        merged = sum(np.where(each, vote, 0) for each, vote in zip(agree, votes, strict=True))
        divisor = sum(np.where(each, share, 0) for each, share in zip(agree, shares, strict=True))
        ways.append(base + merged / np.where(divisor == 0, 1.0, divisor))
    slack = rounded(base.astype(np.float64), np.max(np.abs(changes), axis=0))
    return [Merged(ways[0], ways[1], slack)]


def largest(sizes: np.ndarray, count: int) -> np.ndarray:
    """Which elements are the `count` largest, of equal ones those at the lower flat index."""
    flat = sizes.ravel()
    if count >= flat.size:
        return np.ones(sizes.shape, bool)
    bound = np.partition(flat, flat.size - count)[flat.size - count]
    kept = flat > bound
    kept[np.flatnonzero(flat == bound)[: count - np.count_nonzero(kept)]] = True
    return kept.reshape(sizes.shape)


def entry(model: str, **parameters: float) -> dict[str, Any]:
    """An item of `models`."""
    return {"model": model, "parameters": parameters} if parameters else {"model": model}


METHODS = {
    "linear": Method(
        recipe={
            "merge_method": "linear",
            "models": [entry("a", weight=0.4), entry("b", weight=0.6)],
        },
        merge=lambda a, b, c: [added((0.4, a), (0.6, b))],
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
        merge=lambda a, b, c: [added((0.5, c), (0.7, a), (-0.2, b))],
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
    return recipe | modules.get(None, {"modules": modules})


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
