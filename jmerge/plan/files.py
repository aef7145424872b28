"""The files of models beside their weights: which of them the output has, and what there is to tell of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jmerge.ckpt.donor import companions, is_tokenizer_file
from jmerge.ckpt.inside import inside
from jmerge.ckpt.open import Checkpoint
from jmerge.ckpt.sentence import main_module, read_modules
from jmerge.plan.notes import Notes
from jmerge.plan.steps import LeftFile, Plan, TakenFile
from jmerge.recipe.refs import ModelRef

OTHER_TOKENS = "the tokens are those of {}"
NO_LONGER = "no longer true of the tokens"


class Carried(NamedTuple):
    """The files of models that come along, and those of the donor that stay behind."""

    taken: tuple[TakenFile, ...]  # in name order
    left: tuple[LeftFile, ...]  # in name order


def carried_files(plan: Plan) -> Carried:
    """The files that come along: the donor's, but those of the tokenizer from the model whose tokens the output has, as
    edited. Lists folders, and reads no more than configs."""
    donor = plan.source(0)
    weights = [file.name for file in plan.models[0].files]
    found = companions(donor, read_modules(donor) if plan.modules else (), weights)
    left, tokens = dict(found.left), plan.tokens
    taken = {name: TakenFile(name, donor, name, None) for name in found.taken}
    if tokens is not None:
        home = f"{plan.home}/" if plan.home else ""
        label = plan.models[tokens.donor]
        owner = plan.source(tokens.donor)
        main = main_module(read_modules(owner))
        place = inside(owner, main.folder if main else "")
        for name in [name for name in taken if is_tokenizer_file(name, plan.home)]:
            del taken[name]
            left[name] = OTHER_TOKENS.format(label.ref)
        for name in companions(place).taken:
            if is_tokenizer_file(name):
                taken[home + name] = TakenFile(home + name, place, name, None)
        for name, data in tokens.edits.written.items():
            taken[home + name] = TakenFile(home + name, place, name, data)
        for name in tokens.edits.left_out:
            if taken.pop(home + name, None) and tokens.donor == 0:
                left[home + name] = NO_LONGER
    return Carried(
        tuple(taken[name] for name in sorted(taken)),
        tuple(LeftFile(name=name, reason=left[name]) for name in sorted(left) if name not in taken),
    )


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
