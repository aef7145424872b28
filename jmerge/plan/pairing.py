"""The input models of a recipe seen through the donor's names, so that tensors pair by template and layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple

from jmerge.arch.infer import NUMBER, Layout, Stack, class_names
from jmerge.arch.match import NEVER_A_MODULE, match_templates, plain_name
from jmerge.arch.mentions import Beside
from jmerge.arch.quantised import Quantised
from jmerge.ckpt.open import Checkpoint
from jmerge.dtypes import BITS, FLOATS, TensorSpec
from jmerge.names import did_you_mean
from jmerge.plan.inputs import Assembled, Read, Stored
from jmerge.plan.problems import PlanProblem, error
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import Path

Key = tuple[str, int | None]  # template and layer


@dataclass(frozen=True)
class Template:
    """A tensor of the output before its layer number is known."""

    name: str  # with `{}` for the layer number, as the donor spells it
    stack: str | None  # donor's prefix of the stack; None for a loose tensor
    part: str
    module: str
    buffer: bool


@dataclass(frozen=True)
class View:
    """One input model."""

    ref: ModelRef
    number: int  # position among the inputs
    checkpoint: Checkpoint
    layout: Layout
    tied: bool  # its output head is its embedding
    prefixes: Mapping[str, str]  # of its names -> of the output's
    names: Mapping[Key, str] = field(default_factory=dict)  # (template, layer) -> its own name
    stacks: Mapping[str, Stack] = field(default_factory=dict)  # donor's prefix -> its own stack
    modules: Mapping[str, str] = field(default_factory=dict)  # name -> module of the output
    heads: tuple[str, ...] = ()  # templates of its output heads
    # what it stores in another layout than the donor, by what `names` calls it
    converted: Mapping[str, Assembled] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json, with the class that the recipe says it has."""
        return config_of(self.ref, self.checkpoint)

    @cached_property
    def layers_with(self) -> dict[str, list[int]]:
        """Template -> the layers that have it."""
        layers: dict[str, list[int]] = {}
        for template, layer in self.names:
            if layer is not None:
                layers.setdefault(template, []).append(layer)
        return layers

    @cached_property
    def beside(self) -> Beside:
        """What may be spoken of in config.json besides one of its stacks."""
        loose = [name for name, role in self.layout.roles.items() if role.stack is None]
        return Beside(tuple(self.layout.stacks.values()), tuple(loose))

    def spec(self, name: str) -> TensorSpec:
        """Of a tensor that `names` has."""
        converted = self.converted.get(name)
        return converted.spec if converted else self.checkpoint.index[name].spec

    def read(self, name: str) -> Read:
        """A tensor of its files, as steps have it."""
        entry = self.checkpoint.index[name]
        return Read(
            model=self.number, name=name, file=entry.file, start=entry.start, spec=entry.spec
        )

    def stored(self, name: str) -> Stored:
        """A tensor that `names` has, which the model may store in another layout."""
        return self.converted.get(name) or self.read(name)

    def spelt(self, template: str, layer: int | None) -> str:
        """What the model would call a template in a layer."""
        return spell(template, self.stacks.get(prefix_of(template)), layer)

    @cached_property
    def usual_bits(self) -> int:
        """The width of most bytes of its trained tensors; 0 when it has none."""
        roles, index = self.layout.roles, self.checkpoint.index
        counts = Counter(index[name].spec for name, role in roles.items() if not role.buffer)
        weight: dict[int, int] = {}
        for spec, count in counts.items():
            if spec.dtype in FLOATS:
                bits = BITS[spec.dtype]
                weight[bits] = weight.get(bits, 0) + count * spec.nbytes
        return max(weight, key=lambda bits: (weight[bits], bits), default=0)

    @cached_property
    def quantised(self) -> Quantised:
        """Whether its weights are codes and no numbers."""
        specs = {name: entry.spec for name, entry in self.checkpoint.index.items()}
        return Quantised(specs, self.checkpoint.config)


def config_of(ref: ModelRef, checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json of a model, with the class that the recipe says it has."""
    override = ref.override_architecture
    return {**checkpoint.config, "architectures": [override]} if override else checkpoint.config


def build_views(
    checkpoints: Mapping[ModelRef, Checkpoint],
    layouts: Mapping[ModelRef, Layout],
    tied: Mapping[ModelRef, bool],
    prefixes: Mapping[ModelRef, Mapping[str, str]],
) -> tuple[dict[ModelRef, View], dict[str, Template]]:
    """Every model as a `View`, and the templates of all of them: the donor's in its file order, then new ones."""
    views: dict[ModelRef, View] = {}
    templates: dict[str, Template] = {}
    shapes: dict[str, tuple[int, ...]] = {}  # of all that is known so far, in the first layer
    output = _Output()
    modules = next(iter(layouts.values())).modules
    for number, (ref, checkpoint) in enumerate(checkpoints.items()):
        layout = layouts[ref]
        generals = general_names(layout, prefixes[ref], output.stacks)
        own: dict[str, tuple[int, ...]] = {}
        for name, each in generals.items():
            own.setdefault(each.template, checkpoint.index[name].spec.shape)
        config = config_of(ref, checkpoint)
        donor = next(iter(views.values()), None)
        family = is_family(donor.config if donor else config, config)
        pairs = match_templates(shapes, own, (shapes, own), family=family)
        keys: dict[str, Key] = {}
        stacks: dict[str, Stack] = {}
        called: dict[str, str] = {}
        for name, role in layout.roles.items():
            each = generals[name]
            template, layer = keys[name] = output.place(pairs[each.template], each)
            prefix = None
            if layer is not None and each.stack is not None:
                prefix = prefix_of(template)
                stacks.setdefault(prefix, each.stack)
            if template not in templates:
                module = role.module if role.module in modules else modules[0]
                made = Template(template, prefix, role.part, module, role.buffer)
                templates[template] = made
            called[name] = templates[template].module
        names = {key: name for name, key in keys.items()}
        heads = tuple(keys[name][0] for name in layout.heads)
        found = View(
            ref, number, checkpoint, layout, tied[ref], prefixes[ref], names, stacks, called, heads
        )
        views[ref] = found
        for template, shape in own.items():
            shapes.setdefault(pairs[template], shape)
    return views, templates


class _General(NamedTuple):
    """A tensor as names are compared: without the number of its layer, whether config.json counts layers or not."""

    template: str
    stack: Stack | None = None
    number: int | None = None  # of the layer, as its name has it
    counted: bool = False


class _Output:
    """How the tensors of the output are called: by layers where the first model that has a stack counts them."""

    def __init__(self) -> None:
        self._counted: dict[str, Stack] = {}
        self._loose: set[str] = set()

    @property
    def stacks(self) -> Collection[str]:
        """What stands before the numbers of the layers that are counted."""
        return self._counted.keys()

    def place(self, template: str, own: _General) -> Key:
        """Template and layer of a tensor of a model whose general template pairs with this one."""
        if own.stack is None or own.number is None:
            return template, None
        prefix = prefix_of(template)
        if own.counted and prefix not in self._loose:
            self._counted.setdefault(prefix, own.stack)
            return template, own.number - own.stack.indices[0]
        stack = self._counted.get(prefix)
        if stack is not None and own.number >= stack.indices[0]:
            return template, own.number - stack.indices[0]
        self._loose.add(prefix)
        return template.replace("{}", str(own.number), 1), None


def general_names(
    layout: Layout, prefixes: Mapping[str, str], stacks: Collection[str] = ()
) -> dict[str, _General]:
    """The tensors of a model by their names, renamed by its map, which may bring them into some of the donor's stacks."""
    plain = one_spelling(layout)
    found: dict[str, _General] = {}
    brought: dict[str, str] = {}
    for name, role in layout.roles.items():
        template = rename(plain[role.template], prefixes)
        if template == plain[role.template] != name:
            template = rename(name, prefixes) if rename(name, prefixes) != name else template
        if role.stack is not None and role.layer is not None and "{}" in template:
            stack = layout.stacks[role.stack]
            found[name] = _General(template, stack, stack.indices[0] + role.layer, counted=True)
            continue
        found[name] = _General(template)
        if "{}" not in template and template != name:
            brought[name] = template
        if number := NUMBER.search(name):
            around = layout.stacks.get(name[: number.start()].removesuffix("."))
            if around is not None and int(number[0]) in around.indices:
                general = rename(f"{name[: number.start()]}{{}}{name[number.end() :]}", prefixes)
                if general.replace("{}", number[0], 1) == template:
                    found[name] = _General(general, around, int(number[0]))
                    brought.pop(name, None)
    return found | _brought(brought, stacks)


def _brought(names: Mapping[str, str], stacks: Collection[str]) -> dict[str, _General]:
    """Of loose tensors, by the names that a map gives them, those that it brings into a stack of the donor."""
    places: dict[str, tuple[str, int, str]] = {}
    numbers: dict[str, set[int]] = {}
    for name, called in names.items():
        if (number := NUMBER.search(called)) is not None:
            prefix = called[: number.start()].removesuffix(".")
            if prefix in stacks:
                rest = called[number.end() :]
                places[name] = prefix, int(number[0]), f"{called[: number.start()]}{{}}{rest}"
                numbers.setdefault(prefix, set()).add(int(number[0]))
    made = {prefix: Stack(prefix, tuple(sorted(found)), ()) for prefix, found in numbers.items()}
    return {
        name: _General(general, made[prefix], number)
        for name, (prefix, number, general) in places.items()
    }


def one_spelling(layout: Layout) -> dict[str, str]:
    """Template -> the one that stands for it: the shortest of those that are spellings of one tensor in different
    layers, some of which are compiled, say."""
    layers: dict[str, set[int | None]] = {}
    groups: dict[tuple[str | None, str], list[str]] = {}
    for role in layout.roles.values():
        if role.template not in layers:
            plain = plain_name(role.template, NEVER_A_MODULE)
            groups.setdefault((role.stack, plain), []).append(role.template)
        layers.setdefault(role.template, set()).add(role.layer)
    found = {template: template for template in layers}
    for group in groups.values():
        counted = [layer for each in group for layer in layers[each]]
        if len(counted) == len(set(counted)):
            found |= dict.fromkeys(group, min(group, key=len))
    return found


def is_family(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two config.json are of one class, or of one type of models."""
    first, second = (
        [each.casefold() for each in class_names(config)[:1]] for config in (one, other)
    )
    kind = one.get("model_type")
    return bool(first and first == second) or (bool(kind) and kind == other.get("model_type"))


@cache
def prefix_of(template: str) -> str:
    """What stands before the number of the layer: the prefix of its stack."""
    return template.partition("{}")[0].removesuffix(".")


def spell(template: str, stack: Stack | None, layer: int | None) -> str:
    """The output name of a template in the 0-based `layer`, numbered as `stack` is."""
    if stack is None or layer is None:
        return template
    return template.replace("{}", str(stack.indices[0] + layer), 1)


def strangers(views: Mapping[ModelRef, View], recipe: Recipe) -> Iterator[PlanProblem]:
    """Sources that have no tensor in common with the donor, or no layer where both have some."""
    donor = next(iter(views.values()))
    known = _layered(donor)
    sources = {source.ref for _, out_slice in recipe.slices() for source in out_slice.sources}
    for ref, view in views.items():
        own = _layered(view)
        if ref in sources and known and own and not known.keys() & own.keys():
            first, wanted = (next(iter(names)).replace("{}", "0", 1) for names in (own, known))
            message = f"no layer of {ref} is called like one of {donor.ref} ({first}, {wanted})"
            yield error("JM216", f"{message}; their structures differ", recipe.first_path(ref))
        elif ref in sources and not view.names.keys() & donor.names.keys():
            first, wanted = (next(iter(each.names.values()), "nothing") for each in (view, donor))
            message = f"nothing of {ref} is called like anything of {donor.ref} ({first}, {wanted})"
            hint = "write a 'map' beside the model that gives its names as they are there"
            yield error("JM216", f"{message}; {hint}", recipe.first_path(ref))


def _layered(view: View) -> dict[str, None]:
    return {template: None for template, layer in view.names if layer is not None}


def rename(template: str, prefixes: Mapping[str, str]) -> str:
    """The template with the longest prefix that fits replaced; as it is where none does."""
    if not prefixes:
        return template
    fitting = [prefix for prefix in prefixes if template.startswith(prefix)]
    if not fitting:
        return template
    longest = max(fitting, key=len)
    return prefixes[longest] + template[len(longest) :]


def prefixes_of(recipe: Recipe, ref: ModelRef) -> dict[str, str]:
    """The map of a model as templates are renamed by it: `*` is the layer's number."""
    return {_numbered(old): _numbered(new) for old, new in recipe.prefixes(ref).items()}


def starred(prefixes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The rules of a map as recipes write them."""
    for old, new in prefixes.items():
        yield old.replace("{}", "*", 1), new.replace("{}", "*", 1)


def _numbered(prefix: str) -> str:
    return ".".join("{}" if word == "*" else word for word in prefix.split("."))


def map_path(ref: ModelRef, recipe: Recipe) -> Path:
    """Where the map of a model stands, or the model that has none."""
    path = recipe.first_path(ref)
    return (*path[:-1], "map") if recipe.prefixes(ref) else path


def map_problems(layouts: Mapping[ModelRef, Layout], recipe: Recipe) -> Iterator[PlanProblem]:
    """Every rule fits tensors of its model, and no two of its tensors get one name."""
    for ref, layout in layouts.items():
        prefixes = prefixes_of(recipe, ref)
        if not prefixes:
            continue
        path = next(
            (*source.path, "map")
            for _, out_slice in recipe.slices()
            for source in out_slice.sources
            if source.ref == ref and source.prefixes
        )
        templates = dict.fromkeys(role.template for role in layout.roles.values())
        for prefix in recipe.prefixes(ref):
            begins = _numbered(prefix)
            if not any(each.startswith(begins) for each in (*templates, *layout.roles)):
                hint = did_you_mean(prefix, beginnings(templates))
                message = f"no tensor of {ref} starts with '{prefix}'{hint}"
                yield error("JM217", message, (*path, prefix))
        names: dict[tuple[str, int | None], str] = {}
        for role in layout.roles.values():
            name = rename(role.template, prefixes)
            other = names.setdefault((name, role.layer), role.template)
            if other != role.template:
                message = f"gives two tensors of {ref} one name: {other} and {role.template}"
                yield error("JM217", f"{message} become {name}", path)
                break


def beginnings(templates: Iterable[str]) -> list[str]:
    """What rules may begin with: the words before layer numbers, dots included."""
    found: dict[str, None] = {}
    for template in templates:
        words = template.partition("{}")[0].split(".")
        for end in range(1, len(words)):
            found[".".join(words[:end]) + "."] = None
    return list(found)
