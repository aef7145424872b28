"""What planning finds of tensors that differ between models or are missing from some, told once for each cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jmerge.plan.notes import Notes
from jmerge.plan.views import View
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import Path


class Findings:
    """Collects them tensor by tensor; `tell` makes faults and warnings of them."""

    def __init__(self, notes: Notes, views: Mapping[ModelRef, View]) -> None:
        self._notes = notes
        self._views = views
        self._mismatched: dict[ModelRef, dict[str, str]] = {}  # who -> tensor -> its shapes
        self._partial: dict[tuple[str, str], list[str]] = {}  # (who lacks, what follows) -> tensors
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
                hint = "the vocabularies differ; add 'tokenizer_source: union' for the tokens of all models, or "
                hint += "'tokenizer_source: base' for those of the base"
            path = self._notes.recipe.first_path(ref)
            self._notes.fault(f"{name} is {text}{more}: {hint}", path)
        for (absent, reason, path), names in self._refused.items():
            self._notes.fault(f"{_and_more(names)}: not in {absent}; {reason}", path)

    def tell_warnings(self) -> None:
        """Note what was done about missing tensors."""
        for (absent, reason), names in self._partial.items():
            then = reason or "merged from the others"
            self._notes.warn(f"{_and_more(names)}: not in {absent}; {then}", ())


def _and_more(names: Sequence[str]) -> str:
    """The first name, and how many others there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
