"""The input models of a recipe seen through the donor's names, so that tensors pair by template and layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jmerge.arch.infer import Layout, Stack
from jmerge.arch.match import match_templates
from jmerge.arch.mentions import Beside
from jmerge.arch.quantised import Quantised
from jmerge.ckpt.dtypes import TensorSpec
from jmerge.ckpt.open import Checkpoint
from jmerge.plan.rename import rename
from jmerge.plan.steps import Assembled
from jmerge.recipe.refs import ModelRef


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
    names: dict[tuple[str, int | None], str] = field(
        default_factory=dict
    )  # (template, layer) -> its own name
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

    @cached_property
    def beside(self) -> Beside:
        """What may be spoken of in config.json besides one of its stacks."""
        loose = [name for name, role in self.layout.roles.items() if role.stack is None]
        return Beside(tuple(self.layout.stacks.values()), tuple(loose))

    def spec(self, name: str) -> TensorSpec:
        """Of a tensor that `names` has."""
        converted = self.converted.get(name)
        return converted.spec if converted else self.checkpoint.index[name].spec

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
    donor_layout = next(iter(layouts.values()))
    donor_templates = list(dict.fromkeys(role.template for role in donor_layout.roles.values()))
    for number, (ref, checkpoint) in enumerate(checkpoints.items()):
        layout = layouts[ref]
        view = View(ref, number, checkpoint, layout, tied[ref], prefixes[ref])
        own = dict.fromkeys(role.template for role in layout.roles.values())
        mapped = {template: rename(template, view.prefixes) for template in own}
        pairs = match_templates(donor_templates, mapped.values())
        for name, role in layout.roles.items():
            template = pairs[mapped[role.template]]
            view.names[template, role.layer] = name
            prefix = None
            if role.stack is not None:
                prefix = template.partition("{}")[0].removesuffix(".")
                view.stacks.setdefault(prefix, layout.stacks[role.stack])
            module = role.module if role.module in donor_layout.modules else donor_layout.modules[0]
            made = Template(template, prefix, role.part, module, role.buffer)
            view.modules[name] = templates.setdefault(template, made).module
        view.heads = tuple(pairs[mapped[layout.roles[name].template]] for name in layout.heads)
        views[ref] = view
    return views, templates


def spell(template: str, stack: Stack | None, layer: int | None) -> str:
    """The output name of a template in the 0-based `layer`, numbered as `stack` is."""
    if stack is None or layer is None:
        return template
    return template.replace("{}", str(stack.indices[0] + layer), 1)
