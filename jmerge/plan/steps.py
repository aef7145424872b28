"""The plan: a directed acyclic graph of steps as plain data, which prints, compares and hashes.

A `Step` makes one tensor from its inputs by a named method with resolved numbers. Nothing here knows recipes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Union

import numpy as np

from jmerge.arch.config import Change
from jmerge.ckpt.find import source_of
from jmerge.ckpt.source import Source
from jmerge.dtypes import TensorSpec
from jmerge.tokens.output import TokenPlan
from jmerge.tokens.rows import TableRows

COPY = (
    "copy"  # the method name of a step that takes its input over; several inputs must then be equal
)

Item = Union["Read", "Result", "Gathered", "Assembled"]  # an input of a step
Stored = Union["Read", "Assembled"]  # a tensor of an input model
Numbers = Mapping[
    str, Any
]  # by name in recipes: floats, tuples of floats (one a model), flags, or None for unset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """A tensor of an input model."""

    model: int  # position in `Plan.models`
    name: str
    file: str  # inside the model's folder
    start: int  # bytes from the beginning of the file
    spec: TensorSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What another step made."""

    step: str  # its name
    spec: TensorSpec


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """A block of an assembled input, and where its elements lie in a tensor of the model."""

    read: Read
    start: int  # which element of that tensor its first is
    strides: tuple[int, ...]  # elements of that tensor from one to the next along each axis
    box: tuple[tuple[int, int], ...]  # first and end on each axis of `Assembled.view`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assembled:
    """A tensor of an input model as the output stores its like, which the model stores as others: fused, apart, packed."""

    model: int  # position in `Plan.models`
    name: str  # what the output would call it
    view: tuple[int, ...]  # its shape with axes cut apart where several things lie along one
    boxes: tuple[Box, ...]  # which make it up
    spec: TensorSpec

    def __hash__(self) -> int:
        """By its name: there may be hundreds of boxes."""
        return hash((self.model, self.name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """How one tensor is made."""

    name: str  # of the output tensor; unique in the plan
    spec: TensorSpec  # of the result
    inputs: tuple[Item, ...]  # in recipe order
    base: int | None  # position of the base among the inputs
    method: str
    numbers: Numbers
    t: float  # relative depth at which the numbers were taken
    keys: tuple[tuple[int, int], ...] = ()  # of the random numbers of each model
    note: str = ""  # why it is not made as the recipe says for its like
    written: bool = True  # False: only other steps use it
    group: str = ""  # the steps with which it shares statistics of whole models; empty: none
    widened: bool = False  # computed in float64 because another step of the group is
    output: str = (
        ""  # which of several checkpoints it belongs to; its name begins with that and a slash
    )
    folder: str = ""  # where in the output it is written; its name begins with that and a slash

    @property
    def model_positions(self) -> tuple[int, ...]:
        """Which of the inputs are not the base."""
        return tuple(i for i in range(len(self.inputs)) if i != self.base)

    @property
    def models(self) -> tuple[Item, ...]:
        """The inputs but for the base."""
        return tuple(self.inputs[i] for i in self.model_positions)

    @property
    def arithmetic(self) -> np.dtype[Any]:
        """The dtype in which it is computed: float32, or float64 for tensors that are."""
        dtypes = (self.spec.dtype, *(item.spec.dtype for item in self.inputs))
        return np.dtype(np.float64 if self.widened or "F64" in dtypes else np.float32)

    @property
    def tensor(self) -> str:
        """The name of what it makes in its checkpoint."""
        return self.name.removeprefix(f"{self.output}/") if self.output else self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputFile:
    """What identifies a file of an input model."""

    name: str
    size: int
    header_sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputModel:
    """One input model."""

    ref: str  # as the recipe writes it
    path: str  # the folder
    files: tuple[InputFile, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unused:
    """A tensor of an input that no output is made of, and why."""

    model: int
    name: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftFile:
    """A file of the donor that the output does not have, and why."""

    name: str
    reason: str


class TakenFile(NamedTuple):
    """A file that the output has of a model."""

    name: str  # in the output
    source: Source
    own: str  # in that
    data: bytes | None  # what is written instead, if it is edited


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a merge will do, decided from headers alone."""

    version: str  # of jmerge
    recipe: str  # its text
    method: str
    seed: int
    models: tuple[InputModel, ...]  # the donor of names, config and other files first
    steps: tuple[Step, ...]  # in the order of the output: embeddings, layers, the rest
    unused: tuple[Unused, ...]
    config: Mapping[str, Any]  # config.json of the output
    changes: tuple[Change, ...]  # fields of it that differ from the donor's
    tied: (
        tuple[str, str] | None
    )  # head and embedding that are written both; equal bytes would mean tied
    warnings: tuple[str, ...]
    home: str = ""  # folder in a checkpoint where its config.json lies; mostly the checkpoint's own
    modules: tuple[str, ...] = ()  # of a Sentence Transformers model: their classes
    maps: tuple[TableRows, ...] = ()  # that gathered inputs name, by models' positions in `models`
    tokens: TokenPlan | None = None  # None: the donor's tokenizer files are copied
    # files of models that come along, in name order; where they lie is no part of what a plan is
    taken: tuple[TakenFile, ...] = dataclasses.field(default=(), compare=False, repr=False)
    left: tuple[LeftFile, ...] = ()  # those of the donor that stay behind, in name order
    # files of models that lie in no folder, by their paths in `models`; what they hold is no part of the plan
    held: Mapping[str, Source] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def source(self, model: int) -> Source:
        """The files of the model at this position of `models`."""
        label = self.models[model].path
        return self.held.get(label) or source_of(label)

    @property
    def outputs(self) -> dict[str, TensorSpec]:
        """The tensors that are written, in order."""
        return {step.name: step.spec for step in self.steps if step.written}

    @property
    def checkpoints(self) -> dict[str, dict[str, TensorSpec]]:
        """The tensors that are written, in order, by the checkpoint they belong to: one without a name, or several."""
        found: dict[str, dict[str, TensorSpec]] = {}
        for step in self.steps:
            if step.written:
                found.setdefault(step.output, {})[step.name] = step.spec
        return found

    @property
    def folders(self) -> dict[str, dict[str, TensorSpec]]:
        """The tensors that are written, in order, by the folder they are written to."""
        found: dict[str, dict[str, TensorSpec]] = {}
        for step in self.steps:
            if step.written:
                found.setdefault(step.folder, {})[step.name] = step.spec
        return found

    @property
    def read_bytes(self) -> int:
        """Bytes of input tensors, each time they are an input."""
        inputs = (item for step in self.steps for item in step.inputs)
        return sum(spec.nbytes for item in inputs if (spec := stored_spec(item)) is not None)

    @property
    def write_bytes(self) -> int:
        """Bytes of output tensors."""
        return sum(spec.nbytes for spec in self.outputs.values())

    def to_json(self) -> str:
        """The whole plan as JSON; equal plans give equal text."""
        return json.dumps(self, default=_plain, sort_keys=True, ensure_ascii=False)

    def sha256(self) -> str:
        """The identity of the plan: same recipe, inputs, seed and version give the same one."""
        # warnings name the recipe's file, and what is left of the donor's files makes nothing
        silent = dataclasses.replace(self, warnings=(), left=())
        return hashlib.sha256(silent.to_json().encode()).hexdigest()


def reads_of(item: Item) -> tuple[Read, ...]:
    """The tensors in files that an input is made of, that of its own model first; none of another step's result."""
    if isinstance(item, Read):
        return (item,)
    if isinstance(item, Assembled):
        return tuple(dict.fromkeys(box.read for box in item.boxes))
    return (item.own, *item.others) if isinstance(item, Gathered) else ()


def stored_spec(item: Item) -> TensorSpec | None:
    """What an input is in the files of its own model; None for another step's result."""
    if isinstance(item, Result):
        return None
    return item.own.spec if isinstance(item, Gathered) else item.spec


def _plain(value: Any) -> Any:
    """What JSON has for a plan and for parts of it."""
    if isinstance(value, Plan):
        return {name: part for name, part in vars(value).items() if name not in ("taken", "held")}
    return value.plain() if isinstance(value, TableRows | TokenPlan) else vars(value)
