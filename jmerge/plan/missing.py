"""Tensors that some models lack or have in another shape: what becomes of them, and what is wrong.

A tensor is never merged as if the others had zeros. Means are taken over those that have it; a sum whose weights nothing
normalises gets weights that make up for the others, or is refused. A change that a model lacks is none, so methods on
changes from a base add those that there are to the base's tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jmerge.arch.config import told_of_layers
from jmerge.arch.infer import Stack
from jmerge.arch.kinds import home_of
from jmerge.methods.spec import Method
from jmerge.plan.outcomes import Cause, Finding, Scene, names_of
from jmerge.plan.pairing import View, spell
from jmerge.plan.patterns import any_layer, excepting, patterns_of
from jmerge.plan.problems import Problem, and_more, error, warning
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import Path

UNKNOWN_LENGTH = "the weights are not normalised, so nothing says how much the others count"
ONE = 1e-6  # how far from 1 weights may sum that are meant to make a mean
FEW = (
    3  # tensors of a layer or around them that may differ in shape before it is the models that do
)
OTHER_VOCABULARY = (
    "the vocabularies differ; add 'tokenizer_source: union' for the tokens of all models, or "
    "'tokenizer_source: base' for those of the base"
)


@dataclass(frozen=True)
class OtherShape(Cause):
    """A model has tensors in another shape; details: the shapes, for people."""

    ref: ModelRef

    def tell(self, found: Sequence[Finding], scene: Scene) -> Iterator[Problem]:
        """One error for each model."""
        shapes = {finding.name: finding.detail for finding in found}
        tables = {
            name
            for view in scene.views.values()
            for names in (view.layout.embeddings, view.layout.heads, view.layout.vocab_biases)
            for name in names
        }
        code, hint = "JM214", "models of different sizes cannot be merged"
        if set(shapes) <= tables:
            if scene.recipe.tokenizer is None:
                code, hint = "JM226", OTHER_VOCABULARY
        elif len(kinds := dict.fromkeys(map(any_layer, shapes))) <= FEW:
            hint = f"leave out what differs with {excepting(kinds)}"
        name, text = next(iter(shapes.items()))
        more = f" ({len(shapes)} tensors differ)" if len(shapes) > 1 else ""
        yield error(code, f"{name} is {text}{more}: {hint}", scene.recipe.first_path(self.ref))


@dataclass(frozen=True)
class Lacking(Cause):
    """Some models lack a tensor, so that it cannot be made."""

    absent: str  # these models
    reason: str
    path: Path

    def tell(self, found: Sequence[Finding], scene: Scene) -> Iterator[Problem]:
        """One error."""
        names = names_of(found)
        message = f"{and_more(names)}: not in {self.absent}; {self.reason}"
        if self.path[-1:] != ("otherwise",):
            message += f"; leave out what only some have with {excepting_only(names, scene)}"
        yield error("JM215", message, self.path)


@dataclass(frozen=True)
class MergedWithout(Cause):
    """Some models lack a tensor, which is made without them."""

    absent: str  # these models
    then: str

    def tell(self, found: Sequence[Finding], scene: Scene) -> Iterator[Problem]:
        """One warning."""
        then = self.then or "merged from the others"
        yield warning("JM221", f"{and_more(names_of(found))}: not in {self.absent}; {then}", ())


def excepting_only(names: Sequence[str], scene: Scene) -> str:
    """The line of a recipe that leaves out these tensors of the output and no others."""
    return excepting(patterns_of(names, scene.asked.keys() - {*names}))


def shapes_text(shape: Sequence[int], ref: ModelRef, wanted: Sequence[int], other: ModelRef) -> str:
    """Two shapes, for people."""
    return f"{list(shape)} in {ref} and {list(wanted)} in {other}"


class Verdict(NamedTuple):
    """`run` the method on those present, `copy` the only one (or the base), or `refuse` with a reason."""

    action: Literal["run", "copy", "refuse"]
    reason: str = ""


def judge(method: Method, has_base: bool, models: int, without: int) -> Verdict:
    """The verdict when `models` of the models have the tensor and `without` lack it, and the base has it or not (or
    there is none).

    Called only when at least one source has the tensor and at least one lacks it. Methods to which the base is an
    input like any other average over those present; one tensor alone is taken as it is by methods that turn one
    model towards another; methods that work on changes from the base need the base's tensor.
    """
    low, _ = method.counts
    if method.base == "input":
        return Verdict("run") if models >= low else Verdict("refuse", "no source has it")
    if has_base and models == 0:
        return Verdict("copy", "only the base has it")
    if method.takes == "base, models" and not has_base and models == 1:
        return Verdict("copy", "only one source has it")
    if method.base == "needed" and not has_base:
        return Verdict("refuse", "the base lacks it, so there is nothing to take the change from")
    if models < low:
        return Verdict("refuse", f"{method.counts_text()} must have it")
    if method.of_model and without:
        return Verdict(
            "refuse", f"'{method.name}' looks at whole models, so all of them must have it"
        )
    return Verdict("run")


def made_up(weights: Sequence[float], present: Sequence[int]) -> tuple[tuple[float, ...], Verdict]:
    """The weights of the models at positions `present` in a sum that is not normalised, and whether they are known.

    They stay where they sum to 1, as in base + change where only the base has the tensor. Where all `weights` sum to 1
    the sum is a mean, and so it is of those that have the tensor. Otherwise the sum is longer or shorter than its models
    on purpose, and how much of that is due to those that lack the tensor is not known.
    """
    own = tuple(weights[i] for i in present)
    if abs(sum(own) - 1) <= ONE:
        return own, Verdict("run")
    if abs(sum(weights) - 1) <= ONE and abs(sum(own)) > ONE:
        made = tuple(weight / sum(own) for weight in own)
        return made, Verdict("run", "merged from the others, whose weights make up for it")
    return own, Verdict("refuse", UNKNOWN_LENGTH)


class Missing(NamedTuple):
    """A tensor that one layer of a checkpoint lacks though it should have it."""

    name: str  # as the model would spell it
    having: int  # layers of the model that have it

    def problem(self, view: View, path: Path) -> Problem:
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
