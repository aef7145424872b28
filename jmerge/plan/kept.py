"""Tensors that a recipe does not merge: copies of those of the base or the first model, or nothing with a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jmerge.arch.infer import class_names
from jmerge.arch.place import no_place
from jmerge.plan.coverage import Coverage
from jmerge.plan.findings import Findings
from jmerge.plan.heads import Heads
from jmerge.plan.inputs import Stored
from jmerge.plan.places import Target
from jmerge.plan.steps import COPY, Step
from jmerge.plan.views import View
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef

# The sources that have a tensor: position in the slice, where it lies.
Found = Sequence[tuple[int, Stored]]


class Kept:
    """Decides which tensors are merged, and makes the steps of the others.

    Attributes:
      coverage: what the recipe's patterns say.
      left: why tensors are not merged, by number of the model and name.
    """

    def __init__(
        self, recipe: Recipe, views: Mapping[ModelRef, View], heads: Heads, findings: Findings
    ) -> None:
        self.coverage = Coverage(recipe)
        self.left: dict[tuple[int, str], str] = {}
        self._recipe = recipe
        self._views = views
        self._heads = heads
        self._findings = findings
        self._donor = next(iter(views.values()))
        self._known = {template for template, _ in self._donor.names}

    def is_merged(self, target: Target, found: Found) -> bool:
        """Whether a tensor that these sources have is merged by the recipe's method."""
        return self._why(target, found) is None and not self._is_strange(target, found)

    def step(self, target: Target, found: Found) -> Step | None:
        """The copy of a tensor that is not merged, as `otherwise` says; None when nothing is written, which is noted."""
        why = self._why(target, found)
        if why is None:
            self._tell_strange(target, found)
            return None
        for read in (read for _, stored in found for read in stored.reads):
            self.left[read.model, read.name] = f"{target.name} is not merged: {why}"
        if self._recipe.otherwise == "error":
            self.coverage.refuse(target.name, why)
            return None
        sources = target.place.out_slice.sources
        keeper = self.coverage.keeper(target.place.out_slice)
        reads = [read for i, read in found if sources[i].ref == keeper]
        if not reads:
            self.coverage.absent(target.name, keeper, why)
            return None
        if self._is_tied(target, reads[0], self._views[keeper]):
            return None
        layer = target.place.layers[[source.ref for source in sources].index(keeper)]
        own = self._donor.names.get((target.template.name, layer))
        return self._copy(target.name, reads[0], keeper, why, own)

    def unmentioned(
        self, name: str, read: Stored | None, keeper: ModelRef, why: str
    ) -> Step | None:
        """The copy of a tensor of a module that the recipe leaves out; `read` is that of `keeper`."""
        why = self.coverage.excluded(name) or why
        if self._recipe.otherwise == "error":
            self.coverage.refuse(name, why)
        elif read is None:
            self._findings.refused(name, str(keeper), why, ("otherwise",))
        else:
            return self._copy(name, read, keeper, why, name)
        return None

    def _why(self, target: Target, found: Found) -> str | None:
        """Why a tensor is not merged; None when nothing speaks against it."""
        return self.coverage.excluded(target.name) or self._beside_map(target, found)

    def _beside_map(self, target: Target, found: Found) -> str | None:
        """Why a tensor is not merged that only one side of a map has; None when it is merged.

        A model of another structure that is mapped into the donor has no vision tower, no decoder. Nothing is merged
        then, where a method might multiply the donor's tensor by its weight.
        """
        sources = target.place.out_slice.sources
        having = {sources[i].ref for i, _ in found}
        lacking = [source for source in sources if source.ref not in having]
        mapped = any(self._views[source.ref].prefixes for source in lacking)
        if having == {self.coverage.keeper(target.place.out_slice)} and lacking:
            if mapped or self._recipe.otherwise:
                return f"not in {', '.join(dict.fromkeys(str(s.ref) for s in lacking))}"
        return None

    def _is_strange(self, target: Target, found: Found) -> bool:
        """Whether the donor, whose config describes the output, has nothing like a tensor and no place for it: because
        only mapped models have it, or it is in the folder of a module, or by class or config.

        A head has a place where the donor's class has a head: it unties the donor's.
        """
        name, sources = target.template.name, target.place.out_slice.sources
        if name in self._known:
            return False
        place = self._heads.has_place(name)
        if place is None:
            having = [self._views[sources[i].ref] for i, _ in found]
            place = not all(self._why_strange(view, target) is not None for view in having)
        return not place

    def _why_strange(self, view: View, target: Target) -> str | None:
        """Why the donor has no place for a tensor of a model, which may be said by the map or by the folder alone: an
        empty text; None where nothing says that."""
        name = target.template.name
        if view.prefixes or name.startswith(tuple(f"{each}/" for each in view.checkpoint.folders)):
            return ""
        if self._heads.has_place(name) is False:
            named = class_names(self._donor.config)[:1] or [str(self._donor.ref)]
            return f"{named[0]} has no head for tokens"
        stacks = tuple(f"{prefix}." for prefix in self._donor.layout.stacks if prefix)
        behind = target.template.stack is None and name.startswith(stacks)
        return no_place(name, view.config, self._donor.config, behind=behind)

    def _tell_strange(self, target: Target, found: Found) -> None:
        """Buffers are left out; anything else is a fault."""
        sources = target.place.out_slice.sources
        for i, read in found:
            if target.template.buffer:
                why = f"a buffer that {self._donor.ref} does not have"
                self.left |= {(each.model, each.name): why for each in read.reads}
            else:
                why = self._why_strange(self._views[sources[i].ref], target) or ""
                self._findings.strange(sources[i].ref, read.name, target.name, why)

    def _is_tied(self, target: Target, read: Stored, keeper: View) -> bool:
        """Whether a head is not written because it is the embedding, and that is not merged either."""
        if read.name != self._heads.stand_in(keeper, target.template):
            return False
        table = next(template for (template, _), name in keeper.names.items() if name == read.name)
        return self.coverage.excluded(table) is not None

    def _copy(
        self, name: str, read: Stored, keeper: ModelRef, why: str, own: str | None
    ) -> Step | None:
        """The copy; `own` is its like in the donor, whose config.json has to describe it."""
        shape = self._donor.checkpoint.index[own].spec.shape if own else read.spec.shape
        if read.spec.shape != shape:
            shapes = f"{list(read.spec.shape)} in {keeper} and {list(shape)} in {self._donor.ref}"
            self._findings.mismatch(name, keeper, shapes)
            return None
        return Step(
            name=name,
            spec=read.spec,
            inputs=(read,),
            base=None,
            method=COPY,
            numbers={},
            t=0.0,
            note=f"as in {keeper}: {why}",
        )
