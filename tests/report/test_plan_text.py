"""The plan in words: totals first, letters for models, tensors that are alike on one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import jmerge
from jmerge.engine.schedule import make_schedule
from jmerge.report.plan import LINES, plan_text
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama


def text_of(recipe: str, *, every: bool = False) -> list[str]:
    Path("x.yml").write_text(recipe)
    plan = jmerge.plan("x.yml")
    return plan_text(plan, make_schedule(plan), 10**6, every=every).splitlines()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models `a`, `b` and `c` of six layers."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        write_llama(tmp_path / name, seed, layers=6)
    return tmp_path


TASK = """\
merge_method: task_arithmetic
base_model: a
parameters: {lambda: 0.5}
models:
- model: b
  parameters: {weight: [0, 1]}
- model: c
  parameters: {weight: -1}
"""


def test_rows_name_result_method_sources_and_parameters(place: Path) -> None:
    """With `every`, one for each tensor, in the order of the output."""
    lines = text_of(TASK, every=True)
    (first,) = [i for i, line in enumerate(lines) if line.startswith("tensor ")]
    rows = {line.split()[0]: line for line in lines[first + 1 :]}
    assert list(rows) == list(jmerge.plan("x.yml").outputs)
    row = rows["model.layers.5.mlp.up_proj.weight"]
    assert "F32[12, 8]" in row and "task_arithmetic" in row
    assert "B C [A]" in row, "the base in brackets"
    assert "weight=[1 -1]" in row and "lambda=0.5" in row and "normalize=false" in row
    assert lines[first].split() == ["tensor", "result", "method", "sources", "parameters"]
    assert not any(line != line.rstrip() for line in lines)


def test_layers_share_a_line(place: Path) -> None:
    lines = text_of(TASK)
    (line,) = [line for line in lines if "up_proj" in line]
    assert line.split() == ["model.layers.{0..5}.mlp.up_proj.weight", "x6", "F32[12,", "8]"]
    headings = [line for line in lines if line.startswith("task_arithmetic  ")]
    assert "task_arithmetic  B C [A]  weight=[0..1 -1] lambda=0.5 normalize=false" in headings
    assert lines[0].startswith("task_arithmetic of 3 models: 57 tensors, ")
    assert not any(line != line.rstrip() for line in lines)


def test_every_tensor_is_counted_once(place: Path) -> None:
    for recipe in (
        TASK,
        TASK.replace("weight: -1", "weight: [{filter: mlp, value: 1}, {value: 0}]"),
    ):
        rows = [line for line in text_of(recipe) if line.startswith("  ") and ".weight" in line]
        counts = [
            int(found) for row in rows for found in [row.split()[1].lstrip("x")] if found.isdigit()
        ]
        assert sum(counts) + sum(" x" not in row for row in rows) == 57


def test_other_layers_and_names_are_told(place: Path) -> None:
    lines = text_of(
        "merge_method: passthrough\nslices:\n"
        "- sources: [{model: a, layer_range: [0, 4]}]\n- sources: [{model: b, layer_range: [2, 6]}]\n"
    )
    own, other = [line for line in lines if "up_proj" in line]
    assert own.split() == ["model.layers.{0..3}.mlp.up_proj.weight", "x4", "F32[12,", "8]"]
    assert other.endswith("  B: {2..5}") and "{4..7}" in other
    assert "not taken 18 tensors of A: layer {4..5} is in no layer_range" in lines


def test_reading_is_told_as_it_will_be(place: Path) -> None:
    """Passes of statistics too, but over small tensors, which are read once."""
    for seed, name in enumerate("ab"):
        write_llama(place / name, seed, hidden=64, vocab=1000)
    for method, passes in (("linear", 1), ("slerp", 2)):
        recipe = f"merge_method: {method}\nbase_model: a\nmodels: [{{model: b}}]\n"
        recipe += "parameters: {t: 0.5}\n" if passes > 1 else "parameters: {weight: 1}\n"
        recipe = recipe if passes > 1 else recipe.replace("base_model: a\n", "")
        (reads,) = [line for line in text_of(recipe) if line.startswith("reads ")]
        assert ("over several passes" in reads) == (passes > 1), reads


@pytest.mark.parametrize("every", [False, True])
def test_a_mixture_of_many_experts_fits_a_screen(every: bool, place: Path) -> None:
    """However many tensors there are."""
    for seed, name in enumerate("de"):
        tensors = llama_tensors(seed, layers=6)
        for layer in range(6):
            for expert in range(40):
                for part in ("up_proj", "down_proj"):
                    key = f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
                    tensors[key] = np.ones((4, 8), np.float32)
        write_checkpoint(place / name, tensors, llama_config(layers=6))
    lines = text_of(
        "merge_method: linear\nmodels: [{model: d}, {model: e}]\nparameters: {weight: 1}\n",
        every=every,
    )
    if every:
        assert len(lines) > 480
        return
    assert len(lines) <= LINES
    (line,) = [line for line in lines if "experts" in line and "up_proj" in line]
    assert "model.layers.{0..5}.mlp.experts.{0..39}.up_proj.weight" in line and "x240" in line


def test_what_does_not_fit_is_counted(place: Path) -> None:
    """Every tensor with a number of its own, and many models."""
    filters = ", ".join(
        f"{{filter: layers.{layer}.{part}, value: 0.1{layer}{i}}}"
        for layer in range(6)
        for i, part in enumerate(("mlp.up", "mlp.down", "mlp.gate", "self_attn.q", "self_attn.k"))
    )
    models = "".join(f"- model: {name}\n" for name in "abc" * 5)
    recipe = f"merge_method: linear\nparameters: {{weight: [{filters}, {{value: 1}}]}}\nmodels:\n"
    alike = [text_of(recipe + "- model: a\n- model: b\n"), text_of(recipe + models)]
    for lines in alike:
        assert len(lines) <= LINES
        assert not any(line != line.rstrip() for line in lines)
    for seed in range(12):
        (place / f"m{seed}").symlink_to("b")
    others = "".join(f"- model: m{seed}\n" for seed in range(12))
    lines = text_of(recipe + others)
    assert len(lines) <= LINES and "          and 5 more; --all lists them" in lines
    assert "          L = m11" in text_of(recipe + others, every=True)


def test_files_that_stay_behind_are_named(place: Path) -> None:
    (place / "a" / "runs").mkdir()
    for name in ("optimizer.pt", "x.png", *(f"runs/{i}.tfevents" for i in range(6))):
        (place / "a" / name).write_bytes(b"x")
    lines = text_of(
        "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: a\n- model: b\n"
    )
    first = next(i for i, line in enumerate(lines) if line.startswith("not taken "))
    assert lines[first : first + 2] == [
        "not taken files of a: optimizer.pt, runs/ with 6 files (state or log of a training run)",
        "          files of a: x.png (a picture or document for people)",
    ]
