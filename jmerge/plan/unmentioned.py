"""Modules that a recipe leaves out are copied: a model without them would not load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from jmerge.dtypes import FLOATS, TensorSpec
from jmerge.plan.inputs import Gathered, Result
from jmerge.plan.kept import Kept
from jmerge.plan.models import read_of, stored_of
from jmerge.plan.notes import Notes
from jmerge.plan.places import Places
from jmerge.plan.precision import Precision
from jmerge.plan.steps import COPY, Step
from jmerge.plan.tables import Tables
from jmerge.plan.views import View
from jmerge.recipe.refs import ModelRef


class Unmentioned:
    """What becomes of the donor's modules that the recipe does not mention."""

    def __init__(
        self,
        views: Mapping[ModelRef, View],
        places: Places,
        kept: Kept,
        tables: Tables | None,
        precision: Precision,
        notes: Notes,
    ) -> None:
        self._views = views
        self._donor = next(iter(views.values()))
        self._places = places
        self._kept = kept
        self._tables = tables
        self._precision = precision
        self._notes = notes
        self._templates = {template.name: template for template in places.templates}

    def steps(self) -> Iterator[Step]:
        """The copies of their tensors; how many there are of each module is told."""
        skipped: dict[str, int] = {}
        for (template, layer), name in self._donor.names.items():
            module = self._donor.layout.roles[name].module
            if module in self._places.modules:
                continue
            why = f"module '{module}' is not in the recipe"
            if self._kept.coverage.stated:
                step = self._as_stated(name, template, layer, why)
            else:
                step = self._cast(name, template, why)
                skipped[module] = skipped.get(module, 0) + 1
            if step is not None and self._tables is not None and layer is None:
                found = [
                    (0, read) for read in step.inputs if not isinstance(read, Result | Gathered)
                ]
                step = self._tables.kept(step, self._templates[template], found)
            if step is not None:
                yield step
        for module, count in skipped.items():
            message = f"module '{module}' is not in the recipe"
            message += f"; its {count} tensors are copied from {self._donor.ref}"
            self._notes.warn(message, ("modules",))

    def _as_stated(self, name: str, template: str, layer: int | None, why: str) -> Step | None:
        """The copy of a tensor as `otherwise` says."""
        view = self._views[self._kept.coverage.keeper(self._notes.recipe.first_slice)]
        found = view.names.get((template, layer))
        stored = stored_of(view, found) if found else None
        return self._kept.unmentioned(name, stored, view.ref, why)

    def _cast(self, name: str, template: str, why: str) -> Step:
        """The copy of a tensor in the dtype of the output."""
        read = read_of(self._donor, name)
        dtype, kept = read.spec.dtype, ""
        if dtype in FLOATS and not self._donor.layout.roles[name].buffer:
            dtype, kept = self._precision.of(name, template, [read])
        return Step(
            name=name,
            spec=TensorSpec(dtype, read.spec.shape),
            inputs=(read,),
            base=None,
            method=COPY,
            numbers={},
            t=0.0,
            note="; ".join(filter(None, (why, kept))),
        )
