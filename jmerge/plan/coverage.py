"""Which tensors a recipe merges, and whose bytes the rest are: `only`, `except` and `otherwise`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate
from typing import NamedTuple

from jmerge.names import did_you_mean
from jmerge.plan.notes import Notes, and_more
from jmerge.recipe.recipe import OutSlice, Recipe
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import Path


class Pattern(NamedTuple):
    """A pattern of tensor names."""

    text: str
    regex: re.Pattern[str]
    path: Path  # where it stands in the recipe


class Coverage:
    """The patterns of a recipe, and what they said of the tensors they were asked about."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._only = patterns(recipe, "only", recipe.only)
        self._excluded = patterns(recipe, "except", recipe.excluded)
        self._matched: set[Path] = set()
        self._asked: dict[str, None] = {}
        self._refused: dict[str, list[str]] = {}  # why -> tensors
        self._absent: dict[tuple[str, str], list[str]] = {}  # (who lacks, why) -> tensors

    @property
    def stated(self) -> bool:
        """Whether the recipe says that some tensors are not merged, or what becomes of those."""
        return bool(self._only or self._excluded or self.recipe.otherwise)

    def excluded(self, name: str) -> str | None:
        """Which key keeps the output tensor `name` from being merged; None when none does."""
        self._asked[name] = None
        only = [each.path for each in self._only if each.regex.match(name)]
        excluded = [each.path for each in self._excluded if each.regex.match(name)]
        self._matched.update(only, excluded)
        if self._only and not only:
            return "not in 'only'"
        return "in 'except'" if excluded else None

    def keeper(self, out_slice: OutSlice) -> ModelRef:
        """The model whose tensors are taken where nothing is merged: the slice's base if any, else its first."""
        if out_slice.base is not None and self.recipe.otherwise != "first":
            return out_slice.base
        return out_slice.sources[0].ref

    def refuse(self, name: str, why: str) -> None:
        """Note a tensor that is not merged, under `otherwise: error`."""
        self._refused.setdefault(why, []).append(name)

    def absent(self, name: str, ref: ModelRef, why: str) -> None:
        """Note a tensor that is not merged and that its keeper does not have."""
        self._absent.setdefault((str(ref), why), []).append(name)

    def tell(self, notes: Notes) -> None:
        """Note what is wrong with the patterns and with what they leave out."""
        for each in (*self._only, *self._excluded):
            if each.path not in self._matched:
                hint = did_you_mean(each.text, self._asked, show=0)
                notes.fault(f"'{each.text}' matches no tensor of the output{hint}", each.path)
        for why, names in self._refused.items():
            message = f"{and_more(names)}: {why}, so not merged"
            notes.fault(f"{message}; 'otherwise: base' would copy the base's", ("otherwise",))
        for (ref, why), names in self._absent.items():
            notes.warn(f"{and_more(names)}: {why} and not in {ref}, so not in the output", ())


def check_otherwise(recipe: Recipe, notes: Notes) -> None:
    """There is a base where the recipe wants its tensors, and it is a source where slices have sources of their own."""
    partial = recipe.only or recipe.excluded or recipe.otherwise
    if recipe.otherwise == "base" and any(out.base is None for _, out in recipe.slices()):
        message = "there is no base_model; add one, or write 'otherwise: first'"
        notes.fault(message, ("otherwise",))
    elif partial and recipe.otherwise in (None, "base"):
        for _, out_slice in recipe.slices():
            refs = [source.ref for source in out_slice.sources]
            if out_slice.base is not None and out_slice.base not in refs:
                message = f"tensors that are not merged would come from '{out_slice.base}', which"
                message += " is no source of this slice; list it, or write 'otherwise: first'"
                notes.fault(message, out_slice.sources_path)


def patterns(recipe: Recipe, key: str, texts: Sequence[str]) -> list[Pattern]:
    """The patterns `texts` that stand under `key` of the recipe."""
    listed = isinstance(recipe.document.value.get(key), list)
    return [
        Pattern(text, re.compile(translate(text)), (key, i) if listed else (key,))
        for i, text in enumerate(texts)
    ]
