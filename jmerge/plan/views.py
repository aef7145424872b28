"""The input models of a recipe seen through the donor's names, so that tensors pair by template and layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jmerge.arch.infer import NUMBER, Layout, Stack, class_names, config_dicts
from jmerge.arch.match import match_templates, plain_name
from jmerge.ckpt.dtypes import FLOATS, TensorSpec
from jmerge.ckpt.open import Checkpoint
from jmerge.plan.rename import rename
from jmerge.plan.steps import Assembled
from jmerge.recipe.refs import ModelRef

Key = tuple[str, int | None]  # template and layer

SCALE_SUFFIXES = ("_scale_inv", ".weight_scale", "_scales", ".scales", ".absmax")


@dataclass(frozen=True)
class Template:
    """A tensor of the output before its layer number is known."""

    name: str  # with `{}` for the layer number, as the donor spells it
    stack: str | None  # donor's prefix of the stack; None for a loose tensor
    part: str
    module: str
    buffer: bool


@dataclass
class View:
    """One input model."""

    ref: ModelRef
    number: int  # position among the inputs
    checkpoint: Checkpoint
    layout: Layout
    tied: bool  # its output head is its embedding
    prefixes: Mapping[str, str]  # of its names -> of the output's
    names: dict[Key, str] = field(default_factory=dict)  # (template, layer) -> its own name
    stacks: dict[str, Stack] = field(default_factory=dict)  # donor's prefix -> its own stack
    modules: dict[str, str] = field(default_factory=dict)  # name -> module of the output
    heads: tuple[str, ...] = ()  # templates of its output heads
    used: dict[str, None] = field(default_factory=dict)  # its tensors that a step reads
    # what it has in another form than the donor, by what `names` calls it
    converted: dict[str, Assembled] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json, with the class that the recipe says it has."""
        return config_of(self.ref, self.checkpoint)

    @cached_property
    def layers_with(self) -> dict[str, list[int]]:
        """Template -> the layers that have it; asked for when `names` is complete."""
        layers: dict[str, list[int]] = {}
        for template, layer in self.names:
            if layer is not None:
                layers.setdefault(template, []).append(layer)
        return layers

    def spec(self, name: str) -> TensorSpec:
        """Of a tensor that `names` has."""
        converted = self.converted.get(name)
        return converted.spec if converted else self.checkpoint.index[name].spec

    def quantized(self) -> str | None:
        """Why its weights are not plain numbers, or None when they are."""
        for _, part in config_dicts(self.checkpoint.config):
            if isinstance(part.get("quantization_config"), dict):
                kind = part["quantization_config"].get("quant_method", "an unnamed method")
                return f"config.json says that its weights are quantised ({kind})"
        for name, entry in self.checkpoint.index.items():
            if entry.spec.dtype not in FLOATS[:4] and entry.spec.dtype.startswith("F"):
                stem = name.removesuffix(".weight")
                scale = next((s for s in SCALE_SUFFIXES if name + s in self.checkpoint.index), None)
                scale = scale or next(
                    (s for s in SCALE_SUFFIXES if stem + s in self.checkpoint.index), None
                )
                if scale:
                    return f"{name} is {entry.spec.dtype} with a scale beside it"
        return None


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
    shapes: dict[
        str, tuple[int, ...]
    ] = {}  # of all templates so far, in the first layer that has them
    modules = next(iter(layouts.values())).modules
    known: dict[str, Key] = {}  # how the output calls the donor's tensors -> what they are
    for number, (ref, checkpoint) in enumerate(checkpoints.items()):
        layout = layouts[ref]
        view = View(ref, number, checkpoint, layout, tied[ref], prefixes[ref])
        views[ref] = view
        spelt = {raw: rename(one, view.prefixes) for raw, one in one_spelling(layout).items()}
        own: dict[str, tuple[int, ...]] = {}
        for name, role in layout.roles.items():
            own.setdefault(spelt[role.template], checkpoint.index[name].spec.shape)
        family = is_family(next(iter(views.values())).config, view.config)
        pairs = match_templates(shapes, own, (shapes, own), family=family)
        keys: dict[str, str] = {}
        for name, role in layout.roles.items():
            stack = layout.stacks[role.stack] if role.stack is not None else None
            template, layer = pairs[spelt[role.template]], role.layer
            called = spell(template, stack, layer)
            around = stack or _stack_around(name, layout)
            if number and template not in shapes and called in known:
                found = known[called]  # though only one config.json counts these layers
                if found not in view.names and (found[1] is None or around is not None):
                    (template, layer), stack = found, around
            view.names[template, layer] = name
            keys[name] = template
            prefix = None
            if layer is not None and stack is not None:
                prefix = template.partition("{}")[0].removesuffix(".")
                view.stacks.setdefault(prefix, stack)
            module = role.module if role.module in modules else modules[0]
            made = Template(template, prefix, role.part, module, role.buffer)
            view.modules[name] = templates.setdefault(template, made).module
            if number == 0:
                known[called] = template, layer
        view.heads = tuple(keys[name] for name in layout.heads)
        for template, shape in own.items():
            shapes.setdefault(pairs[template], shape)
    return views, templates


def one_spelling(layout: Layout) -> dict[str, str]:
    """Template -> the one that stands for it: the shortest of those that are spellings of one tensor in different
    layers, some of which are compiled, say."""
    layers: dict[str, set[int | None]] = {}
    groups: dict[tuple[str | None, str], list[str]] = {}
    for role in layout.roles.values():
        if role.template not in layers:
            groups.setdefault((role.stack, plain_name(role.template)), []).append(role.template)
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


def _stack_around(name: str, layout: Layout) -> Stack | None:
    """The stack that a loose tensor would be in if config.json counted its layers."""
    found = NUMBER.search(name)
    return layout.stacks.get(name[: found.start()].removesuffix(".")) if found else None


def spell(template: str, stack: Stack | None, layer: int | None) -> str:
    """The output name of a template in the 0-based `layer`, numbered as `stack` is."""
    if stack is None or layer is None:
        return template
    return template.replace("{}", str(stack.indices[0] + layer), 1)
