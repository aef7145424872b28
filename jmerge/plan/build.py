"""A recipe and the headers of its models to a `Plan`: pure, and every fault at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jmerge.arch.ahead import without_ahead
from jmerge.arch.config import Change, forget, set_depth, set_dtype, untie
from jmerge.arch.infer import Layout, infer_layout
from jmerge.arch.quantised import without_quantisation
from jmerge.arch.ties import is_tied_unstored
from jmerge.ckpt.open import Checkpoint
from jmerge.ckpt.weights import EXPLICIT
from jmerge.dtypes import FLOATS, TensorSpec, most_stored
from jmerge.errors import CheckpointError, PlanError, RecipeError, raise_all
from jmerge.methods.random import make_key
from jmerge.methods.spec import Method
from jmerge.methods.streams import streams
from jmerge.methods.wrap import find_method
from jmerge.plan.account import account
from jmerge.plan.check import check_recipe
from jmerge.plan.conflicts import check_conflicts, tell_special_tokens
from jmerge.plan.files import tell_of_files
from jmerge.plan.findings import Findings
from jmerge.plan.folders import into_folders, placed_name
from jmerge.plan.heads import Heads
from jmerge.plan.holes import hole_beside_others
from jmerge.plan.inputs import Assembled, Gathered, Stored
from jmerge.plan.kept import Kept
from jmerge.plan.models import check_models, input_model, stored_of
from jmerge.plan.notes import Notes
from jmerge.plan.parameters import base_position, note_missing
from jmerge.plan.places import Places, Target
from jmerge.plan.precision import Precision
from jmerge.plan.presence import WEIGHT, Verdict, judge, made_up
from jmerge.plan.rename import check_against
from jmerge.plan.resolve import Input, Resolver
from jmerge.plan.spellings import see
from jmerge.plan.steps import COPY, Plan, Step, Unused
from jmerge.plan.structure import check_common
from jmerge.plan.tables import Found, Inputs, Tables
from jmerge.plan.unmentioned import Unmentioned
from jmerge.plan.untrained import Untrained
from jmerge.plan.views import View, config_of
from jmerge.plan.vocabularies import check_table_sizes, tell_other_templates, tell_other_tokens
from jmerge.plan.whole import check_slices, for_each_model, group
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import Path
from jmerge.tokens.output import TokenPlan, plan_tokens
from jmerge.version import VERSION


def build_plan(
    recipe: Recipe,
    checkpoints: Mapping[ModelRef, Checkpoint],
    *,
    layouts: Mapping[ModelRef, Layout] | None = None,
    tied: Mapping[ModelRef, bool] | None = None,
    seed: int = 0,
) -> Plan:
    """The plan of `recipe` on these opened checkpoints.

    Args:
      recipe: from `Recipe.from_file` and the like.
      checkpoints: an opened checkpoint for each of `recipe.models()`, and for each model that only fills tokens.
      layouts: their structure, where it is known already; by default it is inferred.
      tied: models whose output head is their embedding; by default those that store no head.
      seed: of the random methods; recorded in the plan.

    Reads the models' tokenizers: for the recipe's `tokenizer` and `chat_template`, and without them to warn of others
    than the output's.

    Raises:
      PlanError: the recipe does not suit its method or the models; holds every fault found.
    """
    notes = Notes(recipe)
    sound = check_recipe(recipe, notes)
    fill = recipe.tokenizer.token_models() if recipe.tokenizer else ()
    for ref in fill:
        if ref not in checkpoints:
            notes.fault(f"'{ref}' fills tokens, so it has to be opened too", recipe.first_path(ref))
            sound = False
    if not sound:
        note_missing(recipe, notes)
        raise_all(PlanError, notes.faults, notes.warnings)
    tell_of_files(checkpoints, notes)
    layouts = layouts or infer_layouts(checkpoints)
    if tied is None:
        tied = {
            ref: is_tied_unstored(config_of(ref, checkpoints[ref]), layouts[ref]) for ref in layouts
        }
    models = recipe.models()  # the donor first
    every = tuple(dict.fromkeys((*models, *fill)))  # as `Alignment.models`
    guests = [
        View(ref, number, checkpoints[ref], layouts[ref], not layouts[ref].heads, {})
        for number, ref in enumerate(every)
        if ref not in models
    ]
    tokens = None
    try:
        needed = {ref: checkpoints[ref] for ref in every}
        tokens = plan_tokens(recipe, needed, layouts)
    except RecipeError as error:
        notes.faults += error.faults  # told with what else is wrong
    checkpoints = {ref: checkpoints[ref] for ref in models}
    layouts = {ref: layouts[ref] for ref in models}
    method = find_method(recipe.wrapped_method)
    builder = _Builder(recipe, method, checkpoints, layouts, tied, notes, seed, guests, tokens)
    return builder.build()


def infer_layouts(checkpoints: Mapping[ModelRef, Checkpoint]) -> dict[ModelRef, Layout]:
    """The structure of each checkpoint; CheckpointError when one cannot be a model's."""
    layouts = {}
    for ref, checkpoint in checkpoints.items():
        specs = {name: entry.spec for name, entry in checkpoint.index.items()}
        try:
            layouts[ref] = infer_layout(specs, config_of(ref, checkpoint), checkpoint.folders)
        except CheckpointError as error:
            faults = (fault._replace(file=str(checkpoint.path)) for fault in error.faults)
            raise CheckpointError(*faults) from error
    return layouts


def untied(plan: Plan) -> tuple[dict[str, Any], tuple[Change, ...]]:
    """config.json and changes of a plan whose written head turned out to differ from its embedding."""
    if not plan.config:  # there is none, and none is made up
        return {}, plan.changes
    config, new = untie(dict(plan.config))
    return config, (*plan.changes, *new)


class _Builder:
    """The steps of one plan, made one target after another; what goes wrong is noted and the rest still tried."""

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        checkpoints: Mapping[ModelRef, Checkpoint],
        layouts: Mapping[ModelRef, Layout],
        tied: Mapping[ModelRef, bool],
        notes: Notes,
        seed: int,
        guests: Sequence[View],
        tokens: TokenPlan | None,
    ) -> None:
        self.seed = seed
        self.guests = guests
        self.tokens = tokens
        self.recipe = recipe
        self.method = method
        self.notes = notes
        before = len(notes.faults)
        check_against(layouts, recipe, notes)
        known = len(notes.faults)
        self.views, templates, spellings = see(checkpoints, layouts, tied, notes)
        self.donor = next(iter(self.views.values()))
        strange = Notes(recipe)
        check_models(tuple(self.views.values()), guests, recipe, strange)
        notes.warnings += strange.warnings
        if strange.faults:  # they explain whatever else there is to find
            raise_all(PlanError, [*notes.faults[:known], *strange.faults], notes.warnings)
        if len(notes.faults) == before:  # of a map, say
            check_common(self.views, notes)
        self.heads = Heads(self.views)
        self.tables = None
        if recipe.tokenizer is not None:
            alignment = tokens.alignment if tokens else None
            self.tables = Tables(recipe.tokenizer, self.views, guests, self.heads, alignment, notes)
        self.places = Places(self.views, templates, notes)
        self.resolver = Resolver(recipe, method)
        self.given = {f"lines.{key}": value for key, value in (recipe.lines or {}).items()} | {
            "task": 0.0
        }
        self.steps: dict[str, Step] = {}
        # of random methods: the tensor whose random numbers a step has, and its models as counted without the base
        self.draws: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.twice: dict[Path, list[str]] = {}  # names that two targets have, by slice
        self.findings = Findings(notes, self.views)
        self.untrained = Untrained(notes)
        self.precision = Precision(self.views, notes)
        self.kept = Kept(recipe, self.views, self.heads, self.findings)
        check_slices(recipe, method, notes)
        impossible = len(notes.faults) > before
        notes.faults += spellings
        if impossible:
            note_missing(recipe, notes)
            raise_all(PlanError, notes.faults, notes.warnings)

    def build(self) -> Plan:
        """The plan."""
        for target in self.places.targets():
            self._make(target)
        for path, (name, *others) in self.twice.items():
            more = f" ({len(others)} more like it)" if others else ""
            self.notes.fault(f"two tensors of the output would be called {name}{more}", path)
        unmentioned = Unmentioned(
            self.views, self.places, self.kept, self.tables, self.precision, self.notes
        )
        for step in unmentioned.steps():
            self._add(step)
        self._draw_keys()
        self.findings.tell_faults()
        check_conflicts(self.views, self.notes)
        self.kept.coverage.tell(self.notes)
        self.precision.tell()
        self.untrained.tell()
        self.notes.faults += self.resolver.faults()
        self.notes.warnings += self.resolver.warnings()
        grouped = group(self.steps.values(), self.method, self.notes)
        unused = self._account()
        check_table_sizes(self.steps.values(), self.views, self.notes)
        raise_all(PlanError, self.notes.faults, self.notes.warnings)
        if not self.steps:
            raise PlanError(self.recipe.fault("makes no tensor at all", ()))
        tell_other_tokens(self.views, self.notes)
        tell_other_templates(self.views, self.tokens.donor if self.tokens else 0, self.notes)
        config, changes = self._new_config()
        if self.tokens and self.tokens.alignment:
            tell_special_tokens(self.views, self.tokens, config, self.notes)
        tied = self.heads.written_with_table(self.steps, self.notes)
        self.findings.tell_warnings()
        self.notes.warnings += self.tokens.notes if self.tokens else ()
        warnings = sorted(self.notes.warnings, key=lambda warning: (warning.file, warning.line))
        made = for_each_model(grouped, self.method, self.recipe.first_slice)
        home, folders = self.donor.checkpoint.home, self.donor.checkpoint.folders
        if tied:
            tied = (placed_name(tied[0], home, folders), placed_name(tied[1], home, folders))
        return Plan(
            version=VERSION,
            recipe=self.recipe.text,
            method=self.method.name,
            seed=self.seed,
            models=tuple(input_model(view) for view in (*self.views.values(), *self.guests)),
            steps=tuple(into_folders(made, home, folders)),
            unused=unused,
            config=config,
            changes=tuple(changes),
            tied=tied,
            warnings=tuple(dict.fromkeys(map(str, warnings))),
            home=home,
            modules=tuple(module.kind for module in self.donor.checkpoint.modules),
            maps=tuple(self.tables.maps) if self.tables else (),
            tokens=self.tokens,
            sources={
                str(view.checkpoint.path): view.checkpoint.source
                for view in (*self.views.values(), *self.guests)
            },
        )

    # The steps

    def _make(self, target: Target) -> None:
        """Add the step of a target, if any source has the tensor."""
        place = target.place
        found = self._find(target)
        if not found:
            return
        self.findings.asked[target.name] = None
        if target.name in self.steps:
            self.twice.setdefault(place.out_slice.path, []).append(target.name)
            return
        if not self.kept.is_merged(target, found):
            step = self.kept.step(target, found)
            if step is not None and self.tables is not None:
                step = self.tables.kept(step, target.template, found)
            if step is not None:
                self._add(step)
            return
        if (twin := self._twin(target)) is not None:
            self._add(twin)
            return
        self._check_holes(target, [i for i, _ in found])
        inputs = self.tables.inputs(target.name, target.template, found) if self.tables else found
        if inputs is None:
            return
        floating = [read.spec.dtype in FLOATS for _, read in found]
        if target.template.buffer or not any(floating):
            step = self.untrained.step(target, found)
            if step is not None:
                self._add(step)
        elif not all(floating):
            self.untrained.refuse_mixed(target, found)
        elif self._same_shapes(target, inputs):
            self._merge(target, inputs)
        else:  # its numbers may be wrong too, and that is to be told together
            base = base_position(self.method, place.out_slice)
            self._numbers(target, [each for each in inputs if each[0] != base])

    def _find(self, target: Target) -> Found:
        """The sources that have the tensor."""
        found: Found = []
        sources = target.place.out_slice.sources
        for i, (source, layer) in enumerate(zip(sources, target.place.layers, strict=True)):
            view = self.views[source.ref]
            name = view.names.get((target.template.name, layer))
            if name is None:
                name = self.heads.stand_in(view, target.template)
            elif self.heads.tied_away(view, name):
                name = None
            if name is not None:
                found.append((i, stored_of(view, name)))
        return found

    def _twin(self, target: Target) -> Step | None:
        """The step of a head that is the embedding in all models: that of the embedding, under the head's name."""
        table = self.heads.twin(target.template.name)
        step = self.steps.get(table) if table else None
        merged = step is not None and self.kept.coverage.excluded(step.name) is None
        note = f"{table} over again: every model ties them"
        if merged and table in self.draws:
            self.draws[target.name] = self.draws[table]
        return dataclasses.replace(step, name=target.name, note=note) if step and merged else None

    def _merge(self, target: Target, found: Inputs) -> None:
        place, sources = target.place, target.place.out_slice.sources
        base = base_position(self.method, place.out_slice)
        present = [i for i, _ in found]
        models = [(i, read) for i, read in found if i != base]
        note, copied, numbers = "", None, None
        if len(found) < len(sources):
            absent = ", ".join(
                dict.fromkeys(str(s.ref) for i, s in enumerate(sources) if i not in present)
            )
            without = len(sources) - (base is not None) - len(models)
            verdict = judge(self.method, base in present, len(models), without)
            if verdict.action == "run" and base not in present:
                numbers, verdict = self._made_up(target, models, base)
            if verdict.action == "refuse":
                lacking = next(source for i, source in enumerate(sources) if i not in present)
                self.findings.refused(target.name, absent, verdict.reason, lacking.model_path)
                return
            who = f"not in {absent}" if verdict.action == "run" else ""
            note = "; ".join(filter(None, (who, verdict.reason)))
            copied = found[0][1] if verdict.action == "copy" else None
            self.findings.partial(target.name, absent, verdict.reason)
        elif not models:
            note, copied = "the base is the only source", found[0][1]
        reads = (copied,) if copied else tuple(read for _, read in found)
        dtype, kept = self.precision.of(target.name, target.template.name, reads)
        if numbers is None:
            numbers = {} if copied else self._numbers(target, models)
        if "keys" in self.method.reserved and not copied:
            counted = tuple(i - (base is not None and i > base) for i, _ in models)
            self.draws[target.name] = target.name, counted
        self._add(
            Step(
                name=target.name,
                spec=TensorSpec(dtype, reads[0].spec.shape),
                inputs=reads,
                base=None if copied or base not in present else present.index(base),
                method=COPY if copied else self.method.name,
                numbers=numbers,
                t=place.t,
                note="; ".join(filter(None, (note, kept))),
            )
        )

    def _made_up(
        self, target: Target, models: Inputs, base: int | None
    ) -> tuple[dict[str, Any], Verdict]:
        """The method's parameters for a tensor that only these models have, and whether they are known."""
        numbers, sources = self._numbers(target, models), target.place.out_slice.sources
        if not self.method.unnormalised(numbers, len(models)):
            return numbers, Verdict("run")
        every = [Input(source, target.name) for i, source in enumerate(sources) if i != base]
        others = self.resolver.numbers(target.place, target.name, every, self.given)
        present = [i - (base is not None and i > base) for i, _ in models]
        weights, verdict = made_up(others[WEIGHT], present)
        return {**numbers, WEIGHT: weights}, verdict

    def _numbers(self, target: Target, models: Inputs) -> dict[str, Any]:
        """The method's parameters for a tensor merged from these models (without the base)."""
        place = target.place
        inputs = [
            Input(place.out_slice.sources[i], self._filtered_name(target, read))
            for i, read in models
        ]
        given = {**self.given, "lines.depth": target.depth}
        return self.resolver.numbers(place, target.name, inputs, given)

    def _draw_keys(self) -> None:
        """Give the steps the keys of their random numbers, now that all names are known."""
        found = dict(zip(self.steps, streams(list(self.steps)), strict=True))
        for name, (tensor, models) in self.draws.items():
            keys = tuple(make_key(self.seed, found[tensor], model) for model in models)
            self.steps[name] = dataclasses.replace(self.steps[name], keys=keys)

    def _add(self, step: Step) -> None:
        self.steps[step.name] = step
        views = tuple(self.views.values())
        for item in step.inputs:
            for read in item.reads:
                if read.model < len(views):
                    views[read.model].used[read.name] = None
            if isinstance(item, Assembled):
                views[item.model].used[item.name] = None

    def _filtered_name(self, target: Target, read: Stored | Gathered) -> str:
        """What filters of per-model numbers see: the tensor's own name in that model, a stand-in's as a head."""
        view = tuple(self.views.values())[read.model]
        stands_in = self.heads.stand_in(view, target.template) == read.name
        return target.name if stands_in else read.name

    # What is wrong, and the account

    def _check_holes(self, target: Target, present: Sequence[int]) -> None:
        """Refuse a tensor that a model has in other layers and lacks here, unless its config says why."""
        sources, prefix = target.place.out_slice.sources, target.template.stack
        for i, (source, layer) in enumerate(zip(sources, target.place.layers, strict=True)):
            if i not in present and prefix is not None and layer is not None:
                view = self.views[source.ref]
                hole = hole_beside_others(view, prefix, target.template.name, layer)
                if hole:
                    self.notes.fault(hole.message(view), source.model_path)

    def _same_shapes(self, target: Target, found: Inputs) -> bool:
        """Whether all sources have one shape, that of the base or else of the first; differences are noted."""
        sources = target.place.out_slice.sources
        base = target.place.out_slice.base
        at, wanted = next((each for each in found if sources[each[0]].ref == base), found[0])
        same = True
        for i, read in found:
            if read.spec.shape != wanted.spec.shape:
                same = False
                shapes = f"{list(read.spec.shape)} in {sources[i].ref}"
                shapes += f" and {list(wanted.spec.shape)} in {sources[at].ref}"
                self.findings.mismatch(target.name, sources[i].ref, shapes)
        return same

    def _account(self) -> tuple[Unused, ...]:
        """What no step reads, with reasons; a tensor without one is a fault, unless its step was refused."""
        refused = bool(self.notes.faults)
        unused = []
        for view in self.views.values():
            for item in account(view, self.recipe, self.places.modules, self.heads, self.kept.left):
                if isinstance(item, Unused):
                    unused.append(item)
                elif not refused:
                    message = f"{item} of {view.ref} would be lost; this is a bug in jmerge"
                    self.notes.fault(message, ())
        for view in self.guests:
            for name in view.layout.roles:
                reason = "the model only fills tokens"
                unused.append(Unused(model=view.number, name=name, reason=reason))
        return tuple(unused)

    def _new_config(self) -> tuple[dict[str, Any], list[Change]]:
        config = self.donor.config
        changes: list[Change] = []
        if not self.donor.checkpoint.config:  # there is none, and none is made up
            return {}, changes
        config, new = forget(config, EXPLICIT, "the weights have the usual names")
        changes += new
        classes = self.donor.checkpoint.config.get("architectures")
        if config.get("architectures") != classes:
            why = "override_architecture of the recipe"
            changes.append(Change("architectures", classes, config["architectures"], why))
        for prefix, layers in self.places.new_layers.items():
            stack = self.donor.stacks[prefix]
            config, new = set_depth(config, stack, layers, self.donor.beside)
            changes += new
        if self.donor.quantised.reason is None:
            config, new = without_quantisation(config)
            changes += new
        config, new = without_ahead(config, self.steps)
        changes += new
        config, new = set_dtype(config, most_stored(step.spec for step in self.steps.values()))
        changes += new
        if self.tables is not None:
            config, new = self.tables.new_config(config)
            changes += new
        return config, changes
