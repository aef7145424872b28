"""What planning finds of tensors that differ between models or are missing from some, told once for each cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jmerge.arch.place import no_place
from jmerge.plan.notes import Notes, and_more
from jmerge.plan.patterns import any_layer, excepting, patterns_of
from jmerge.plan.rename import map_path
from jmerge.plan.views import View
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import Path

FEW = (
    3  # tensors of a layer or around them that may differ in shape before it is the models that do
)

OTHER_VOCABULARY = (
    "the vocabularies differ; add 'tokenizer_source: union' for the tokens of all models, or "
    "'tokenizer_source: base' for those of the base"
)


class Findings:
    """Collects them tensor by tensor; `tell` makes faults and warnings of them."""

    def __init__(self, notes: Notes, views: Mapping[ModelRef, View]) -> None:
        self._notes = notes
        self._views = views
        self._mismatched: dict[ModelRef, dict[str, str]] = {}  # who -> tensor -> its shapes
        self._partial: dict[tuple[str, str], list[str]] = {}  # (who lacks, what follows) -> tensors
        # whose, why -> its tensor -> output's
        self._strange: dict[tuple[ModelRef, str], dict[str, str]] = {}
        # and where the first of them stands
        self._refused: dict[tuple[str, str, Path], list[str]] = {}
        self.asked: dict[str, None] = {}  # what the output may have

    def mismatch(self, name: str, ref: ModelRef, shapes: str) -> None:
        """A tensor of a model has another shape."""
        self._mismatched.setdefault(ref, {})[name] = shapes

    def partial(self, name: str, absent: str, then: str) -> None:
        """Some models lack a tensor, and something follows."""
        self._partial.setdefault((absent, then), []).append(name)

    def refused(self, name: str, absent: str, reason: str, path: Path) -> None:
        """Some models lack a tensor, and that cannot be."""
        self._refused.setdefault((absent, reason, path), []).append(name)

    def strange(self, ref: ModelRef, own: str, name: str, why: str) -> None:
        """A tensor of a model, `name` in the output, is one that the donor does not have and has no place for."""
        self._strange.setdefault((ref, why), {})[own] = name

    def tell_faults(self) -> None:
        """Note what makes the merge impossible."""
        tables = {
            name
            for view in self._views.values()
            for names in (view.layout.embeddings, view.layout.heads, view.layout.vocab_biases)
            for name in names
        }
        for ref, shapes in self._mismatched.items():
            name, text = next(iter(shapes.items()))
            more = f" ({len(shapes)} tensors differ)" if len(shapes) > 1 else ""
            hint = "models of different sizes cannot be merged"
            if set(shapes) <= tables and self._notes.recipe.tokenizer is None:
                hint = OTHER_VOCABULARY
            elif (
                not set(shapes) <= tables
                and len(patterns := dict.fromkeys(map(any_layer, shapes))) <= FEW
            ):
                hint = f"leave out what differs with {excepting(patterns)}"
            path = self._notes.recipe.first_path(ref)
            self._notes.fault(f"{name} is {text}{more}: {hint}", path)
        self._tell_strange()
        for (absent, reason, path), names in self._refused.items():
            message = f"{and_more(names)}: not in {absent}; {reason}"
            if path[-1:] != ("otherwise",):
                message += f"; leave out what only some have with {self._except(names)}"
            self._notes.fault(message, path)

    def _tell_strange(self) -> None:
        donor = next(iter(self._views))
        by_model: dict[ModelRef, dict[str, tuple[str, str]]] = {}
        for (ref, why), found in self._strange.items():
            by_model.setdefault(ref, {}).update({own: (name, why) for own, name in found.items()})
        line = self._except([name for found in self._strange.values() for name in found.values()])
        for ref, tensors in by_model.items():
            own, (name, why) = next(iter(tensors.items()))
            spelt = f"{own} of {ref}" + (f", mapped to {name}," if own != name else "")
            more = f" (as are {len(tensors) - 1} more)" if len(tensors) > 1 else ""
            message = f"{spelt} is no tensor of {donor}{more}" + (f": {why}" if why else "")
            step = "" if why else "map it to one, or "
            step += f"leave it out with {line}"
            if why and len(by_model) == 1 and self._has_place_for_all(ref, donor):
                place = "make it the base_model" if self._notes.recipe.base else "list it first"
                step += f", or {place}, so that the output has the config.json of {ref}"
            self._notes.fault(f"{message}; {step}", map_path(ref, self._notes.recipe))

    def _has_place_for_all(self, ref: ModelRef, donor: ModelRef) -> bool:
        """Whether a model could be the donor: it has a place for all that the donor has."""
        view, other = self._views[ref], self._views[donor]
        known = {template for template, _ in view.names}
        return all(
            no_place(template, other.config, view.config) is None
            for template, _ in other.names
            if template not in known
        )

    def _except(self, names: Sequence[str]) -> str:
        """The line that leaves these tensors of the output out and no others."""
        return excepting(patterns_of(names, self.asked.keys() - {*names}))

    def tell_warnings(self) -> None:
        """Note what was done about missing tensors."""
        for (absent, reason), names in self._partial.items():
            then = reason or "merged from the others"
            self._notes.warn(f"{and_more(names)}: not in {absent}; {then}", ())
