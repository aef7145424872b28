"""Steps of models that lie in several folders: each is written where the donor has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from jmerge.plan.steps import Step


def into_folders(steps: Iterable[Step], home: str, folders: Sequence[str]) -> list[Step]:
    """The steps with names and folders of the output.

    home: where tensors go that are in none of the `folders`, whose names begin with their folder.
    """
    return [_placed(step, home, folders) for step in steps]


def placed_name(name: str, home: str, folders: Sequence[str]) -> str:
    """The name of a tensor of one checkpoint with the folder that it is in, if any."""
    if not home or any(name.startswith(f"{folder}/") for folder in folders):
        return name
    return f"{home}/{name}"


def folder_of(name: str, home: str, folders: Sequence[str]) -> str:
    """The folder that the name of a placed tensor begins with; empty: it lies in none."""
    return next((each for each in (home, *folders) if each and name.startswith(f"{each}/")), "")


def _placed(step: Step, home: str, folders: Sequence[str]) -> Step:
    name = placed_name(step.tensor, home, folders)
    inner = folder_of(name, home, folders)
    return dataclasses.replace(
        step,
        name="/".join(filter(None, (step.output, name))),
        folder="/".join(filter(None, (step.output, inner))),
    )
