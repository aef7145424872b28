"""The inputs of a step: a small expression over tensors in files and results of other steps.

Each kind is one class, which says of which tensors in files it is made (`reads`) and what it is in the files of its own
model (`stored`). `engine/inputs.py` fills byte ranges of them.
"""

from __future__ import annotations

import dataclasses

from jmerge.dtypes import TensorSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """A tensor of an input model."""

    model: int  # position in `Plan.models`
    name: str
    file: str  # inside the model's folder
    start: int  # bytes from the beginning of the file
    spec: TensorSpec

    @property
    def reads(self) -> tuple[Read, ...]:
        """The tensors in files that it is made of."""
        return (self,)

    @property
    def stored(self) -> TensorSpec | None:
        """What it is in the files of its model."""
        return self.spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """A block of an assembled input, and where its elements are in a tensor of the model."""

    read: Read
    start: int  # which element of that tensor its first is
    strides: tuple[int, ...]  # elements of that tensor from one to the next along each axis
    box: tuple[tuple[int, int], ...]  # first and end on each axis of `Assembled.view`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assembled:
    """A tensor of an input model in the storage layout of the output: fused, split or packed."""

    model: int  # position in `Plan.models`
    name: str  # what the output would call it
    view: tuple[int, ...]  # its shape with axes split where several things are along one
    boxes: tuple[Box, ...]  # which make it up
    spec: TensorSpec

    def __hash__(self) -> int:
        """By its name: there may be hundreds of boxes."""
        return hash((self.model, self.name))

    @property
    def reads(self) -> tuple[Read, ...]:
        """The tensors in files that it is made of."""
        return tuple(dict.fromkeys(box.read for box in self.boxes))

    @property
    def stored(self) -> TensorSpec | None:
        """What it is in the files of its model."""
        return self.spec


Stored = Read | Assembled  # a tensor of an input model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gathered:
    """A table of an input model, such as its embedding, with a row for each token of the output."""

    rows: int  # which of `Plan.maps` says what makes its rows
    own: Read  # the table that the model has
    others: tuple[Read, ...]  # tables of other models, whose rows it gets where its own has none
    spec: TensorSpec  # in which its rows are exact, but for means

    @property
    def model(self) -> int:
        """Position in `Plan.models` of the model that has the table."""
        return self.own.model

    @property
    def name(self) -> str:
        """Of the model's own table."""
        return self.own.name

    @property
    def reads(self) -> tuple[Read, ...]:
        """The tensors in files that it is made of, the model's own first."""
        return (self.own, *self.others)

    @property
    def stored(self) -> TensorSpec | None:
        """What it is in the files of its model."""
        return self.own.spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What another step made."""

    step: str  # its name
    spec: TensorSpec

    @property
    def reads(self) -> tuple[Read, ...]:
        """No tensors in files."""
        return ()

    @property
    def stored(self) -> TensorSpec | None:
        """It is in no file."""
        return None


Item = Stored | Gathered | Result  # an input of a step
