"""What becomes of a tensor that only some of its sources have, by the kind of method.

Never is it made as if the others had zeros. Means are taken over those that have it; a sum whose weights nothing
normalises gets weights that make up for the others, or is refused. A change that a model lacks is none, so methods on
changes from a base add those that there are to the base's tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from jmerge.methods.spec import Method

WEIGHT = "weight"
UNKNOWN_LENGTH = "the weights are not normalised, so nothing says how much the others count"
ONE = 1e-6  # how far from 1 weights may sum that are meant to make a mean


class Verdict(NamedTuple):
    """`run` the method on those present, `copy` the only one (or the base), or `refuse` with a reason."""

    action: Literal["run", "copy", "refuse"]
    reason: str = ""


def judge(method: Method, has_base: bool, models: int, without: int) -> Verdict:
    """The verdict when `models` of the models have the tensor and `without` lack it, and the base has it or not (or
    there is none).

    Called only when at least one source has the tensor and at least one lacks it. Methods to which the base is an
    input like any other average over those present; one tensor alone is taken as it is by methods that turn one
    model towards another; methods that work on changes from the base need the base's tensor.
    """
    low, _ = method.counts
    if method.base == "input":
        return Verdict("run") if models >= low else Verdict("refuse", "no source has it")
    if has_base and models == 0:
        return Verdict("copy", "only the base has it")
    if method.takes == "base, models" and not has_base and models == 1:
        return Verdict("copy", "only one source has it")
    if method.base == "needed" and not has_base:
        return Verdict("refuse", "the base lacks it, so there is nothing to take the change from")
    if models < low:
        return Verdict("refuse", f"{method.counts_text()} must have it")
    if method.of_model and without:
        return Verdict(
            "refuse", f"'{method.name}' looks at whole models, so all of them must have it"
        )
    return Verdict("run")


def made_up(weights: Sequence[float], present: Sequence[int]) -> tuple[tuple[float, ...], Verdict]:
    """The weights of the models at positions `present` in a sum that is not normalised, and whether they are known.

    They stay where they sum to 1, as in base + change where only the base has the tensor. Where all `weights` sum to 1
    the sum is a mean, and so it is of those that have the tensor. Otherwise the sum is longer or shorter than its models
    on purpose, and how much of that is due to those that lack the tensor is not known.
    """
    own = tuple(weights[i] for i in present)
    if abs(sum(own) - 1) <= ONE:
        return own, Verdict("run")
    if abs(sum(weights) - 1) <= ONE and abs(sum(own)) > ONE:
        made = tuple(weight / sum(own) for weight in own)
        return made, Verdict("run", "merged from the others, whose weights make up for it")
    return own, Verdict("refuse", UNKNOWN_LENGTH)
