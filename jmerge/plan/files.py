"""What the choice of files of the models has to tell."""

from __future__ import annotations

from collections.abc import Mapping

from jmerge.ckpt.open import Checkpoint
from jmerge.plan.notes import Notes
from jmerge.recipe.refs import ModelRef


def tell_of_files(checkpoints: Mapping[ModelRef, Checkpoint], notes: Notes) -> None:
    """Warn of files that were passed over, and of a donor without config.json where another model has one."""
    for ref, checkpoint in checkpoints.items():
        for note in checkpoint.notes:
            notes.warn(f"{ref}: {note}", notes.recipe.first_path(ref))
    donor, *others = notes.recipe.models()
    described = [ref for ref in others if checkpoints[ref].config]
    if described and not checkpoints[donor].config:
        message = (
            f"'{donor}' gives the result its files and has no config.json, so the result has none "
            f"and transformers cannot load it; copy that of '{described[0]}' into '{donor}' if it fits"
        )
        notes.warn(message, notes.recipe.first_path(donor))
