"""A sink that keeps results in memory, for those who want arrays and not a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from jmerge.dtypes import TensorSpec, view


class Arrays(Mapping[str, np.ndarray]):
    """The merged tensors of a run as numpy arrays by name; make it from `plan.outputs` and hand it to `run`."""

    def __init__(self, outputs: Mapping[str, TensorSpec]) -> None:
        self._specs = dict(outputs)
        self._raw = {name: np.zeros(spec.nbytes, np.uint8) for name, spec in outputs.items()}

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Put `data` at byte `start` of a tensor."""
        self._raw[tensor][start : start + len(data)] = data

    def __getitem__(self, name: str) -> np.ndarray:
        return view(self._raw[name], self._specs[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)
