"""The input models of a plan: what of them can be merged at all, and how a plan names them and their tensors."""

from __future__ import annotations

from collections.abc import Sequence

from jmerge.plan.inputs import Read, Stored
from jmerge.plan.notes import Notes
from jmerge.plan.sharded import why_sharded
from jmerge.plan.steps import InputFile, InputModel
from jmerge.plan.views import View
from jmerge.recipe.recipe import Recipe


def takes_over(recipe: Recipe) -> bool:
    """Whether a recipe only takes tensors over as they are, so that it is all the same what they stand for."""
    scopes = [recipe.parameters]
    for module, out_slice in recipe.slices():
        scopes += [module.parameters, out_slice.parameters]
        scopes += [source.parameters for source in out_slice.sources]
    return recipe.method == "passthrough" and not any("scale" in scope for scope in scopes)


def check_models(
    views: Sequence[View], guests: Sequence[View], recipe: Recipe, notes: Notes
) -> None:
    """Refuse revisions of models that have none, parts of models, and quantised weights, but for copying them as they are.

    guests: models that only fill tokens.
    """
    copies = takes_over(recipe)
    casts = bool(recipe.dtype or recipe.out_dtype)
    for view in (*views, *guests):
        ref = view.ref
        path = recipe.first_path(ref)
        if ref.revision is not None and view.checkpoint.source.revision is None:
            message = f"'{ref.path}' has no revision '{ref.revision}': only models of the Hub have"
            notes.fault(f"{message}; write the path alone", path)
        if reason := why_sharded(view, (other for other in views if other is not view)):
            notes.fault(f"'{ref}': {reason}", path)
        reason = view.quantised.reason
        if reason and not copies:
            hint = "merge the unquantised model (only plain passthrough can copy it)"
            notes.fault(f"'{ref}': {reason}; {hint}", path)
        elif reason and casts:
            hint = "remove dtype and out_dtype to copy its tensors as they are"
            notes.fault(f"'{ref}': {reason}; {hint}", path)
        elif view.quantised.left_over:
            kept = "" if view is not views[0] else "; the output's says nothing of it"
            notes.warn(f"'{ref}': {view.quantised.left_over_text()}{kept}", path)
    if copies:
        _check_alike(views, recipe, notes)


def _check_alike(views: Sequence[View], recipe: Recipe, notes: Notes) -> None:
    """Refuse to copy quantised layers beside others under one config.json."""
    sources = {source.ref for _, out_slice in recipe.slices() for source in out_slice.sources}
    donor, *rest = views
    for view in rest:
        if view.ref in sources and bool(view.quantised.reason) != bool(donor.quantised.reason):
            one, other = (view, donor) if view.quantised.reason else (donor, view)
            message = f"'{one.ref}' is quantised and '{other.ref}' is not"
            hint = "take all layers from models that are stored alike"
            notes.fault(
                f"{message}, and config.json can say one only; {hint}", recipe.first_path(view.ref)
            )


def read_of(view: View, name: str) -> Read:
    """A tensor of a model, as steps have it."""
    entry = view.checkpoint.index[name]
    return Read(model=view.number, name=name, file=entry.file, start=entry.start, spec=entry.spec)


def stored_of(view: View, name: str) -> Stored:
    """A tensor that `view.names` has, which the model may store in another form."""
    return view.converted.get(name) or read_of(view, name)


def input_model(view: View) -> InputModel:
    """A model, as plans name it."""
    files = tuple(
        InputFile(name=file.name, size=file.size, header_sha256=file.sha256)
        for file in view.checkpoint.files
    )
    return InputModel(ref=str(view.ref), path=str(view.checkpoint.path), files=files)
