"""What becomes of a tensor that only some of its sources have, by the kind of method."""

from __future__ import annotations

from typing import Literal, NamedTuple

from jmerge.methods.spec import Method


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
