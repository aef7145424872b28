"""Masks of pieces, from the pass that makes them to the last that needs them: a bit for each element and model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

KEPT_BYTES = 16  # of a step's masks for each candidate that its searches may hold


class KeptMasks:
    """The masks of some pieces of a step, the first that fit into so many bytes."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._packed: dict[int, list[np.ndarray]] = {}  # by the number of their piece
        self._shapes: dict[int, tuple[int, ...]] = {}

    def put(self, piece: int, masks: Sequence[np.ndarray]) -> None:
        """Keep the masks of a piece, all of one shape, if there is room."""
        size = sum(-(-mask.size // 8) for mask in masks)
        if masks and piece not in self._packed and size <= self._left:
            self._left -= size
            self._packed[piece] = [np.packbits(mask) for mask in masks]
            self._shapes[piece] = masks[0].shape

    def take(self, piece: int, *, again: bool) -> list[np.ndarray] | None:
        """The masks of a piece, None where they were not kept; again: whether they are needed once more."""
        if piece not in self._packed:
            return None
        packed, shape = self._packed[piece], self._shapes[piece]
        if not again:
            del self._packed[piece]
        count = int(np.prod(shape))
        return [np.unpackbits(each, count=count).view(np.bool_).reshape(shape) for each in packed]
