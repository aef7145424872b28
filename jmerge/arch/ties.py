"""Is a stored output head the embedding over again? The one question about structure that headers cannot answer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jmerge.arch.infer import Layout
from jmerge.ckpt.open import Checkpoint
from jmerge.recipe.refs import ModelRef

FIRST_STRIDE = 1 << 16  # bytes compared at first: a head of its own differs in the first few
STRIDE = 1 << 24  # bytes compared at a time after that


def find_ties(
    checkpoints: Mapping[ModelRef, Checkpoint], layouts: Mapping[ModelRef, Layout]
) -> dict[ModelRef, bool]:
    """For each model, whether its head is tied: absent, or byte for byte its embedding.

    Bytes are only read when it matters, that is when some of the models store a head and some do not.
    """
    stored = {ref: bool(layout.heads) for ref, layout in layouts.items()}
    mixed = len(set(stored.values())) > 1
    return {
        ref: bool(layout.embeddings)
        and (
            not stored[ref]
            or (mixed and same_bytes(checkpoints[ref], layout.heads[0], layout.embeddings[0]))
        )
        for ref, layout in layouts.items()
    }


def same_bytes(checkpoint: Checkpoint, first: str, second: str) -> bool:
    """Whether two tensors of a checkpoint have one shape, one dtype and the same bytes."""
    if checkpoint.index[first].spec != checkpoint.index[second].spec:
        return False
    size, start = checkpoint.index[first].spec.nbytes, 0
    while start < size:
        stop = min(start + (STRIDE if start else FIRST_STRIDE), size)
        a, b = (checkpoint.raw(name, start, stop) for name in (first, second))
        if not np.array_equal(a, b):
            return False
        start = stop
    return True
