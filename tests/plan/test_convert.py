"""Models in another form than the donor: what is read of them, what is told, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from layoutkit import ROWS, Row

from jmerge.ckpt.dtypes import NUMPY
from jmerge.ckpt.open import open_checkpoint
from jmerge.engine.assemble import Assembler
from jmerge.jobs import plan_recipe
from jmerge.plan.steps import Assembled, Plan, Read

LINEAR = """\
merge_method: linear
models:
- model: {0}
- model: {1}
parameters: {{weight: 0.5}}
"""


def plan_of(folder: Path, donor: str, other: str, text: str = LINEAR) -> Plan:
    (folder / "x.yml").write_text(text.format(folder / donor, folder / other))
    return plan_recipe(folder / "x.yml")


def written(row: Row, folder: Path) -> Path:
    for stored, name in zip(row, ("apart", "together"), strict=True):
        stored.write(folder / name)
    return folder


def assembled(plan: Plan) -> Iterator[Assembled]:
    return (item for step in plan.steps for item in step.inputs if isinstance(item, Assembled))


SIDES = [("apart", "together"), ("together", "apart")]


@pytest.mark.parametrize("name", ROWS)
def test_inputs_have_the_form_of_the_donor(name: str, tmp_path: Path) -> None:
    """Both ways, each tensor is that of the other form to the bit; nothing is missing or unused."""
    row = ROWS[name](0)
    written(row, tmp_path)
    for (donor, other), wanted, own in ((SIDES[0], *row), (SIDES[1], *row[::-1])):
        plan = plan_of(tmp_path, donor, other)
        assert [step.name for step in plan.steps if len(step.inputs) != 2] == []
        assert {step.name for step in plan.steps} == wanted.tensors.keys()
        assert plan.unused == ()
        made = {item.name: item for item in assembled(plan)}
        assert len(plan.warnings) - ("config.json" in str(plan.warnings)) >= 1
        files = open_checkpoint(tmp_path / other)

        def read(item: Read, first: int, buffer: np.ndarray, own: Row = own) -> None:
            raw = np.ascontiguousarray(own.tensors[item.name]).reshape(-1).view(np.uint8)
            assert 0 <= first and first + buffer.size <= raw.size
            buffer[:] = raw[first : first + buffer.size]

        used = {box.read.name for item in made.values() for box in item.boxes}
        assert used == {each for each in own.tensors if each not in read_plainly(plan)}
        assert all(each in files.index for each in used)
        for item in made.values():
            raw = np.empty(item.spec.nbytes, np.uint8)
            Assembler(read).read(item, 0, raw)
            array = raw.view(NUMPY[item.spec.dtype]).reshape(item.spec.shape)
            np.testing.assert_array_equal(array, wanted.tensors[item.name], err_msg=item.name)


def read_plainly(plan: Plan) -> set[str]:
    return {item.name for s in plan.steps for item in s.inputs[1:] if isinstance(item, Read)}


@pytest.mark.parametrize("name", ROWS)
def test_models_of_one_form_are_read_as_they_are(name: str, tmp_path: Path) -> None:
    row = ROWS[name](0)
    for stored, folder in zip(row, ("x", "y"), strict=True):
        stored.write(tmp_path / folder)
        stored.write(tmp_path / f"{folder}2")
        plan = plan_of(tmp_path, folder, f"{folder}2")
        assert not list(assembled(plan)) and plan.warnings == ()
