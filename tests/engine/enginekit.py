"""What the engine's tests share: plans made by hand, a sink in memory, recipes, time limits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jmerge.ckpt.open import Checkpoint, open_checkpoint
from jmerge.dtypes import NUMPY, TensorSpec
from jmerge.engine.events import Listener
from jmerge.engine.run import Outcome, run
from jmerge.engine.schedule import make_schedule
from jmerge.plan.inputs import Read, Result
from jmerge.plan.steps import InputModel, Plan, Step
from jmerge.testing.tiny import write_checkpoint, write_llama

T = TypeVar("T")

NUMBERS: dict[str, dict[str, Any]] = {
    "linear": {"weight": (0.3, 0.9), "normalize": True},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"weight": (0.7,), "lambda": 1.5, "normalize": False},
    "passthrough": {"scale": (1.25,)},
    "copy": {},
}
BASE = {"slerp": 0, "task_arithmetic": 0}  # the methods with a base among their inputs
COUNT = {"passthrough": 1, "copy": 1}  # inputs; two for the others


class Memory:
    """A sink in memory, which insists that every byte is written once and inside its tensor."""

    def __init__(self, plan: Plan) -> None:
        self.specs = plan.outputs
        self.data = {name: bytearray(spec.nbytes) for name, spec in self.specs.items()}
        self.missing = {name: np.ones(spec.nbytes, np.bool_) for name, spec in self.specs.items()}

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        stop = start + len(data)
        assert data.nbytes == len(data), "the engine hands over bytes"
        assert 0 <= start <= stop <= len(self.data[tensor]), "outside the tensor"
        assert self.missing[tensor][start:stop].all(), "written twice"
        self.missing[tensor][start:stop] = False
        self.data[tensor][start:stop] = data

    def __getitem__(self, tensor: str) -> np.ndarray:
        """A finished tensor."""
        assert not self.missing[tensor].any(), f"{tensor} is not whole"
        spec = self.specs[tensor]
        return np.frombuffer(self.data[tensor], NUMPY[spec.dtype]).reshape(spec.shape)


def checkpoints(folder: Path, *models: Mapping[str, np.ndarray]) -> list[Checkpoint]:
    """Checkpoints m0, m1, ... of these tensors."""
    return [
        open_checkpoint(write_checkpoint(folder / f"m{i}", tensors))
        for i, tensors in enumerate(models)
    ]


def read(models: Sequence[Checkpoint], number: int, name: str) -> Read:
    """The tensor `name` of the model of this number as an input."""
    entry = models[number].index[name]
    return Read(model=number, name=name, file=entry.file, start=entry.start, spec=entry.spec)


def result(step: Step) -> Result:
    """What a step makes as an input."""
    return Result(step=step.name, spec=step.spec)


def step(
    name: str,
    inputs: Sequence[Read | Result],
    method: str = "linear",
    *,
    dtype: str = "",
    hyperparameters: Mapping[str, Any] | None = None,
    written: bool = True,
) -> Step:
    """A step with the numbers of `NUMBERS`; its dtype is that of the first input unless given."""
    return Step(
        name=name,
        spec=TensorSpec(dtype or inputs[0].spec.dtype, inputs[0].spec.shape),
        inputs=tuple(inputs),
        base=BASE.get(method),
        method=method,
        hyperparameters=NUMBERS[method] if hyperparameters is None else hyperparameters,
        t=0.0,
        written=written,
    )


def plan_of(models: Sequence[Checkpoint], *steps: Step) -> Plan:
    """A plan that is nothing but these steps."""
    return Plan(
        version="test",
        recipe="",
        method=steps[0].method,
        seed=0,
        models=tuple(
            InputModel(ref=Path(model.path).name, path=str(model.path), files=())
            for model in models
        ),
        steps=steps,
        unused=(),
        config={},
        changes=(),
        tied=None,
        warnings=(),
    )


def carry_out(
    plan: Plan,
    *,
    piece: int | None = None,
    listeners: tuple[Listener, ...] = (),
    allow_nonfinite: bool = False,
) -> tuple[Memory, Outcome]:
    """Run a plan into memory, in pieces of `piece` elements when given."""
    schedule = make_schedule(plan) if piece is None else make_schedule(plan, piece=piece)
    sink = Memory(plan)
    outcome = within(
        lambda: run(plan, schedule, sink, listeners=listeners, allow_nonfinite=allow_nonfinite)
    )
    return sink, outcome


def within(action: Callable[[], T], seconds: float = 30) -> T:
    """What `action` returns or raises; a failure when it does not end in time."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"still running after {seconds} seconds"
    if errors:
        raise errors[0]
    return results[0]


def expected(
    method: str, inputs: Sequence[np.ndarray], hyperparameters: Mapping[str, Any]
) -> np.ndarray:
    """The result of a method in numpy float64."""
    arrays = [np.asarray(item).astype(np.float64) for item in inputs]
    if method == "copy":
        return arrays[0]
    if method == "passthrough":
        return arrays[0] * (hyperparameters["scale"] or (1.0,))[0]
    if method == "linear":
        total = sum(w * item for w, item in zip(hyperparameters["weight"], arrays, strict=True))
        return total / sum(hyperparameters["weight"]) if hyperparameters["normalize"] else total
    if method == "task_arithmetic":
        change = sum(
            w * (m - arrays[0]) for w, m in zip(hyperparameters["weight"], arrays[1:], strict=True)
        )
        return arrays[0] + hyperparameters["lambda"] * change
    base, other = arrays
    norms = [float(np.linalg.norm(item)) or 1.0 for item in arrays]
    cosine = float(np.clip(np.sum(base * other) / norms[0] / norms[1], -1, 1))
    t = hyperparameters["t"]
    if abs(cosine) > 0.9995:
        return (1 - t) * base + t * other
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * base + np.sin(t * angle) * other) / np.sin(angle)


# Whole merges


def two_models(folder: Path, **sizes: Any) -> None:
    """Tiny llamas `a` and `b` in a folder."""
    for seed, name in enumerate("ab"):
        write_llama(folder / name, seed, **sizes)


def write_recipe(folder: Path, weight: float = 0.5, name: str = "x.yml", extra: str = "") -> Path:
    """A linear recipe of the models `a` and `b` beside it."""
    path = folder / name
    path.write_text(
        f"merge_method: linear\nmodels:\n"
        f"- model: {folder / 'a'}\n  parameters: {{weight: {weight}}}\n"
        f"- model: {folder / 'b'}\n  parameters: {{weight: 1}}\n{extra}"
    )
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its path in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
