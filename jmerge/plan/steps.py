"""The plan: a directed acyclic graph of steps as plain data, which prints, compares and hashes.

A `Step` makes one tensor from its inputs by a named method with resolved numbers. Nothing here knows recipes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jmerge.arch.config import Change
from jmerge.ckpt.find import find_source
from jmerge.ckpt.source import Source
from jmerge.dtypes import TensorSpec
from jmerge.plan.inputs import Item
from jmerge.tokens.output import TokenPlan
from jmerge.tokens.rows import TableRows

# the method name of a step that takes its input over; several inputs must then be equal
COPY = "copy"

# by name in recipes: floats, tuples of floats (one a model), flags, or None for unset
Hyperparameters = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """How one tensor is made."""

    name: str  # of the output tensor; unique in the plan
    spec: TensorSpec  # of the result
    inputs: tuple[Item, ...]  # in recipe order
    base: int | None  # position of the base among the inputs
    method: str
    hyperparameters: Hyperparameters
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
    # head and embedding that are written both; equal bytes would mean tied
    tied: tuple[str, str] | None
    warnings: tuple[str, ...]
    home: str = ""  # folder in a checkpoint where its config.json lies; mostly the checkpoint's own
    modules: tuple[str, ...] = ()  # of a Sentence Transformers model: their classes
    maps: tuple[TableRows, ...] = ()  # that gathered inputs name, by models' positions in `models`
    tokens: TokenPlan | None = None  # None: the donor's tokenizer files are copied
    # files of models that come along, in name order; where they lie is no part of what a plan is
    taken: tuple[TakenFile, ...] = dataclasses.field(default=(), compare=False, repr=False)
    left: tuple[LeftFile, ...] = ()  # those of the donor that stay behind, in name order
    # the opened models by their paths in `models`, so that a run sees what planning saw; no part of what a plan is
    sources: Mapping[str, Source] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    def source(self, model: int) -> Source:
        """The files of the model at this position of `models`."""
        label = self.models[model].path
        return self.sources.get(label) or find_source(label)

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
        specs = (item.stored for step in self.steps for item in step.inputs)
        return sum(spec.nbytes for spec in specs if spec is not None)

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


def into_folders(steps: Iterable[Step], home: str, folders: Sequence[str]) -> list[Step]:
    """The steps with names and folders of the output.

    home: where tensors go that are in none of the `folders`, whose names begin with their folder.
    """
    return [_placed(step, home, folders) for step in steps]


def placed_name(name: str, home: str, folders: Sequence[str]) -> str:
    """The name of a tensor of one checkpoint with the folder that it is in, if any."""
    if not home or any(name.startswith(f"{folder}/") for folder in folders):
        return name
    return f"{home}/{name}"


def folder_of(name: str, home: str, folders: Sequence[str]) -> str:
    """The folder that the name of a placed tensor begins with; empty: it lies in none."""
    return next((each for each in (home, *folders) if each and name.startswith(f"{each}/")), "")


def _placed(step: Step, home: str, folders: Sequence[str]) -> Step:
    if not (home or folders or step.output):
        return step
    name = placed_name(step.tensor, home, folders)
    inner = folder_of(name, home, folders)
    return dataclasses.replace(
        step,
        name="/".join(filter(None, (step.output, name))),
        folder="/".join(filter(None, (step.output, inner))),
    )


def _plain(value: Any) -> Any:
    """What JSON has for a plan and for parts of it."""
    if isinstance(value, Plan):
        return {
            name: part for name, part in vars(value).items() if name not in ("taken", "sources")
        }
    return value.plain() if isinstance(value, TableRows | TokenPlan) else vars(value)
