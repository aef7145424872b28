"""Which tensors the output has, and of which layers of which sources each is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jmerge.arch.config import Layers, unsaid
from jmerge.arch.families import find_module
from jmerge.arch.infer import NUMBER, Stack
from jmerge.arch.kinds import home_of
from jmerge.arch.mentions import words_of
from jmerge.names import did_you_mean
from jmerge.plan.holes import holes_of_its_own
from jmerge.plan.inner import counted_inside
from jmerge.plan.notes import Notes
from jmerge.plan.order import Origin, order_faults, order_warnings
from jmerge.plan.structure import first_difference
from jmerge.plan.views import Template, View, spell
from jmerge.recipe.recipe import Module, OutSlice
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import show_path


class Place(NamedTuple):
    """Where in the output a tensor is made: the slice, its sources' layers (None: loose) and the depth."""

    module: Module
    out_slice: OutSlice
    layers: tuple[int | None, ...]  # one for each source
    t: float  # relative depth: 0 for the first layer of the slice and for loose tensors, 1 for the last


class Target(NamedTuple):
    """A tensor that the output may have."""

    name: str
    template: Template
    place: Place
    depth: float  # in the output's stack of blocks: 0 for the first and for loose tensors, 1 for the last


class Places:
    """The recipe laid over the structure of the models.

    Attributes:
      modules: the donor's modules that the recipe merges, with what it says of them.
      new_layers: for stacks whose layers are not the donor's one by one: where each layer comes from.
    """

    def __init__(
        self, views: Mapping[ModelRef, View], templates: Mapping[str, Template], notes: Notes
    ) -> None:
        self.views = views
        self.templates = tuple(templates.values())
        self.notes = notes
        self.donor = next(iter(views.values()))
        self.new_layers: dict[str, list[Layers]] = {}
        self.modules = self._find_modules()
        for name, module in self.modules.items():
            for out_slice in module.slices:
                self._check_ranges(name, out_slice)

    def targets(self) -> Iterator[Target]:
        """Every tensor in the order of the output: what comes first in a forward pass, layers, the rest."""
        for name, module in self.modules.items():
            yield from self._loose("first", name, module)
        for name, module in self.modules.items():
            yield from self._layers(name, module)
        for name, module in self.modules.items():
            yield from self._loose("last", name, module)

    def _find_modules(self) -> dict[str, Module]:
        known = self.donor.layout.modules
        with_layers = [name for name in known if self.donor.layout.main_stack(name)]
        modules: dict[str, Module] = {}
        for module in self.notes.recipe.modules:
            if module.name is not None:
                meant = find_module(module.name, known)
                if meant is not None and meant in modules:
                    message = f"'{meant}' is at {show_path(modules[meant].path)} too"
                    self.notes.fault(message, module.path)
                elif meant is not None:
                    modules[meant] = module
                else:
                    hint = did_you_mean(module.name, known)
                    self.notes.fault(f"not a module of {self.donor.ref}{hint}", module.path)
            elif module.slices[0].sources[0].layers and len(with_layers) > 1:
                message = (
                    f"{self.donor.ref} has several stacks of layers; put slices under 'modules:'"
                )
                self.notes.fault(f"{message} ({', '.join(known)})", ("slices",))
            else:
                modules |= dict.fromkeys(known, module)
        return modules

    def _check_ranges(self, module: str, out_slice: OutSlice) -> None:
        main = self.donor.layout.main_stack(module)
        depths: dict[str, int] = {}
        views: list[View] = []
        for source in out_slice.sources:
            stack = self.views[source.ref].stacks.get(main.prefix) if main else None
            depth = stack.depth if stack else 0
            if stack:  # a model without the whole module lacks its tensors, which is another matter
                depths[str(source.ref)] = depth
                views.append(self.views[source.ref])
            if source.layers is not None and source.layers[1] > depth:
                message = f"{source.ref} has {depth} layers, so no layer {source.layers[1] - 1}"
                self.notes.fault(message, (*source.path, "layer_range"))
        if out_slice.sources[0].layers is None and len(set(depths.values())) > 1:
            found = ", ".join(f"{ref} has {depth}" for ref, depth in depths.items())
            message = f"all models need equally many layers, but {found}"
            prefix = main.prefix if main else ""
            shapes = (first_difference(view, views[0], prefix) for view in views[1:])
            if shape := next(filter(None, shapes), None):
                message += f", and layers of different sizes cannot be merged ({shape})"
            else:
                message += "; pick layers with 'slices:'"
            self.notes.fault(message, (*out_slice.path, "models"))

    def _loose(self, part: str, name: str, module: Module) -> Iterator[Target]:
        out_slice = module.slices[0 if part == "first" else -1]
        place = Place(module, out_slice, (None,) * len(out_slice.sources), 0.0)
        for template in self.templates:
            if template.stack is None and template.part == part and template.module == name:
                yield Target(template.name, template, place, 0.0)

    def _layers(self, name: str, module: Module) -> Iterator[Target]:
        main = self.donor.layout.main_stack(name)
        inside = [t for t in self.templates if t.stack is not None and t.module == name]
        for prefix in dict.fromkeys(template.stack for template in inside):
            assert prefix is not None
            stack = next(v.stacks[prefix] for v in self.views.values() if prefix in v.stacks)
            ranged = main is not None and prefix == main.prefix
            places = self._stack_places(module, prefix, ranged)
            templates = [template for template in inside if template.stack == prefix]
            for layer, place in enumerate(places):
                depth = layer / (len(places) - 1) if len(places) > 1 else 0.0
                for template in templates:
                    yield Target(spell(template.name, stack, layer), template, place, depth)
            whole = self._check_whole(module, prefix)
            if prefix in self.donor.stacks:
                self._note_layers(prefix, stack, places, whole)

    def _stack_places(self, module: Module, prefix: str, ranged: bool) -> list[Place]:
        """Every output layer of a stack. One that layer ranges do not count keeps its layers, as in the first slice."""
        places = []
        for out_slice in module.slices if ranged else module.slices[:1]:
            spans = []
            for source in out_slice.sources:
                own = self.views[source.ref].stacks.get(prefix)
                whole = (0, own.depth if own else 0)
                spans.append(source.layers if source.layers and ranged else whole)
            count = max(end - start for start, end in spans)
            for k in range(count):
                t = k / (count - 1) if count > 1 else 1.0
                places.append(Place(module, out_slice, tuple(start + k for start, _ in spans), t))
        return places

    def _check_whole(self, module: Module, prefix: str) -> bool:
        whole = True
        sources = {s.ref: s for out in module.slices for s in out.sources}
        for source in sources.values():
            view = self.views[source.ref]
            others = [self.views[ref] for ref in sources if ref != source.ref]
            for hole in holes_of_its_own(view, prefix, others):
                self.notes.fault(hole.message(view), source.model_path)
                whole = False
        return whole

    def _note_layers(self, prefix: str, stack: Stack, places: Sequence[Place], whole: bool) -> None:
        """Remember where layers come from when the output's are not the donor's or made with them, and check that they
        may, which of tensors is only known where no model lacks some (`whole`)."""
        origins = []
        for place in places:
            view = self.views[place.out_slice.sources[0].ref]
            own = view.stacks.get(prefix, stack)
            origins.append(Origin(view, own, place.layers[0] or 0))
        in_order = len(places) == stack.depth and all(o.layer == i for i, o in enumerate(origins))
        alone = [len(place.out_slice.sources) == 1 for place in places]
        if in_order and not any(
            only and origin.view is not self.donor
            for only, origin in zip(alone, origins, strict=True)
        ):
            return
        path = places[0].out_slice.path[:-1]
        if len(places) != stack.depth and not stack.counted:
            message = (
                f"config.json of {self.donor.ref} has no key that counts the layers of '{prefix}'"
            )
            self.notes.fault(f"{message}, so their number cannot change", path)
        inner = counted_inside(self.donor, prefix) if len(places) != stack.depth else None
        if inner is not None and stack.keys:
            module, count = inner
            message = f"config.json's '{'.'.join(stack.keys[0])}' counts the layers, and may count the {count} of '{module}' too"
            self.notes.fault(f"{message}; pick as many layers as there were", path)
        for why in () if in_order else self._bound_to_layers(prefix, stack):
            self.notes.fault(f"{why} cannot be rearranged", path)
        trained = [t.name for t in self.templates if whole and t.stack == prefix and not t.buffer]
        layers = [origin.layers for origin in origins]
        said = unsaid(self.donor.checkpoint.config, stack, layers, self.donor.beside)
        for fault in order_faults(said, origins, trained):
            self.notes.fault(fault, path)
        for warning in order_warnings(said):
            self.notes.warn(warning, path)
        self.new_layers[prefix] = layers

    def _bound_to_layers(self, prefix: str, stack: Stack) -> Iterator[str]:
        """What outside of a stack has something for each of its layers where they are, worded to say what cannot move."""
        ref = self.donor.ref
        alike = (t.name for t in self.templates if t.stack is None and prefix)
        if other := next((n for n in alike if n.startswith(f"{prefix}.")), None):
            yield f"{ref} numbers '{other}' like its layers, and it is in none, so these"
        doubtful = [other for _, other in stack.doubtful]  # told by `unsaid`
        if (other := self._beside(prefix)) is not None and other not in doubtful:
            yield f"{ref} numbers '{other}' like '{prefix}', and config.json has one key that counts both, so layers"
        if (found := self._of_all_layers(stack)) is not None:
            name, size = found
            yield f"'{name}' has {size} entries for each layer of {ref}, so layers"
        if (table := self._between_layers(stack)) is not None:
            yield f"'{table}' has an entry for each layer of {ref} or between each two, so layers"

    def _beside(self, prefix: str) -> str | None:
        """What has a number for each layer of a stack too, outside of it: parts of layers in a list of their own."""
        numbers: dict[str, set[int]] = {}
        for template in self.templates:
            if template.stack is None and (found := NUMBER.search(template.name)):
                numbered = template.name[: found.start()].removesuffix(".")
                numbers.setdefault(numbered, set()).add(int(found[0]))
        depth, home = self.donor.stacks[prefix].depth, prefix[: prefix.rfind(".") + 1]
        own = words_of(prefix)
        for other, counted in numbers.items():
            inside = other.startswith(home)
            if len(counted) == depth > 1 and (
                inside or words_of(other) & own or self._has_layers_of(prefix, other)
            ):
                return other
            # what stands between two layers (Informer's convolutions)
            word = other.rpartition(".")[2]
            if len(counted) == depth - 1 > 0 and home and other == home + word and "layer" in word:
                return other
        return None

    def _has_layers_of(self, prefix: str, other: str) -> bool:
        """Whether all that a layer of a stack has is in each entry of another list too, in the same shape."""
        names = self.donor.names
        own = [
            (template.partition("{}")[2], name)
            for (template, layer), name in names.items()
            if layer == 0 and template.startswith(f"{prefix}.{{}}.")
        ]
        twins = [(names.get((f"{other}.0{rest}", None)), name) for rest, name in own]
        return bool(twins) and all(
            twin is not None and self.donor.spec(twin).shape == self.donor.spec(name).shape
            for twin, name in twins
        )

    def _of_all_layers(self, stack: Stack) -> tuple[str, int] | None:
        """A tensor with entries for each layer of a stack of the donor, and how many: Gemma 3n's inputs of layers, the
        weights by which ESM adds up the attention of all heads."""
        config = home_of(self.donor.checkpoint.config, stack)
        inputs, heads = (
            size if type(size := config.get(key)) is int else 0
            for key in ("hidden_size_per_layer_input", "num_attention_heads")
        )
        for name in self._loose_names():
            shape = self.donor.spec(name).shape
            if inputs > 0 and inputs * stack.depth in shape:
                return name, inputs
            if heads > 0 and shape == (1, heads * stack.depth):
                return name, heads
        return None

    def _between_layers(self, stack: Stack) -> str | None:
        """A table with an entry of the layers' width for each layer of a stack of the donor, or for all but one: YOLOS'
        positions, which are added between layers."""
        width = home_of(self.donor.checkpoint.config, stack).get("hidden_size")
        for name in self._loose_names():
            shape = self.donor.spec(name).shape
            long = 1 < shape[0] in (stack.depth, stack.depth - 1) if len(shape) > 2 else False
            if long and shape[-1] == width and not NUMBER.search(name):
                return name
        return None

    def _loose_names(self) -> Iterator[str]:
        return (name for (_, layer), name in self.donor.names.items() if layer is None)
