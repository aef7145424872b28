"""Tensors that no method merges: buffers, counters and whatever else is no float. They are copies of one model's."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jmerge.arch.infer import is_computed
from jmerge.dtypes import FLOATS
from jmerge.plan.inputs import Stored
from jmerge.plan.notes import Notes, and_more
from jmerge.plan.patterns import any_layer
from jmerge.plan.places import Target
from jmerge.plan.steps import COPY, Step
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.yamltree import Path

COUNTER = re.compile(r"(^|_)(counts?|counter|steps?|seen|tracked|tokens_per_\w+)$")
MASK = re.compile(r"(?<![a-z])mask$")


class Untrained:
    """Makes their copies: of the base's, or else of the first that there is.

    Floats are buffers by their names, which models store as they please; so are masks, as numbers, bytes or flags. Whole numbers have to be equal in all models,
    which is seen when they are read; but one alone is a counter, such as the batches that a BatchNorm has seen, and
    differs as soon as models were trained for another number of steps.
    """

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._mixed: dict[tuple[str, Path], list[str]] = {}  # (what differs, where) -> tensors
        self._counters: dict[ModelRef, list[str]] = {}  # whose is taken -> output's

    def step(self, target: Target, found: Sequence[tuple[int, Stored]]) -> Step | None:
        """The copy; None when the models differ in kind, which is noted."""
        out_slice = target.place.out_slice
        reads = [read for _, read in found]
        refs = [out_slice.sources[i].ref for i, _ in found]
        at = refs.index(out_slice.base) if out_slice.base in refs else 0
        chosen = reads[at]
        inputs: tuple[Stored, ...] = (chosen,)
        floats = [read.spec.dtype in FLOATS for read in reads]
        counts = all(read.spec.size == 1 for read in reads) or _count(reads)
        if counts and not all(floats) and _alike(reads):
            note = f"a counter: that of {refs[at]}"
            if len(set(refs)) > 1:
                self._counters.setdefault(refs[at], []).append(target.name)
        elif all(floats) or _masks(reads):
            note = "a buffer: not trained"
        elif any(read.spec != chosen.spec for read in reads):
            kinds = ", ".join(f"{r.spec} in {ref}" for r, ref in zip(reads, refs, strict=True))
            self._mixed.setdefault((f"differs in kind: {kinds}", out_slice.path), []).append(
                target.name
            )
            return None
        else:
            note = "not floating point"
            inputs = tuple(dict.fromkeys([chosen, *reads]))
        return Step(
            name=target.name,
            spec=chosen.spec,
            inputs=inputs,
            base=None,
            method=COPY,
            numbers={},
            t=target.place.t,
            note=note,
        )

    def refuse_mixed(self, target: Target, found: Sequence[tuple[int, Stored]]) -> None:
        """Note a tensor that is trained in one model, and no float in another."""
        out_slice = target.place.out_slice
        kinds = ", ".join(f"{read.spec.dtype} in {out_slice.sources[i].ref}" for i, read in found)
        message = f"is a float in one model and not in another: {kinds}"
        self._mixed.setdefault((message, out_slice.path), []).append(target.name)

    def tell(self) -> None:
        """Note whose counters are taken, and what is refused, each cause once."""
        for (message, path), (name, *more) in self._mixed.items():
            count = f" ({len(more)} more like it)" if more else ""
            kinds = ", ".join(dict.fromkeys(map(any_layer, (name, *more))))
            hint = f"to take them from one model, write 'except: [{kinds}]'"
            self._notes.fault(f"{name} {message}{count}; {hint}", path)
        for ref, names in self._counters.items():
            what = "counters are" if len(names) > 1 else "a counter is"
            self._notes.warn(f"{and_more(names)}: {what} not merged; taken from {ref}", ())


def _alike(reads: Sequence[Stored]) -> bool:
    """Whether none of them is a float, or their names tell that they are computed."""
    floats = any(read.spec.dtype in FLOATS for read in reads)
    return not floats or all(is_computed(read.name, read.spec) for read in reads)


def _count(reads: Sequence[Stored]) -> bool:
    """Whether all count, each in several places, such as the tokens that every expert has seen; of one shape."""
    named = all(COUNTER.search(read.name.rpartition(".")[2]) for read in reads)
    return named and len({read.spec for read in reads}) == 1


def _masks(reads: Sequence[Stored]) -> bool:
    """Whether all are masks or positions by their names, stored in other kinds or lengths than one another."""
    specs = {read.spec for read in reads}
    if len(specs) > 1 and all(is_computed(read.name, read.spec) for read in reads):
        return True
    masks = all(MASK.search(read.name) for read in reads)
    return masks and len(specs) > 1 and len({read.spec.shape for read in reads}) == 1
