"""Tied output heads: which models have one, and what stands in for it.

When all models are tied, the head is stored as the donor stores it, and is what their embeddings become. When any has a
head of its own, a head is written, and the tied models contribute their embedding to it. Models that have no head,
such as classifiers, contribute nothing.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from jmerge.arch.ties import is_headless
from jmerge.plan.notes import Notes
from jmerge.plan.views import Template, View
from jmerge.recipe.refs import ModelRef


class Heads:
    """The heads of the input models; the first view is the donor's.

    Attributes:
      all_tied: the head of every model is its embedding.
    """

    def __init__(self, views: Mapping[ModelRef, View]) -> None:
        self._views = tuple(views.values())
        self._donor = self._views[0]
        self._names = {head for view in self._views for head in view.heads}
        self.all_tied = all(view.tied for view in self._views)
        self._dropped = self.all_tied and not self._donor.layout.heads

    def stand_in(self, view: View, template: Template) -> str | None:
        """The tensor that a model without the head `template` contributes to it: its embedding, or None."""
        if self._dropped or template.name not in self._names:
            return None
        return view.layout.embeddings[0] if view.tied and not view.layout.heads else None

    def tied_away(self, view: View, name: str) -> bool:
        """Whether the stored head `name` is left out: equal to the embedding, and the donor stores none."""
        return self._dropped and name in view.layout.heads

    def twin(self, template: str) -> str | None:
        """The embedding that the head `template` is in all models, so that it is merged like it; None when it is not."""
        if self.all_tied and template in self._donor.layout.heads[:1]:
            return self._donor.layout.embeddings[0]
        return None

    def has_place(self, template: str) -> bool | None:
        """Whether the donor's class has a place for the head `template`; None when that is no head."""
        if template not in self._names:
            return None
        donor = self._donor
        return bool(donor.layout.heads) or not is_headless(donor.config, donor.layout)

    def written_with_table(self, written: Container[str], notes: Notes) -> tuple[str, str] | None:
        """Head and embedding when both are written and any model ties them, whose equality decides the tie; warns when
        models disagree.

        Where every model has a head of its own, what config.json says of the tie stays: it did not concern that head.
        """
        heads = [head for view in self._views for head in view.heads if head in written]
        tables = [name for name in self._donor.layout.embeddings if name in written]
        if not heads or not tables or not any(view.tied for view in self._views):
            return None
        lacking = [str(v.ref) for v in self._views if v.tied and not v.layout.heads]
        if lacking and not self.all_tied:
            message = f"{heads[0]} is written because not every model ties it to the embedding"
            stands = f"the embedding stands in for it in {', '.join(lacking)}"
            notes.warn(f"{message}; {stands}", ())
        return heads[0], tables[0]
