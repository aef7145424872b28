"""What is said of NaN that a merge wrote because it was allowed to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import jmerge
from jmerge.report.nonfinite import nonfinite_text
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama

RECIPE = """\
merge_method: linear
models:
  - {{model: {0}/a, parameters: {{weight: 1}}}}
  - {{model: {0}/b, parameters: {{weight: 1}}}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A merge of a sound model and one with NaN in a row of five tensors, and a mask with infinity in both."""
    mask = {"model.masked_bias": np.asarray([-np.inf], np.float32)}
    tensors = llama_tensors(1) | mask
    for count, name in enumerate([n for n in tensors if "proj" in n][:5], 1):
        tensors[name][0, :count] = np.nan
    write_checkpoint(tmp_path / "a", llama_tensors(0) | mask, llama_config())
    write_checkpoint(tmp_path / "b", tensors, llama_config())
    (tmp_path / "x.yml").write_text(RECIPE.format(tmp_path))
    return tmp_path / "x.yml"


def test_the_worst_are_named(recipe: Path) -> None:
    """One line with the total, the tensors with most, and whose they are; it is published."""
    merged = jmerge.merge(recipe, recipe.parent / "out", allow_nonfinite=True)
    (problem,) = merged.strange
    assert problem.message == (
        "NaN or infinity in 15 elements of 5 tensors: "
        "model.layers.0.mlp.gate_proj.weight (5 of 96), "
        "model.layers.0.self_attn.o_proj.weight (4 of 64), "
        f"model.layers.0.self_attn.v_proj.weight (3 of 32) and 2 more; they come from {recipe.parent / 'b'}"
    )


def test_nothing_to_say(tmp_path: Path, recipe: Path) -> None:
    """A sound merge says nothing, and neither do masks."""
    plan = jmerge.plan(recipe)
    assert nonfinite_text(plan, {}) == [] == nonfinite_text(plan, {"model.masked_bias": 1})
    write_llama(tmp_path / "b", 1)
    write_llama(tmp_path / "a", 0)
    assert jmerge.merge(recipe, tmp_path / "out", allow_nonfinite=True).strange == ()
