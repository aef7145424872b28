"""What planning finds of tensors that differ between models or are missing from some, told once for each cause."""

from __future__ import annotations

from collections.abc import Mapping

from jmerge.plan.notes import Notes, and_more
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
        self._strange: dict[ModelRef, dict[str, str]] = {}  # whose -> its tensor -> output's
        # and where the first of them stands
        self._refused: dict[tuple[str, str, Path], list[str]] = {}

    def mismatch(self, name: str, ref: ModelRef, shapes: str) -> None:
        """A tensor of a model has another shape."""
        self._mismatched.setdefault(ref, {})[name] = shapes

    def partial(self, name: str, absent: str, then: str) -> None:
        """Some models lack a tensor, and something follows."""
        self._partial.setdefault((absent, then), []).append(name)

    def refused(self, name: str, absent: str, reason: str, path: Path) -> None:
        """Some models lack a tensor, and that cannot be."""
        self._refused.setdefault((absent, reason, path), []).append(name)

    def strange(self, ref: ModelRef, own: str, name: str) -> None:
        """A tensor of a mapped model, `name` in the output, is one that the donor does not have."""
        self._strange.setdefault(ref, {})[own] = name

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
                and len(patterns := dict.fromkeys(map(_pattern, shapes))) <= FEW
            ):
                hint = f"leave out what differs with 'except: [{', '.join(patterns)}]'"
            path = self._notes.recipe.first_path(ref)
            self._notes.fault(f"{name} is {text}{more}: {hint}", path)
        donor = next(iter(self._views))
        for ref, found in self._strange.items():
            own, name = next(iter(found.items()))
            spelt = f"{own} of {ref}" + (f", mapped to {name}," if own != name else "")
            more = f" (as are {len(found) - 1} more)" if len(found) > 1 else ""
            message = f"{spelt} is no tensor of {donor}{more}; map it to one, or leave it out"
            path = self._notes.recipe.first_path(ref)
            path = (*path[:-1], "map") if self._views[ref].prefixes else path
            self._notes.fault(f"{message} with 'except: [{_pattern(name)}]'", path)
        for (absent, reason, path), names in self._refused.items():
            self._notes.fault(f"{and_more(names)}: not in {absent}; {reason}", path)

    def tell_warnings(self) -> None:
        """Note what was done about missing tensors."""
        for (absent, reason), names in self._partial.items():
            then = reason or "merged from the others"
            self._notes.warn(f"{and_more(names)}: not in {absent}; {then}", ())


def _pattern(name: str) -> str:
    """A pattern of what is called like `name` in any layer."""
    return ".".join("*" if word.isdigit() else word for word in name.split("."))
