"""How many elements of a step are NaN or infinite, counted piece by piece."""

from __future__ import annotations

import numpy as np

from jmerge.dtypes import count_nonfinite
from jmerge.engine.slots import Loaded


class Tally:
    """How many elements of one step's inputs and result are NaN or infinite."""

    def __init__(self) -> None:
        self._inputs: dict[int, int] = {}
        self._result = 0

    def count(self, loaded: Loaded, raw: np.ndarray) -> int:
        """Add those of a piece whose result is `raw`, and say how many the result has."""
        step = loaded.work.step
        for position, item in enumerate(step.inputs):
            found = count_nonfinite(loaded.raw(position), item.spec.dtype)
            if found:
                self._inputs[position] = self._inputs.get(position, 0) + found
        result = count_nonfinite(raw, step.spec.dtype)
        self._result += result
        return result

    def take(self) -> tuple[dict[int, int], int]:
        """The counts by position of the input, and that of the result; begins anew."""
        counts = self._inputs, self._result
        self._inputs, self._result = {}, 0
        return counts
