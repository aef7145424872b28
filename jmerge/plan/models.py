"""The input models of a plan: what of them can be merged at all, and how a plan names them and their tensors."""

from __future__ import annotations

from collections.abc import Iterable

from jmerge.methods.spec import Method
from jmerge.plan.notes import Notes
from jmerge.plan.steps import InputFile, InputModel, Read, Stored
from jmerge.plan.views import View
from jmerge.recipe.recipe import Recipe


def check_models(views: Iterable[View], recipe: Recipe, method: Method, notes: Notes) -> None:
    """Refuse revisions of models that have none, and quantised weights, but for copying them as they are."""
    scopes = [recipe.parameters]
    for module, out_slice in recipe.slices():
        scopes += [module.parameters, out_slice.parameters]
        scopes += [source.parameters for source in out_slice.sources]
    copies = method.name == "passthrough" and not any("scale" in scope for scope in scopes)
    casts = bool(recipe.dtype or recipe.out_dtype)
    for view in views:
        ref = view.ref
        path = recipe.first_path(ref)
        if ref.revision is not None and view.checkpoint.source.revision is None:
            message = f"'{ref.path}' has no revision '{ref.revision}': only models of the Hub have"
            notes.fault(f"{message}; write the path alone", path)
        reason = view.quantized()
        if reason and not copies:
            hint = "merge the unquantised model (only plain passthrough can copy it)"
            notes.fault(f"'{ref}': {reason}; {hint}", path)
        elif reason and casts:
            hint = "remove dtype and out_dtype to copy its tensors as they are"
            notes.fault(f"'{ref}': {reason}; {hint}", path)


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
