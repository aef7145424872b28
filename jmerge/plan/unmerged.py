"""Tensors that no method merges: what the recipe leaves out, buffers and counters, and what no step reads.

They are copies of those of the base or the first model, or are left out with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from jmerge.arch.infer import class_names, is_computed
from jmerge.arch.place import no_place
from jmerge.dtypes import FLOATS, TensorSpec
from jmerge.plan.inputs import Stored
from jmerge.plan.outcomes import (
    Cause,
    Finding,
    Lacking,
    OtherShape,
    Outcome,
    Scene,
    excepting_only,
    names_of,
    shapes_text,
)
from jmerge.plan.pairing import View, map_path
from jmerge.plan.problems import (
    Pattern,
    PlanProblem,
    and_more,
    any_layer,
    error,
    patterns,
    unmatched,
    warning,
)
from jmerge.plan.steps import COPY, Step
from jmerge.plan.targets import Heads, Target, Views
from jmerge.recipe.recipe import OutSlice, Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import Path

COUNTER = re.compile(r"(^|_)(counts?|counter|steps?|seen|tracked|tokens_per_\w+)$")
MASK = re.compile(r"(?<![a-z])mask$")


@dataclass(frozen=True)
class Strange(Cause):
    """The donor lacks a tensor of a model and has no place for it; details: whose it is, its name there, and why."""

    def tell(self, found: Sequence[Finding], scene: Scene) -> Iterator[PlanProblem]:
        """One error for each model."""
        donor = next(iter(scene.views))
        causes: dict[tuple[ModelRef, str], dict[str, str]] = {}
        for finding in found:
            ref, own, why = finding.detail
            causes.setdefault((ref, why), {})[own] = finding.name
        by_model: dict[ModelRef, dict[str, tuple[str, str]]] = {}
        for (ref, why), names in causes.items():
            by_model.setdefault(ref, {}).update({own: (name, why) for own, name in names.items()})
        line = excepting_only([name for names in causes.values() for name in names.values()], scene)
        for ref, tensors in by_model.items():
            own, (name, why) = next(iter(tensors.items()))
            spelt = f"{own} of {ref}" + (f", mapped to {name}," if own != name else "")
            more = f" (as are {len(tensors) - 1} more)" if len(tensors) > 1 else ""
            message = f"{spelt} is not a tensor of {donor}{more}" + (f": {why}" if why else "")
            step = "" if why else "map it to one, or "
            step += f"leave it out with {line}"
            if why and len(by_model) == 1 and _could_be_donor(scene.views[ref], scene.views[donor]):
                place = "make it the base_model" if scene.recipe.base else "list it first"
                step += f", or {place}, so that the output has the config.json of {ref}"
            yield error("JM215", f"{message}; {step}", map_path(ref, scene.recipe))


@dataclass(frozen=True)
class NotMerged(Cause):
    """A tensor is not merged though the recipe says `otherwise: error`."""

    why: str

    def tell(self, found: Sequence[Finding], scene: Scene) -> Iterator[PlanProblem]:
        """One error."""
        message = f"{and_more(names_of(found))}: {self.why}, so not merged"
        yield error("JM220", f"{message}; 'otherwise: base' would copy the base's", ("otherwise",))


@dataclass(frozen=True)
class NotWritten(Cause):
    """A tensor is not merged, and the model that it would be copied from lacks it."""

    ref: ModelRef
    why: str

    def tell(self, found: Sequence[Finding], scene: Scene) -> Iterator[PlanProblem]:
        """One warning."""
        names = and_more(names_of(found))
        message = f"{names}: {self.why} and not in {self.ref}, so not in the output"
        yield warning("JM221", message, ())


@dataclass(frozen=True)
class OtherKind(Cause):
    """A tensor is a float in one model and not in another, or other things that cannot be one tensor."""

    message: str
    path: Path

    def tell(self, found: Sequence[Finding], scene: Scene) -> Iterator[PlanProblem]:
        """One error."""
        name, *more = names_of(found)
        count = f" ({len(more)} more like it)" if more else ""
        kinds = ", ".join(dict.fromkeys(map(any_layer, (name, *more))))
        hint = f"to take them from one model, write 'except: [{kinds}]'"
        yield error("JM128", f"{name} {self.message}{count}; {hint}", self.path)


@dataclass(frozen=True)
class Counter(Cause):
    """A counter is taken from one of several models."""

    ref: ModelRef

    def tell(self, found: Sequence[Finding], scene: Scene) -> Iterator[PlanProblem]:
        """One warning."""
        what = "counters are" if len(found) > 1 else "a counter is"
        message = f"{and_more(names_of(found))}: {what} not merged; taken from {self.ref}"
        yield warning("JM231", message, ())


@dataclass(frozen=True)
class Coverage:
    """Which tensors a recipe merges, and whose bytes the rest are: `only`, `except` and `otherwise`."""

    recipe: Recipe

    @cached_property
    def _only(self) -> list[Pattern]:
        return patterns(self.recipe, "only", self.recipe.only)

    @cached_property
    def _except(self) -> list[Pattern]:
        return patterns(self.recipe, "except", self.recipe.excluded)

    @property
    def stated(self) -> bool:
        """Whether the recipe says that some tensors are not merged, or what becomes of those."""
        return bool(self._only or self._except or self.recipe.otherwise)

    def excluded(self, name: str) -> str | None:
        """Which key keeps the output tensor `name` from being merged; None when none does."""
        if self._only and not any(each.regex.match(name) for each in self._only):
            return "not in 'only'"
        return "in 'except'" if any(each.regex.match(name) for each in self._except) else None

    def keeper(self, out_slice: OutSlice) -> ModelRef:
        """The model whose tensors are taken where nothing is merged: the slice's base if any, else its first."""
        if out_slice.base is not None and self.recipe.otherwise != "first":
            return out_slice.base
        return out_slice.sources[0].ref

    def problems(self, asked: Sequence[str]) -> Iterator[PlanProblem]:
        """Patterns that match none of the tensors that the output may have."""
        return unmatched([*self._only, *self._except], asked, "of the output")


@dataclass(frozen=True)
class Unmerged:
    """Decides which tensors are merged by the recipe's method, and what becomes of the others."""

    recipe: Recipe
    views: Views
    heads: Heads

    @cached_property
    def coverage(self) -> Coverage:
        """What the recipe's patterns say."""
        return Coverage(self.recipe)

    @cached_property
    def _donor(self) -> View:
        return next(iter(self.views.values()))

    @cached_property
    def _known(self) -> set[str]:
        return {template for template, _ in self._donor.names}

    def outcome(self, target: Target) -> Outcome | None:
        """What becomes of a tensor that is not merged, as `otherwise` says; None for one that is merged."""
        why = self.coverage.excluded(target.name) or self._beside_map(target)
        if why is None:
            return self._strange(target) if self._is_strange(target) else None
        reads = [read for _, stored in target.found for read in stored.reads]
        reason = f"{target.name} is not merged: {why}"
        left = {(read.model, read.name): reason for read in reads}
        if self.recipe.otherwise == "error":
            return Outcome(findings=(Finding(NotMerged(why), target.name),), left=left)
        sources = target.place.out_slice.sources
        keeper = self.coverage.keeper(target.place.out_slice)
        read = next((read for i, read in target.found if sources[i].ref == keeper), None)
        if read is None:
            return Outcome(findings=(Finding(NotWritten(keeper, why), target.name),), left=left)
        if self._is_tied(target, read, self.views[keeper]):
            return Outcome(left=left)
        layer = target.place.layers[[source.ref for source in sources].index(keeper)]
        own = self._donor.names.get((target.template.name, layer))
        return self._copy(target.name, read, keeper, why, own)._replace(left=left)

    def unmentioned(self, name: str, read: Stored | None, keeper: ModelRef, why: str) -> Outcome:
        """What becomes of a tensor of a module that the recipe leaves out; `read` is that of `keeper`."""
        why = self.coverage.excluded(name) or why
        if self.recipe.otherwise == "error":
            return Outcome(findings=(Finding(NotMerged(why), name),))
        if read is None:
            return Outcome(findings=(Finding(Lacking(str(keeper), why, ("otherwise",)), name),))
        return self._copy(name, read, keeper, why, name)

    def _beside_map(self, target: Target) -> str | None:
        """Why a tensor is not merged that only one side of a map has; None when it is merged.

        A model of another structure that is mapped into the donor has no vision tower, no decoder. Nothing is merged
        then, where a method might multiply the donor's tensor by its weight.
        """
        sources = target.place.out_slice.sources
        if len(target.found) == len(sources):
            return None
        having = {sources[i].ref for i, _ in target.found}
        lacking = [source.ref for source in sources if source.ref not in having]
        mapped = any(self.views[ref].prefixes for ref in lacking)
        if having == {self.coverage.keeper(target.place.out_slice)} and lacking:
            if mapped or self.recipe.otherwise:
                return f"not in {', '.join(dict.fromkeys(map(str, lacking)))}"
        return None

    def _is_strange(self, target: Target) -> bool:
        """Whether the donor, whose config describes the output, has nothing like a tensor and no place for it: because
        only mapped models have it, or it is in the folder of a module, or by class or config.

        A head has a place where the donor's class has a head: it unties the donor's.
        """
        name, sources = target.template.name, target.place.out_slice.sources
        if name in self._known:
            return False
        place = self.heads.has_place(name)
        if place is None:
            having = [self.views[sources[i].ref] for i, _ in target.found]
            place = not all(self._why_strange(view, target) is not None for view in having)
        return not place

    def _why_strange(self, view: View, target: Target) -> str | None:
        """Why the donor has no place for a tensor of a model, which may be said by the map or by the folder alone: an
        empty text; None where nothing says that."""
        name = target.template.name
        if view.prefixes or name.startswith(tuple(f"{each}/" for each in view.checkpoint.folders)):
            return ""
        if self.heads.has_place(name) is False:
            named = class_names(self._donor.config)[:1] or [str(self._donor.ref)]
            return f"{named[0]} has no head for tokens"
        stacks = tuple(f"{prefix}." for prefix in self._donor.layout.stacks if prefix)
        behind = target.template.stack is None and name.startswith(stacks)
        return no_place(name, view.config, self._donor.config, behind=behind)

    def _strange(self, target: Target) -> Outcome:
        """Buffers are left out; anything else is an error."""
        sources = target.place.out_slice.sources
        if target.template.buffer:
            why = f"a buffer that {self._donor.ref} does not have"
            reads = [read for _, stored in target.found for read in stored.reads]
            return Outcome(left={(read.model, read.name): why for read in reads})
        found = []
        for i, read in target.found:
            why = self._why_strange(self.views[sources[i].ref], target) or ""
            found.append(Finding(Strange(), target.name, (sources[i].ref, read.name, why)))
        return Outcome(findings=found)

    def _is_tied(self, target: Target, read: Stored, keeper: View) -> bool:
        """Whether a head is not written because it is the embedding, and that is not merged either."""
        if read.name != self.heads.stand_in(keeper, target.template):
            return False
        table = next(template for (template, _), name in keeper.names.items() if name == read.name)
        return self.coverage.excluded(table) is not None

    def _copy(
        self, name: str, read: Stored, keeper: ModelRef, why: str, own: str | None
    ) -> Outcome:
        """The copy; `own` is its like in the donor, whose config.json has to describe it."""
        shape = self._donor.checkpoint.index[own].spec.shape if own else read.spec.shape
        if read.spec.shape != shape:
            shapes = shapes_text(read.spec.shape, keeper, shape, self._donor.ref)
            return Outcome(findings=(Finding(OtherShape(keeper), name, shapes),))
        return Outcome(copy_of(name, read.spec, (read,), f"as in {keeper}: {why}"))


def copy_of(
    name: str, spec: TensorSpec, inputs: tuple[Stored, ...], note: str, t: float = 0.0
) -> Step:
    """The step that copies a tensor."""
    return Step(
        name=name,
        spec=spec,
        inputs=inputs,
        base=None,
        method=COPY,
        hyperparameters={},
        t=t,
        note=note,
    )


def copy_untrained(target: Target) -> Outcome:
    """The copy of a tensor that is not trained: of the base's, or else of the first that there is.

    Floats are buffers by their names, which models store as they please; so are masks, as numbers, bytes or flags. Whole
    numbers have to be equal in all models, which is seen when they are read; but one alone is a counter, such as the
    batches that a BatchNorm has seen, and differs as soon as models were trained for another number of steps.
    """
    out_slice = target.place.out_slice
    reads = [read for _, read in target.found]
    refs = [out_slice.sources[i].ref for i, _ in target.found]
    at = refs.index(out_slice.base) if out_slice.base in refs else 0
    chosen = reads[at]
    inputs: tuple[Stored, ...] = (chosen,)
    findings: tuple[Finding, ...] = ()
    floats = [read.spec.dtype in FLOATS for read in reads]
    counts = all(read.spec.size == 1 for read in reads) or _count(reads)
    if counts and not all(floats) and _alike(reads):
        note = f"a counter: that of {refs[at]}"
        if len(set(refs)) > 1:
            findings = (Finding(Counter(refs[at]), target.name),)
    elif all(floats) or _masks(reads):
        note = "a buffer: not trained"
    elif any(read.spec != chosen.spec for read in reads):
        kinds = ", ".join(f"{r.spec} in {ref}" for r, ref in zip(reads, refs, strict=True))
        return _refused(target, f"differs in kind: {kinds}")
    else:
        note = "not floating point"
        inputs = tuple(dict.fromkeys([chosen, *reads]))
    step = copy_of(target.name, chosen.spec, inputs, note, target.place.t)
    return Outcome(step, findings=findings)


def refuse_mixed(target: Target) -> Outcome:
    """A tensor that is trained in one model, and no float in another."""
    sources = target.place.out_slice.sources
    kinds = ", ".join(f"{read.spec.dtype} in {sources[i].ref}" for i, read in target.found)
    return _refused(target, f"is a float in one model and not in another: {kinds}")


def _refused(target: Target, message: str) -> Outcome:
    cause = OtherKind(message, target.place.out_slice.path)
    return Outcome(findings=(Finding(cause, target.name),))


def _alike(reads: Sequence[Stored]) -> bool:
    """Whether none of them is a float, or their names tell that they are computed."""
    floats = any(read.spec.dtype in FLOATS for read in reads)
    return not floats or all(is_computed(read.name, read.spec) for read in reads)


def _count(reads: Sequence[Stored]) -> bool:
    """Whether all count, each in several places, such as the tokens that every expert has seen; of one shape."""
    named = all(COUNTER.search(read.name.rpartition(".")[2]) for read in reads)
    return named and len({read.spec for read in reads}) == 1


def _masks(reads: Sequence[Stored]) -> bool:
    """Whether all are masks or positions by their names, stored in other kinds or lengths than one another."""
    specs = {read.spec for read in reads}
    if len(specs) > 1 and all(is_computed(read.name, read.spec) for read in reads):
        return True
    masks = all(MASK.search(read.name) for read in reads)
    return masks and len(specs) > 1 and len({read.spec.shape for read in reads}) == 1


def _could_be_donor(view: View, donor: View) -> bool:
    """Whether a model has a place for all that the donor has."""
    known = {template for template, _ in view.names}
    return all(
        no_place(template, donor.config, view.config) is None
        for template, _ in donor.names
        if template not in known
    )
