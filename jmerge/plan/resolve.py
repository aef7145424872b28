"""Each target to the step that makes it, or to what is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jmerge.dtypes import BITS, FLOATS, TensorSpec, promote
from jmerge.methods.spec import Method
from jmerge.plan.check import base_position
from jmerge.plan.hyperparameters import WEIGHT, Input, Resolved, Resolver
from jmerge.plan.incomplete import missing_beside_others
from jmerge.plan.inputs import Gathered, Item, Stored
from jmerge.plan.outcomes import (
    Cause,
    Draw,
    Finding,
    Lacking,
    Maps,
    MergedWithout,
    OtherShape,
    Outcome,
    Scene,
    Verdict,
    judge,
    made_up,
    names_of,
    shapes_text,
)
from jmerge.plan.pairing import View
from jmerge.plan.problems import Pattern, PlanProblem, any_layer, patterns, unmatched, warning
from jmerge.plan.steps import COPY, Step
from jmerge.plan.targets import Heads, Target, Unmentioned, Views
from jmerge.plan.unmerged import Unmerged, copy_of, copy_untrained, refuse_mixed
from jmerge.plan.vocabulary import Inputs, Tables
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import Path

SHOWN = 4  # kinds of tensors that a warning names


@dataclass(frozen=True)
class Wider(Cause):
    """A tensor keeps the dtype of a model that is wider than asked."""

    ref: ModelRef
    dtype: str

    def tell(self, found: Sequence[Finding], scene: Scene) -> Iterator[PlanProblem]:
        """One warning."""
        kinds = list(dict.fromkeys(map(any_layer, names_of(found))))
        listed = ", ".join(kinds[:SHOWN])
        more = f" and {len(kinds) - SHOWN} more kinds" if len(kinds) > SHOWN else ""
        count = "1 tensor keeps" if len(found) == 1 else f"{len(found)} tensors keep"
        message = (
            f"{count} {self.dtype}, as {self.ref} has them beside narrower weights: {listed}{more}"
        )
        message += f"; to cast them all the same, write 'cast: [{listed}]'"
        path: Path = ("out_dtype",) if scene.recipe.out_dtype else ("dtype",)
        yield warning("JM232", message, path)


@dataclass(frozen=True)
class Precision:
    """Says of each tensor which dtype it gets: the recipe's, unless the donor keeps it wider on purpose.

    The bias of a router, `A_log` or `dt_bias` is F32 in a model that is BF16 otherwise because rounding it would change
    which experts are chosen. So a tensor keeps the dtype that the donor stores it in where that is wider than most
    bytes of the donor and than the dtype that the recipe asks for, unless a pattern of the recipe's `cast` matches it.

    Bytes decide, not numbers of tensors: `dtype` is set for what takes room. Where two widths have equally many bytes,
    the wider one is the model's own, and nothing is kept. A donor that is all F32 is cast as asked. F16 and BF16 are
    equally wide. A layer that comes from another model goes by the donor's own layers, so that all layers of the output
    are stored alike; a tensor that the donor lacks goes by the first model that has it.
    """

    recipe: Recipe
    views: Sequence[View]

    @cached_property
    def _asked(self) -> str | None:
        return self.recipe.out_dtype or self.recipe.dtype

    @cached_property
    def _cast(self) -> list[Pattern]:
        return patterns(self.recipe, "cast", self.recipe.cast)

    def of(
        self, name: str, template: str, inputs: Sequence[Item]
    ) -> tuple[str, str, tuple[Finding, ...]]:
        """The dtype of the output tensor `name` that is made of `inputs`; where it is not as asked, a note and a finding."""
        stored = [(read.model, read.spec.dtype) for read in (item.reads[0] for item in inputs)]
        if self._asked is None:
            return promote([dtype for _, dtype in stored]), "", ()
        owner, dtype = self._example(template, stored)
        narrow = max(owner.usual_bits, BITS[self._asked])
        if dtype not in FLOATS or BITS[dtype] <= narrow:
            return self._asked, "", ()
        if any(each.regex.match(name) for each in self._cast):
            return self._asked, "", ()
        note = f"kept in {dtype}, as in {owner.ref}"
        return dtype, note, (Finding(Wider(owner.ref, dtype), name),)

    def _example(self, template: str, stored: Sequence[tuple[int, str]]) -> tuple[View, str]:
        """The model by which a tensor goes, and the dtype there; `stored` are the numbers of models and dtypes."""
        donor = self.views[0]
        own = [dtype for number, dtype in stored if number == donor.number]
        own = own or self._of_donor.get(template, [])
        if own:
            return donor, max(own, key=BITS.__getitem__)
        number, dtype = stored[0]
        return self.views[number], dtype

    @cached_property
    def _of_donor(self) -> dict[str, list[str]]:
        """The dtypes of the donor's tensors, by template."""
        found: dict[str, list[str]] = {}
        for (template, _), name in self.views[0].names.items():
            dtypes = found.setdefault(template, [])
            if (dtype := self.views[0].spec(name).dtype) not in dtypes:
                dtypes.append(dtype)
        return found

    def problems(self, cast: Sequence[str]) -> Iterator[PlanProblem]:
        """Patterns of `cast` that have no effect, or match none of the tensors whose dtype is chosen."""
        if self._asked is not None:
            yield from unmatched(self._cast, cast, "that is merged")
            return
        for each in self._cast:
            yield warning("JM019", "has no effect without dtype or out_dtype", each.path)


@dataclass(frozen=True)
class Scheme:
    """All that decides what becomes of a target.

    Attributes:
      tables: None where the recipe does not align tokens.
    """

    recipe: Recipe
    method: Method
    views: Views
    heads: Heads
    tables: Tables | None

    @cached_property
    def unmerged(self) -> Unmerged:
        """What becomes of tensors that are not merged."""
        return Unmerged(self.recipe, self.views, self.heads)

    @cached_property
    def precision(self) -> Precision:
        """The dtypes of the output."""
        return Precision(self.recipe, self._listed)

    @cached_property
    def _known(self) -> dict[Any, Resolved]:
        """Hyperparameters that all tensors of a layer share, as long as they do not depend on names."""
        return {}

    @cached_property
    def _listed(self) -> tuple[View, ...]:
        return tuple(self.views.values())

    @cached_property
    def _resolver(self) -> Resolver:
        given = {f"lines.{key}": value for key, value in (self.recipe.lines or {}).items()}
        return Resolver(self.recipe, self.method, {**given, "task": 0.0})

    def resolve(self, target: Target, made: Mapping[str, Outcome], maps: Maps) -> Outcome:
        """What becomes of a target.

        Args:
          made: what became of the targets before it.
          maps: of gathered inputs, those that are there already.
        """
        outcome = self.unmerged.outcome(target)
        if outcome is not None:
            if self.tables is None:
                return outcome
            return self.tables.copied(outcome, target.template, target.found, maps)
        if (twin := self._twin(target, made)) is not None:
            return twin
        problems = tuple(self._missing(target))
        inputs: Inputs | None = target.found
        new: Maps = {}
        if self.tables is not None:
            gathering = self.tables.inputs(target.name, target.template, target.found, maps)
            inputs, new = gathering.inputs, gathering.maps
            problems += gathering.problems
        outcome = Outcome() if inputs is None else self._made(target, inputs)
        return outcome._replace(problems=problems, maps=new) if problems or new else outcome

    def _made(self, target: Target, inputs: Inputs) -> Outcome:
        floating = [read.spec.dtype in FLOATS for _, read in target.found]
        if target.template.buffer or not any(floating):
            return copy_untrained(target)
        if not all(floating):
            return refuse_mixed(target)
        base = base_position(self.method, target.place.out_slice)
        if shapes := self._other_shapes(target, inputs):
            # hyperparameters may be wrong too, and that is to be told together
            models = [each for each in inputs if each[0] != base]
            return Outcome(findings=shapes, resolved=(self._hyperparameters(target, models),))
        return self._merge(target, inputs, base)

    def _twin(self, target: Target, made: Mapping[str, Outcome]) -> Outcome | None:
        """A head that is the embedding in all models: the step of the embedding, under the head's name."""
        table = self.heads.twin(target.template.name)
        if table is None or table not in made:
            return None
        step = made[table].step
        if step is None or self.unmerged.coverage.excluded(step.name) is not None:
            return None
        note = f"{table} over again: every model ties them"
        step = dataclasses.replace(step, name=target.name, note=note)
        return Outcome(step, draw=made[table].draw)

    def _missing(self, target: Target) -> Iterator[PlanProblem]:
        """What the sources lack that do not have the tensor, and have it in other layers."""
        prefix, sources = target.template.stack, target.place.out_slice.sources
        if prefix is None or len(target.found) == len(sources):
            return
        present = {i for i, _ in target.found}
        for i, (source, layer) in enumerate(zip(sources, target.place.layers, strict=True)):
            if i in present or layer is None:
                continue
            view = self.views[source.ref]
            found = missing_beside_others(view, prefix, target.template.name, layer)
            if found is not None:
                yield found.as_problem(view, source.model_path)

    def _other_shapes(self, target: Target, inputs: Inputs) -> list[Finding]:
        """The sources whose shape is not that of the base, or else of the first."""
        if len({item.spec.shape for _, item in inputs}) == 1:
            return []
        sources, base = target.place.out_slice.sources, target.place.out_slice.base
        at, wanted = next((each for each in inputs if sources[each[0]].ref == base), inputs[0])
        found = []
        for i, item in inputs:
            if item.spec.shape != wanted.spec.shape:
                ref = sources[i].ref
                shapes = shapes_text(item.spec.shape, ref, wanted.spec.shape, sources[at].ref)
                found.append(Finding(OtherShape(ref), target.name, shapes))
        return found

    def _merge(self, target: Target, found: Inputs, base: int | None) -> Outcome:
        place, sources = target.place, target.place.out_slice.sources
        present = [i for i, _ in found]
        models = [(i, item) for i, item in found if i != base]
        note, copied, hyperparameters = "", None, None
        resolved: tuple[Resolved, ...] = ()
        findings: tuple[Finding, ...] = ()
        if len(found) < len(sources):
            lacking = [source for i, source in enumerate(sources) if i not in present]
            absent = ", ".join(dict.fromkeys(str(source.ref) for source in lacking))
            without = len(sources) - (base is not None) - len(models)
            verdict = judge(self.method, base in present, len(models), without)
            if verdict.action == "run" and base not in present:
                resolved, hyperparameters, verdict = self._made_up(target, models, base)
            if verdict.action == "refuse":
                cause = Lacking(absent, verdict.reason, lacking[0].model_path)
                return Outcome(findings=(Finding(cause, target.name),), resolved=resolved)
            who = f"not in {absent}" if verdict.action == "run" else ""
            note = "; ".join(filter(None, (who, verdict.reason)))
            copied = found[0][1] if verdict.action == "copy" else None
            findings = (Finding(MergedWithout(absent, verdict.reason), target.name),)
        elif not models:
            note, copied = "the base is the only source", found[0][1]
        items = (copied,) if copied else tuple(item for _, item in found)
        dtype, kept, wider = self.precision.of(target.name, target.template.name, items)
        if hyperparameters is None and not copied:
            resolved = (self._hyperparameters(target, models),)
            hyperparameters = resolved[0].values
        draw = None
        if "keys" in self.method.reserved and not copied:
            counted = (i - (base is not None and i > base) for i, _ in models)
            draw = Draw(target.name, tuple(counted))
        step = Step(
            name=target.name,
            spec=TensorSpec(dtype, items[0].spec.shape),
            inputs=items,
            base=None if copied or base not in present else present.index(base),
            method=COPY if copied else self.method.name,
            hyperparameters=hyperparameters or {},
            t=place.t,
            note="; ".join(filter(None, (note, kept))),
        )
        return Outcome(step, (*findings, *wider), resolved=resolved, draw=draw, cast=True)

    def _made_up(
        self, target: Target, models: Inputs, base: int | None
    ) -> tuple[tuple[Resolved, ...], dict[str, Any], Verdict]:
        """The hyperparameters of a tensor that only these models have, and whether they are known."""
        own, sources = self._hyperparameters(target, models), target.place.out_slice.sources
        if not self.method.unnormalised(own.values, len(models)):
            return (own,), own.values, Verdict("run")
        every = [Input(source, target.name) for i, source in enumerate(sources) if i != base]
        others = self._resolver.resolve(target.place, target.depth, target.name, every)
        present = [i - (base is not None and i > base) for i, _ in models]
        weights, verdict = made_up(others.values[WEIGHT], present)
        return (own, others), {**own.values, WEIGHT: weights}, verdict

    def _hyperparameters(self, target: Target, models: Inputs) -> Resolved:
        """Those of a tensor merged from these models (without the base)."""
        place = target.place
        key = (
            place.module.path,
            place.out_slice.path,
            place.t,
            target.depth,
            *(i for i, _ in models),
        )
        if (known := self._known.get(key)) is not None:
            return known._replace(tensor=target.name)
        sources = place.out_slice.sources
        inputs = [Input(sources[i], self._filtered_name(target, item)) for i, item in models]
        made = self._resolver.resolve(place, target.depth, target.name, inputs)
        if not self._resolver.by_name:
            self._known[key] = made
        return made

    def _filtered_name(self, target: Target, item: Stored | Gathered) -> str:
        """What filters see: the tensor's own name in that model, a stand-in's as a head."""
        stands_in = self.heads.stand_in(self._listed[item.model], target.template) == item.name
        return target.name if stands_in else item.name

    def copy_unmentioned(self, each: Unmentioned, maps: Maps) -> Outcome:
        """The copy of a tensor of a module that the recipe leaves out, as a model without it would not load."""
        template, layer, name = each.template, each.layer, each.name
        why = f"module '{each.module}' is not in the recipe"
        if self.unmerged.coverage.stated:
            view = self.views[self.unmerged.coverage.keeper(self.recipe.first_slice)]
            own = view.names.get((template.name, layer))
            stored = view.stored(own) if own else None
            outcome = self.unmerged.unmentioned(name, stored, view.ref, why)
        else:
            outcome = self._cast(name, template.name, why)
        if self.tables is None or layer is not None:
            return outcome
        return self.tables.copied(outcome, template, None, maps)

    def _cast(self, name: str, template: str, why: str) -> Outcome:
        """The copy of a tensor of the donor in the dtype of the output."""
        donor = self._listed[0]
        read = donor.read(name)
        dtype, kept = read.spec.dtype, ""
        wider: tuple[Finding, ...] = ()
        cast = dtype in FLOATS and not donor.layout.roles[name].buffer
        if cast:
            dtype, kept, wider = self.precision.of(name, template, [read])
        note = "; ".join(filter(None, (why, kept)))
        return Outcome(
            copy_of(name, TensorSpec(dtype, read.spec.shape), (read,), note),
            findings=wider,
            cast=cast,
        )
