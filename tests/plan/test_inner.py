"""Lists of layers inside of each layer: with another number of layers, what counts both would be wrong of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partialkit import refused, write

import jmerge
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

Parts = list[str]  # modules with a weight


def model(folder: Path, depth: int, inside: Parts, beside: Parts = (), **fields: Any) -> None:  # type: ignore[assignment]
    """A model that has these modules in each layer, and others outside of all."""
    tensors = llama_tensors(0, layers=depth)
    names = [f"model.layers.{i}.{part}" for i in range(depth) for part in inside] + [*beside]
    tensors |= {f"{name}.weight": np.full((2, 2), i, np.float32) for i, name in enumerate(names)}
    write_checkpoint(folder, tensors, llama_config(layers=depth) | fields)


def recipe(*layers: int) -> str:
    """These layers."""
    lines = [f"  - sources: [{{model: {{a}}, layer_range: [{i}, {i + 1}]}}]\n" for i in layers]
    return "merge_method: passthrough\nslices:\n" + "".join(lines)


def mlp(name: str, inner: int, ends: Parts) -> Parts:
    """A module of a list of layers, and of one at each end."""
    return [f"{name}.layers.{i}" for i in range(inner)] + [f"{name}.{end}" for end in ends]


ENDS = ["proj_in", "proj_out"]


@pytest.mark.parametrize(
    ("depth", "inside", "beside", "count", "fields"),
    [
        # SAM 2: its MLPs of two layers are all ends, one outside has more
        (2, mlp("ffn", 0, ENDS), mlp("top", 1, ENDS), 2, {}),
        (2, mlp("ffn", 0, ENDS), mlp("top", 1, ENDS), 2, {"top_depth": 2}),
        (3, mlp("ffn", 1, ENDS), [], 3, {}),
        (3, mlp("ffn", 2, ["out"]), [], 3, {}),
        (3, mlp("ffn", 3, []), [], 3, {}),
        (3, mlp("ffn", 3, ENDS), [], 3, {}),
    ],
)
def test_their_number_cannot_change(
    depth: int,
    inside: Parts,
    beside: Parts,
    count: int,
    fields: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The key of the layers is named, with what to do, which works."""
    model(tmp_path / "a", depth, inside, beside, **fields)
    assert refused(tmp_path, recipe(*range(depth), 1), capsys) == [
        f"error: x.yml:2: slices: config.json's 'num_hidden_layers' counts the layers, and may count the {count} of "
        "'model.layers.0.ffn' too; pick as many layers as there were"
    ]
    turned = recipe(*reversed(range(depth)))
    assert jmerge.plan(write(tmp_path, turned)).outputs


@pytest.mark.parametrize(
    ("depth", "inside", "beside", "fields"),
    [
        (2, mlp("ffn", 0, ENDS), [], {}),  # nothing has a list where these have none
        (2, mlp("ffn", 0, ENDS), mlp("top", 1, ["proj_in", "other"]), {}),
        (4, mlp("ffn", 1, ENDS), mlp("top", 1, ENDS), {}),  # three, of four layers
        (3, mlp("ffn", 1, ENDS), [], {"ffn_depth": 3}),
        (3, mlp("ffn", 1, ENDS), [], {"ffn_config": {"num_ffn_layers": 3}}),
        (3, [f"moe.experts.{i}.w" for i in range(3)], [], {"num_local_experts": 3}),
        (3, [f"moe.experts.{i}.w" for i in range(3)], [], {}),  # no layers
        # other things in each entry, as in T5
        (2, ["block.layer.0.attention", "block.layer.1.dense"], [], {}),
    ],
)
def test_other_lists_do_not_matter(
    depth: int, inside: Parts, beside: Parts, fields: dict[str, Any], tmp_path: Path
) -> None:
    """Lists of another length, with a key of their own, of different entries, of no layers."""
    model(tmp_path / "a", depth, inside, beside, **fields)
    plan = jmerge.plan(write(tmp_path, recipe(*range(depth), 1)))
    assert plan.config["num_hidden_layers"] == depth + 1
