"""Whether the work of an interrupted run is that of this one: same plan, inputs, versions and platform."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What a run says of itself beside its identity: the hash of the recipe and its settings, the inputs, and where it runs.
RECIPE, INPUTS, PLATFORM = "recipe", "inputs", "platform"


def refusal(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Why a run with the journal header `wanted` cannot go on with the work of one with the header `found`, worded to
    follow the folder's name; empty when it can. What `found` does not say is not compared.

    The hash of the plan comes last: it is another one too when inputs or versions are, and then these are to blame.
    """

    def differs(key: str) -> bool:
        return key in found and found[key] != wanted.get(key)

    if not differs(RECIPE):
        if differs(INPUTS):
            changed = _changed(found[INPUTS], wanted[INPUTS])
            return f"was left by an interrupted run, and its inputs have changed since ({changed})"
        for key in wanted:
            if key not in ("plan", RECIPE) and differs(key):
                return (
                    f"was left by an interrupted run under {key} {found[key]}, this is {wanted[key]}, which may round "
                    "otherwise; finish it there"
                )
    if differs(RECIPE) or differs("plan"):
        return "was left by an interrupted run of another recipe or other settings"
    return ""


def _changed(before: object, now: Mapping[str, Any]) -> str:
    """The first input file that is not what it was."""
    known = before if isinstance(before, dict) else {}
    return next(str(name) for name in {**known, **now} if known.get(name) != now.get(name))
