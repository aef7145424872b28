"""Whether what is there already is of the same merge: the work of an interrupted run, or a result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What a run says of itself beside its identity: the hash of the recipe, the arguments that change the result, the inputs,
# and where it runs.
RECIPE, INPUTS, PLATFORM = "recipe", "inputs", "platform"
SEED, SHARD_SIZE = "seed", "shard_size"


def refusal(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Why a run with the journal header `wanted` cannot go on with the work of one with the header `found`, worded to
    follow the folder's name; empty when it can. What `found` does not say is not compared.

    The hash of the plan comes last: it is another one too when inputs or versions are, and then these are to blame.
    """

    def differs(key: str) -> bool:
        return key in found and found[key] != wanted.get(key)

    if not differs(RECIPE):
        flags = [key for key in (SEED, SHARD_SIZE) if differs(key)]
        if flags:
            there, here = (" ".join(f"{k}={of[k]}" for k in flags) for of in (found, wanted))
            return f"was left by an interrupted run with {there}; this run has {here}"
        if differs(INPUTS):
            changed = _changed(found[INPUTS], wanted[INPUTS])
            return f"was left by an interrupted run, and its inputs have changed since ({changed})"
        for key in wanted:
            if key not in ("plan", RECIPE) and differs(key):
                return (
                    f"was left by an interrupted run with {key} {found[key]}; this run has {wanted[key]}, where the last bits "
                    "may differ; finish it there"
                )
    if differs(RECIPE) or differs("plan"):
        return "was left by an interrupted run with another recipe or other settings"
    return ""


def other_result(
    ledger: Mapping[str, Any],
    recipe: str,
    seed: int,
    files: Mapping[str, str],
    versions: Mapping[str, Any],
) -> str:
    """What a folder with this ledger holds in place of the result that a run is about to make, worded to follow `holds`.

    Args:
      recipe, seed: of the run.
      files: which file each tensor will be in.
      versions: of what makes the result, by name, as a ledger has them.
    """
    if ledger.get("recipe") != recipe:
        return "another recipe's result"
    there = {name: entry["file"] for name, entry in ledger["tensors"].items()}
    found = []
    if ledger.get("seed") != seed:
        found.append(f"with {SEED}={ledger.get('seed')}, not {seed}")
    if there != files and there.keys() == files.keys():
        counts = [len(set(each.values())) for each in (there, files)]
        noun = "file" if counts[0] == 1 else "files"
        cut = f"{counts[0]} {noun}, not {counts[1]}" if counts[0] != counts[1] else "other files"
        found.append(f"in {cut}, by another {SHARD_SIZE}=")
    if not found:
        found = [
            f"by {name} {ledger.get(name)}, not {version}"
            for name, version in versions.items()
            if ledger.get(name) != version
        ]
    return f"this recipe's result {' and '.join(found) or 'from other inputs'}"


def _changed(before: object, now: Mapping[str, Any]) -> str:
    """The first input file that is not what it was."""
    known = before if isinstance(before, dict) else {}
    return next(str(name) for name in {**known, **now} if known.get(name) != now.get(name))
