"""Tied output heads: which models have one, and what stands in for it.

When all models are tied, the head is stored as the donor stores it. When any has a head of its own, a head is
written, and the tied models contribute their embedding to it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

from jmerge.arch.infer import class_names
from jmerge.plan.notes import Notes
from jmerge.plan.views import Template, View
from jmerge.recipe.refs import ModelRef

# Classes of models without an output head; LMHeadModel and DoubleHeadsModel have one.
HEADLESS = re.compile(r"\w*(?<!Head)(?<!Heads)Model")


class Heads:
    """The heads of the input models; the first view is the donor's."""

    def __init__(self, views: Mapping[ModelRef, View]) -> None:
        self._views = tuple(views.values())
        self._names = {head for view in self._views for head in view.heads}
        donor = self._views[0]
        self._dropped = all(view.tied for view in self._views) and not donor.layout.heads

    def stand_in(self, view: View, template: Template) -> str | None:
        """The tensor that a model without the head `template` contributes to it: its embedding, or None."""
        classes = class_names(view.checkpoint.config)
        headless = HEADLESS.fullmatch(classes[0]) if classes else None
        if template.name in self._names and view.tied and not view.layout.heads and not headless:
            return view.layout.embeddings[0]
        return None

    def tied_away(self, view: View, name: str) -> bool:
        """Whether the stored head `name` is left out: equal to the embedding, and the donor stores none."""
        return self._dropped and name in view.layout.heads

    def written_with_table(self, written: Container[str], notes: Notes) -> tuple[str, str] | None:
        """Head and embedding when both are written, whose equality decides the tie; warns when models disagree."""
        heads = [head for view in self._views for head in view.heads if head in written]
        tables = [name for name in self._views[0].layout.embeddings if name in written]
        if not heads or not tables:
            return None
        lacking = ", ".join(str(view.ref) for view in self._views if not view.layout.heads)
        if lacking:
            message = f"{heads[0]} is written because not every model ties it to the embedding"
            notes.warn(f"{message}; the embedding stands in for it in {lacking}", ())
        return heads[0], tables[0]
