"""A recipe and the headers of its models to a `Plan`: pure, and every fault at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jmerge.arch.config import Change, Layers, layer_rules, set_depth, set_dtype, untie
from jmerge.arch.infer import Layout, Stack, infer_layout
from jmerge.ckpt.dtypes import FLOATS, TensorSpec, promote
from jmerge.ckpt.open import Checkpoint
from jmerge.errors import Fault, PlanError, raise_all
from jmerge.methods.spec import REGISTRY, Method
from jmerge.names import did_you_mean
from jmerge.plan.check import base_position, check_recipe
from jmerge.plan.presence import judge
from jmerge.plan.resolve import Input, Resolver
from jmerge.plan.steps import COPY, InputFile, InputModel, Plan, Read, Step, Unused
from jmerge.plan.views import Template, View, build_views, config_explains, spell
from jmerge.recipe.recipe import Module, OutSlice, Recipe, Source
from jmerge.recipe.refs import ModelRef
from jmerge.version import VERSION


class Place(NamedTuple):
    """Where in the output a tensor is made: the slice, its sources' layers (None: loose) and the depth."""

    module: Module
    out_slice: OutSlice
    layers: tuple[int | None, ...]  # one for each source
    t: float


def build_plan(
    recipe: Recipe,
    checkpoints: Mapping[ModelRef, Checkpoint],
    *,
    tied: Mapping[ModelRef, bool] | None = None,
    seed: int = 0,
) -> Plan:
    """The plan of `recipe` on these opened checkpoints.

    Args:
      recipe: from `load_recipe`.
      checkpoints: an opened checkpoint for each of `recipe.models()`.
      tied: models whose output head is their embedding; by default those that store no head.
      seed: of the random methods; recorded in the plan.

    Raises:
      PlanError: the recipe does not suit its method or the models; holds every fault found.
    """
    faults, warnings = check_recipe(recipe)
    raise_all(PlanError, faults)
    builder = _Builder(recipe, REGISTRY[recipe.method], checkpoints, tied, warnings)
    return builder.build(seed)


def infer_layouts(checkpoints: Mapping[ModelRef, Checkpoint]) -> dict[ModelRef, Layout]:
    """The structure of each checkpoint."""
    return {
        ref: infer_layout(
            {name: entry.spec for name, entry in checkpoint.index.items()}, _config(ref, checkpoint)
        )
        for ref, checkpoint in checkpoints.items()
    }


def _config(ref: ModelRef, checkpoint: Checkpoint) -> dict[str, Any]:
    override = ref.override_architecture
    return {**checkpoint.config, "architectures": [override]} if override else checkpoint.config


class _Builder:
    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        checkpoints: Mapping[ModelRef, Checkpoint],
        tied: Mapping[ModelRef, bool] | None,
        warnings: list[Fault],
    ) -> None:
        self.recipe = recipe
        self.method = method
        self.faults: list[Fault] = []
        self.warnings = warnings
        checkpoints = {ref: checkpoints[ref] for ref in recipe.models()}
        layouts = infer_layouts(checkpoints)
        tied = tied or {
            ref: not layout.heads and bool(layout.embeddings) for ref, layout in layouts.items()
        }
        self.views, self.templates = build_views(checkpoints, layouts, tied)
        self.donor = self.views[recipe.models()[0]]
        self.resolver = Resolver(recipe, method)
        self.steps: dict[str, Step] = {}
        self.mismatched: dict[ModelRef, list[str]] = {}
        self.partial: dict[tuple[str, str], list[str]] = {}  # (reason, who) -> output names
        self.new_layers: dict[
            str, list[Layers]
        ] = {}  # donor's prefix -> where each output layer comes from

    def build(self, seed: int) -> Plan:
        self._check_models()
        modules = self._modules()
        raise_all(PlanError, self.faults)
        for part in ("first", "layer", "last"):
            for name, module in modules.items():
                if part == "layer":
                    self._layers(name, module)
                else:
                    self._loose(part, name, module)
        self._copy_other_modules(modules)
        self.faults += self.resolver.faults() + self._mismatches()
        unused = tuple(item for view in self.views.values() for item in self._unused(view))
        raise_all(PlanError, self.faults)
        if not any(step.written for step in self.steps.values()):
            raise PlanError(self.recipe.fault("makes no tensor at all", ()))
        config, changes = self._config()
        tied = self._tied_output()
        self._warn_partial()
        return Plan(
            version=VERSION,
            recipe=self.recipe.text,
            method=self.method.name,
            seed=seed,
            models=tuple(
                InputModel(
                    ref=str(ref),
                    path=str(view.checkpoint.path),
                    files=tuple(
                        InputFile(name=file.name, size=file.size, header_sha256=file.sha256)
                        for file in view.checkpoint.files
                    ),
                )
                for ref, view in self.views.items()
            ),
            steps=tuple(self.steps.values()),
            unused=unused,
            config=config,
            changes=tuple(changes),
            tied=tied,
            warnings=tuple(
                map(str, dict.fromkeys(sorted(self.warnings, key=lambda w: (w.file, w.line))))
            ),
        )

    # What is merged with what

    def _check_models(self) -> None:
        for ref, view in self.views.items():
            path = self.recipe.first_path(ref)
            if ref.revision is not None:
                self.warnings.append(
                    self.recipe.fault(f"'@{ref.revision}' has no effect on a local folder", path)
                )
            reason = view.quantized()
            plain_copy = self.method.name == "passthrough" and not self._sets_scale()
            if reason and not plain_copy:
                message = f"'{ref}': {reason}; merge the unquantised model (only plain passthrough can copy it)"
                self.faults.append(self.recipe.fault(message, path))
            elif reason and (self.recipe.dtype or self.recipe.out_dtype):
                message = (
                    f"'{ref}': {reason}; remove dtype and out_dtype to copy its tensors as they are"
                )
                self.faults.append(self.recipe.fault(message, path))

    def _sets_scale(self) -> bool:
        scopes = [self.recipe.parameters]
        for module, out_slice in self.recipe.slices():
            scopes += [
                module.parameters,
                out_slice.parameters,
                *(s.parameters for s in out_slice.sources),
            ]
        return any("scale" in scope for scope in scopes)

    def _modules(self) -> dict[str, Module]:
        """The donor's modules that the recipe merges, with what it says of them."""
        recipe, known = self.recipe, self.donor.layout.modules
        with_layers = [name for name in known if self._main_stack(name)]
        modules: dict[str, Module] = {}
        for module in recipe.modules:
            if module.name is not None and module.name not in known:
                hint = did_you_mean(module.name, known)
                self.faults.append(
                    recipe.fault(
                        f"'{module.name}' is not a module of {self.donor.ref}{hint}", module.path
                    )
                )
            elif (
                module.name is None and module.slices[0].sources[0].layers and len(with_layers) > 1
            ):
                names = ", ".join(known)
                message = f"{self.donor.ref} has several stacks of layers; put slices under 'modules:' ({names})"
                self.faults.append(recipe.fault(message, ("slices",)))
            else:
                modules |= dict.fromkeys(
                    [module.name] if module.name is not None else known, module
                )
        for name, module in modules.items():
            for out_slice in module.slices:
                self._check_ranges(name, out_slice)
        return modules

    def _check_ranges(self, module: str, out_slice: OutSlice) -> None:
        stack = self._main_stack(module)
        depths = {}
        for source in out_slice.sources:
            own = self._own_stack(source, stack)
            depths[str(source.ref)] = own.depth if own else 0
            if source.layers is not None and source.layers[1] > (own.depth if own else 0):
                message = f"{source.ref} has {depths[str(source.ref)]} layers, so no layer {source.layers[1] - 1}"
                self.faults.append(self.recipe.fault(message, (*source.path, "layer_range")))
        if out_slice.sources[0].layers is None and len(set(depths.values())) > 1:
            found = ", ".join(f"{ref} has {depth}" for ref, depth in depths.items())
            message = (
                f"all models need equally many layers, but {found}; pick layers with 'slices:'"
            )
            self.faults.append(self.recipe.fault(message, (*out_slice.path, "models")))

    def _main_stack(self, module: str) -> Stack | None:
        return self.donor.layout.main_stack(module)

    def _own_stack(self, source: Source, stack: Stack | None) -> Stack | None:
        return self.views[source.ref].stacks.get(stack.prefix) if stack else None

    # The tensors, one after another

    def _loose(self, part: str, name: str, module: Module) -> None:
        out_slice = module.slices[0 if part == "first" else -1]
        place = Place(module, out_slice, (None,) * len(out_slice.sources), 0.0)
        for template in self.templates.values():
            if template.stack is None and template.part == part and template.module == name:
                self._make(template, template.name, place)

    def _layers(self, name: str, module: Module) -> None:
        main = self._main_stack(name)
        for prefix in dict.fromkeys(
            t.stack for t in self.templates.values() if t.stack and t.module == name
        ):
            stack = self.donor.stacks.get(prefix)
            ranged = stack is not None and main is not None and stack.prefix == main.prefix
            places = self._places(module, prefix, ranged)
            templates = [
                t for t in self.templates.values() if t.stack == prefix and t.module == name
            ]
            for layer, place in enumerate(places):
                for template in templates:
                    self._make(template, spell(template.name, stack, layer), place)
            if stack is not None:
                self._note_layers(prefix, stack, places)

    def _places(self, module: Module, prefix: str, ranged: bool) -> list[Place]:
        """Every output layer of a stack; one that layer ranges do not count keeps its layers, from the first slice."""
        places = []
        for out_slice in module.slices if ranged else module.slices[:1]:
            spans = []
            for source in out_slice.sources:
                own = self.views[source.ref].stacks.get(prefix)
                spans.append(
                    source.layers if source.layers and ranged else (0, own.depth if own else 0)
                )
            count = max(end - start for start, end in spans)
            for k in range(count):
                t = k / (count - 1) if count > 1 else 1.0
                places.append(Place(module, out_slice, tuple(start + k for start, _ in spans), t))
        return places

    def _note_layers(self, prefix: str, stack: Stack, places: Sequence[Place]) -> None:
        origins = []
        for place in places:
            view = self.views[place.out_slice.sources[0].ref]
            own = view.stacks.get(prefix, stack)
            origins.append(Layers(view.checkpoint.config, own, place.layers[0] or 0))
        if len(places) == stack.depth and all(o.layer == i for i, o in enumerate(origins)):
            return
        path = places[0].out_slice.path[:-1]
        if len(places) != stack.depth and not stack.keys:
            message = f"config.json of {self.donor.ref} has no key that counts the layers of '{stack.prefix}', so their number cannot change"
            self.faults.append(self.recipe.fault(message, path))
        if any(name.startswith(f"{stack.prefix}.") for name in self._loose_names(stack)):
            message = f"{self.donor.ref} numbers other tensors after its layers, so they cannot be rearranged"
            self.faults.append(self.recipe.fault(message, path))
        for rule in layer_rules(self.donor.checkpoint.config, stack):
            message = f"config.json's '{rule}' places kinds of layers by their number; check it against the new order"
            self.warnings.append(self.recipe.fault(message, path))
        self.new_layers[prefix] = origins

    def _loose_names(self, stack: Stack) -> list[str]:
        return [t.name for t in self.templates.values() if t.stack is None and stack.prefix]

    def _make(self, template: Template, name: str, place: Place) -> None:
        """Add the step that makes the output tensor `name`, if any source has it."""
        sources = place.out_slice.sources
        found: list[tuple[int, Read]] = []
        for i, (source, layer) in enumerate(zip(sources, place.layers, strict=True)):
            view = self.views[source.ref]
            own = view.names.get((template.name, layer))
            if own is None and self._stands_in(view, template):
                own = view.layout.embeddings[0]
            elif own is not None and self._tied_away(view, own):
                continue
            if own is not None:
                entry = view.entry(own)
                found.append(
                    (
                        i,
                        Read(
                            model=view.number,
                            name=own,
                            file=entry.file,
                            start=entry.start,
                            spec=entry.spec,
                        ),
                    )
                )
        if not found:
            return
        if name in self.steps:
            self.faults.append(
                self.recipe.fault(
                    f"two tensors of the output would be called {name}", place.out_slice.path
                )
            )
            return
        self._check_holes(template, name, place, [i for i, _ in found])
        first = found[0][1].spec
        floating = [read.spec.dtype in FLOATS for _, read in found]
        if template.buffer or not any(floating):
            self._copy(name, place, found, donor_only=all(floating))
        elif not all(floating):
            kinds = ", ".join(f"{read.spec.dtype} in {sources[i].ref}" for i, read in found)
            self.faults.append(
                self.recipe.fault(f"{name} is a float in one model and not in another: {kinds}", ())
            )
        elif any(read.spec.shape != first.shape for _, read in found):
            for i, read in found:
                if read.spec.shape != first.shape:
                    self.mismatched.setdefault(sources[i].ref, []).append(
                        f"{name} is {list(read.spec.shape)} in {sources[i].ref} and {list(first.shape)} in {sources[found[0][0]].ref}"
                    )
        else:
            self._merge(name, place, found)

    def _merge(self, name: str, place: Place, found: list[tuple[int, Read]]) -> None:
        sources = place.out_slice.sources
        base = base_position(self.method, place.out_slice)
        present = [i for i, _ in found]
        models = [(i, read) for i, read in found if i != base]
        has_base = base in present
        note = ""
        copied: Read | None = None
        if len(found) < len(sources):
            verdict = judge(self.method, has_base, len(models))
            absent = ", ".join(
                dict.fromkeys(str(s.ref) for i, s in enumerate(sources) if i not in present)
            )
            note = verdict.reason or f"not in {absent}"
            if verdict.action == "refuse":
                self.faults.append(
                    self.recipe.fault(
                        f"{name} is not in {absent}: {verdict.reason}", place.out_slice.path
                    )
                )
                return
            self.partial.setdefault((note, absent), []).append(name)
            if verdict.action == "copy":
                copied = found[0][1]
        elif has_base and not models:
            copied, note = found[0][1], "the base is the only source"
        inputs = [
            Input(sources[i], self._filter_name(name, sources[i], read)) for i, read in models
        ]
        numbers = (
            {}
            if copied
            else self.resolver.numbers(place.module, place.out_slice, name, inputs, place.t)
        )
        reads = (copied,) if copied else tuple(read for _, read in found)
        dtype = (
            self.recipe.out_dtype
            or self.recipe.dtype
            or promote([read.spec.dtype for read in reads])
        )
        self.steps[name] = Step(
            name=name,
            spec=TensorSpec(dtype, reads[0].spec.shape),
            inputs=reads,
            base=None if copied or base not in present else present.index(base),
            method=COPY if copied else self.method.name,
            numbers=numbers,
            t=place.t,
            note=note,
        )
        self._use(reads)

    def _copy(
        self, name: str, place: Place, found: list[tuple[int, Read]], donor_only: bool
    ) -> None:
        """A tensor that is not trained: the base's or first one as it is; those that are not floats must be equal."""
        sources = place.out_slice.sources
        chosen = next(
            (read for i, read in found if sources[i].ref == place.out_slice.base), found[0][1]
        )
        reads = (chosen,) if donor_only else tuple(dict.fromkeys(read for _, read in found))
        if any(read.spec != chosen.spec for read in reads):
            kinds = ", ".join(f"{read.spec} in {sources[i].ref}" for i, read in found)
            self.faults.append(
                self.recipe.fault(f"{name} differs in kind: {kinds}", place.out_slice.path)
            )
            return
        note = "a buffer: not trained" if donor_only else "not floating point: equal in all inputs"
        self.steps[name] = Step(
            name=name,
            spec=chosen.spec,
            inputs=reads,
            base=None,
            method=COPY,
            numbers={},
            t=place.t,
            note=note,
        )
        self._use(tuple(read for _, read in found))

    def _use(self, reads: Sequence[Read]) -> None:
        views = tuple(self.views.values())
        for read in reads:
            views[read.model].used[read.name] = None

    def _filter_name(self, name: str, source: Source, read: Read) -> str:
        """What filters of per-model numbers see: the tensor's own name in that model, a tied head's as a head."""
        view = self.views[source.ref]
        stands_in = read.name in view.layout.embeddings and name not in view.layout.embeddings
        return name if stands_in and view.tied else read.name

    # Ties

    def _is_head(self, template: Template) -> bool:
        return any(template.name in view.layout.heads for view in self.views.values())

    def _stands_in(self, view: View, template: Template) -> bool:
        """Whether the embedding of a tied model is to be read for the head that another model stores."""
        return (
            view.tied
            and self._is_head(template)
            and bool(view.layout.embeddings)
            and not view.layout.heads
        )

    def _tied_away(self, view: View, name: str) -> bool:
        """Whether a stored head is left out because all models are tied and the donor stores none."""
        all_tied = all(each.tied for each in self.views.values())
        return name in view.layout.heads and all_tied and not self.donor.layout.heads

    def _tied_output(self) -> tuple[str, str] | None:
        """The head and embedding of the output when both are written."""
        heads = [
            head for view in self.views.values() for head in view.layout.heads if head in self.steps
        ]
        tables = [name for name in self.donor.layout.embeddings if name in self.steps]
        if not heads or not tables:
            return None
        stored = {view.ref: bool(view.layout.heads) for view in self.views.values()}
        if not all(stored.values()):
            lacking = ", ".join(str(ref) for ref, has in stored.items() if not has)
            message = f"{heads[0]} is written because not all models tie it to the embedding; the embedding stands in for it in {lacking}"
            self.warnings.append(self.recipe.fault(message, ()))
        return heads[0], tables[0]

    # Faults and accounts

    def _check_holes(self, template: Template, name: str, place: Place, present: list[int]) -> None:
        """Refuse a tensor that a model has in other layers and lacks here, unless its config says why."""
        sources = place.out_slice.sources
        for i, (source, layer) in enumerate(zip(sources, place.layers, strict=True)):
            if i in present or template.stack is None or layer is None:
                continue
            view = self.views[source.ref]
            others = view.layers_of(template.name)
            stack = view.stacks.get(template.stack)
            if (
                others
                and stack
                and not config_explains(view.checkpoint.config, stack, layer, others)
            ):
                self._hole(view, template, layer, others, source)

    def _hole(
        self, view: View, template: Template, layer: int, others: list[int], source: Source
    ) -> None:
        missing = spell(template.name, view.stacks.get(template.stack or ""), layer)
        message = f"{view.ref} lacks {missing}, which {len(others)} of its other layers have; the checkpoint is incomplete"
        self.faults.append(
            self.recipe.fault(message, (*source.path, "model") if source.listed else source.path)
        )

    def _mismatches(self) -> list[Fault]:
        faults = []
        for ref, messages in self.mismatched.items():
            more = f" ({len(messages)} tensors differ)" if len(messages) > 1 else ""
            tables = {
                *self.donor.layout.embeddings,
                *self.donor.layout.heads,
                *self.donor.layout.vocab_biases,
            }
            names = {message.split(" is ")[0] for message in messages}
            if names <= tables:
                hint = "the vocabularies differ; merge models with the same vocabulary"
            else:
                hint = "models of different sizes cannot be merged"
            faults.append(
                self.recipe.fault(f"{messages[0]}{more}: {hint}", self.recipe.first_path(ref))
            )
        return faults

    def _copy_other_modules(self, modules: Mapping[str, Module]) -> None:
        """Copy the donor's modules that the recipe does not mention: a model without them would not load."""
        skipped: dict[str, int] = {}
        for name, role in self.donor.layout.roles.items():
            if role.module not in modules:
                entry = self.donor.entry(name)
                read = Read(
                    model=self.donor.number,
                    name=name,
                    file=entry.file,
                    start=entry.start,
                    spec=entry.spec,
                )
                dtype = entry.spec.dtype
                if dtype in FLOATS and not role.buffer:
                    dtype = self.recipe.out_dtype or self.recipe.dtype or dtype
                self.steps[name] = Step(
                    name=name,
                    spec=TensorSpec(dtype, entry.spec.shape),
                    inputs=(read,),
                    base=None,
                    method=COPY,
                    numbers={},
                    t=0.0,
                    note=f"module '{role.module}' is not in the recipe",
                )
                self._use((read,))
                skipped[role.module] = skipped.get(role.module, 0) + 1
        for module, count in skipped.items():
            message = f"module '{module}' is not in the recipe; its {count} tensors are copied from {self.donor.ref}"
            self.warnings.append(self.recipe.fault(message, ("modules",)))

    def _unused(self, view: View) -> list[Unused]:
        """Every tensor of a model that no step reads, with the reason; one without a reason is a fault."""
        unused = []
        sources = [s for _, out in self.recipe.slices() for s in out.sources if s.ref == view.ref]
        modules = {module.name for module in self.recipe.modules}
        for name, role in view.layout.roles.items():
            if name in view.used:
                continue
            if not sources:
                reason = "the model gives only names, config and files"
            elif None not in modules and role.module not in modules:
                reason = f"module '{role.module}' is not in the recipe"
            elif role.buffer:
                reason = "a buffer: taken from another model"
            elif role.layer is not None and all(source.layers for source in sources):
                reason = f"layer {role.layer} is in no layer_range"
            elif name in view.layout.heads and self._tied_away(view, name):
                reason = "tied away: equal to the embedding, and the donor stores no head"
            elif role.layer is None and len(self.recipe.modules[0].slices) > 1:
                reason = f"the model is no source of the {role.part} slice"
            elif self.faults:
                continue  # its step was refused; that is said already
            else:
                self.faults.append(
                    Fault(
                        f"{name} of {view.ref} would be lost; this is a bug in jmerge",
                        file=self.recipe.file,
                    )
                )
                continue
            unused.append(Unused(model=view.number, name=name, reason=reason))
        return unused

    def _warn_partial(self) -> None:
        for (note, absent), names in self.partial.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self.warnings.append(
                self.recipe.fault(f"{names[0]}{more}: not in {absent}; {note}", ())
            )

    def _config(self) -> tuple[dict[str, Any], list[Change]]:
        config = _config(self.donor.ref, self.donor.checkpoint)
        changes: list[Change] = []
        for prefix, layers in self.new_layers.items():
            config, new = set_depth(config, self.donor.stacks[prefix], layers)
            changes += new
        weight: dict[str, int] = {}
        for step in self.steps.values():
            weight[step.spec.dtype] = weight.get(step.spec.dtype, 0) + step.spec.nbytes
        config, new = set_dtype(config, max(weight, key=lambda dtype: weight[dtype]))
        return config, changes + new


def untied(plan: Plan) -> tuple[dict[str, Any], tuple[Change, ...]]:
    """config.json and changes of a plan whose written head turned out to differ from its embedding."""
    config, new = untie(dict(plan.config))
    return config, (*plan.changes, *new)
