"""Tensors that no method merges: buffers, counters and whatever else is no float. They are copies of one model's."""

from __future__ import annotations

from collections.abc import Sequence

from jmerge.ckpt.dtypes import FLOATS
from jmerge.plan.notes import Notes, and_more
from jmerge.plan.places import Target
from jmerge.plan.steps import COPY, Step, Stored
from jmerge.recipe.refs import ModelRef


class Untrained:
    """Makes their copies: of the base's, or else of the first that there is.

    Floats are buffers by their names, which models store as they please. Whole numbers have to be equal in all models,
    which is seen when they are read; but one alone is a counter, such as the batches that a BatchNorm has seen, and
    differs as soon as models were trained for another number of steps.
    """

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._counters: dict[ModelRef, list[str]] = {}  # whose is taken -> output's

    def step(self, target: Target, found: Sequence[tuple[int, Stored]]) -> Step | None:
        """The copy; None when the models differ in kind, which is noted."""
        out_slice = target.place.out_slice
        reads = [read for _, read in found]
        refs = [out_slice.sources[i].ref for i, _ in found]
        at = refs.index(out_slice.base) if out_slice.base in refs else 0
        chosen = reads[at]
        inputs: tuple[Stored, ...] = (chosen,)
        if all(read.spec.dtype in FLOATS for read in reads):
            note = "a buffer: not trained"
        elif all(read.spec.size == 1 for read in reads):
            note = f"a counter: that of {refs[at]}"
            if len(set(refs)) > 1:
                self._counters.setdefault(refs[at], []).append(target.name)
        elif any(read.spec != chosen.spec for read in reads):
            kinds = ", ".join(f"{r.spec} in {ref}" for r, ref in zip(reads, refs, strict=True))
            self._notes.fault(f"{target.name} differs in kind: {kinds}", out_slice.path)
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

    def tell(self) -> None:
        """Note whose counters are taken."""
        for ref, names in self._counters.items():
            what = "counters are" if len(names) > 1 else "a counter is"
            self._notes.warn(f"{and_more(names)}: {what} not merged; taken from {ref}", ())
