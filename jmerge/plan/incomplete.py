"""Tensors that a checkpoint should have and lacks, which layers that differ by design do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jmerge.arch.config import told_of_layers
from jmerge.arch.infer import Stack
from jmerge.arch.layer_types import home_of
from jmerge.plan.pairing import View, spell
from jmerge.plan.problems import PlanProblem, error
from jmerge.recipe.yamltree import Path


class Missing(NamedTuple):
    """A tensor that one layer of a checkpoint lacks though it should have it."""

    name: str  # as the model would spell it
    having: int  # layers of the model that have it

    def as_problem(self, view: View, path: Path) -> PlanProblem:
        """The error."""
        message = f"{view.ref} lacks {self.name}, which {self.having} of its other layers have"
        return error("JM114", f"{message}; the checkpoint is incomplete", path)


def missing_beside_others(view: View, prefix: str, template: str, layer: int) -> Missing | None:
    """What a model lacks that does not have `template` in a layer where another source of the same output has it.

    Nothing is missing when no layer of the model has the template, or when config.json explains the difference.
    """
    stack = view.stacks.get(prefix)
    having = view.layers_with.get(template, [])
    if stack is None or not having:
        return None
    if config_explains(view.checkpoint.config, stack, layer, having):
        return None
    return Missing(spell(template, stack, layer), len(having))


def missing_alone(
    view: View, prefix: str, others: Sequence[View] = (), *, whole_blocks: bool = False
) -> Iterator[Missing]:
    """What is missing as one model shows alone: a layer with a part of a block that most layers have whole.

    A layer of another kind has templates of its own in the block (dense instead of experts) or lacks the block. What
    the first layer alone lacks, and that of all others too, is nothing that such models have there.

    others: models that are merged with it.
    whole_blocks: of blocks, too, that three layers or more and all have but one, which has others around it and nothing
      of its own instead.
    """
    stack = view.stacks.get(prefix)
    layers: dict[int, set[str]] = {}
    for name, layer in view.names:
        if layer is not None and name.startswith(f"{prefix}.{{}}." if prefix else "{}."):
            layers.setdefault(layer, set()).add(name)
    if stack is None or len(layers) < 3:
        return
    counts: dict[str, int] = {}
    for templates in layers.values():
        for template in templates:
            counts[template] = counts.get(template, 0) + 1
    usual = {template for template, count in counts.items() if 2 * count > len(layers)}
    for layer, templates in sorted(layers.items()):
        for template in sorted(usual - templates):
            block = _block(template)
            here = {other for other in templates if _block(other) == block}
            having = [at for at, names in layers.items() if template in names]
            if layer == 0 and len(having) == len(layers) - 1 and _lack_it_too(others, template):
                continue
            inner = 0 < layer < stack.depth - 1 and len(having) == len(layers) - 1 >= 3
            lost = here <= usual if here else whole_blocks and inner and templates <= usual
            if lost and not config_explains(view.checkpoint.config, stack, layer, having):
                yield Missing(spell(template, stack, layer), len(having))


def _lack_it_too(others: Sequence[View], template: str) -> bool:
    """Whether the first layers of other models lack a tensor that their other layers have."""
    return not any((template, 0) in other.names for other in others)


def config_explains(
    config: Mapping[str, Any], stack: Stack, layer: int, others: Sequence[int]
) -> bool:
    """Whether config.json says that `layer` differs in kind from the layers `others`.

    What is known to tell layers apart decides, and what looks as if it did under a key that is not known: a list of
    layer numbers with this one in it, or a count of layers that are dense or share their weights, at either end.
    """
    told = told_of_layers(config, stack)
    if any(all(said[layer] != said[other] for other in others) for said in told.values()):
        return True
    for key, value in home_of(config, stack).items():
        if isinstance(value, list) and layer in value and "layer" in key:
            return True
        if type(value) is int and ("dense" in key or "shared_layers" in key):
            if layer < value or layer >= stack.depth - value:
                return True
    return False


def _block(template: str) -> str:
    """The part of a layer that a template belongs to: the first word after the layer number."""
    return template.partition("{}.")[2].partition(".")[0]
