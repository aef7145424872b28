"""Cutting the output into files: where each tensor goes is known before a byte is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmerge.api.merge import merge
from jmerge.ckpt.safetensors import read_header
from jmerge.ckpt.shards import OutFile, index_json, plan_files
from jmerge.dtypes import BITS, TensorSpec
from jmerge.testing.tiny import write_llama

SPECS = {
    name: TensorSpec("U8", (size,)) for name, size in zip("abcd", (400, 40, 40, 40), strict=True)
}


def groups(files: tuple[OutFile, ...]) -> list[set[str]]:
    return [set(file.starts) for file in files]


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [
        (100, [{"a"}, {"b", "c"}, {"d"}]),  # the example of the specification
        (80, [{"a"}, {"b", "c"}, {"d"}]),
        (79, [{"a"}, {"b"}, {"c"}, {"d"}]),
        (1, [{"a"}, {"b"}, {"c"}, {"d"}]),
        (120, [{"a"}, {"b", "c", "d"}]),
        (400, [{"a"}, {"b", "c", "d"}]),
        (440, [{"a", "b"}, {"c", "d"}]),
        (519, [{"a", "b", "c"}, {"d"}]),
        (520, [{"a", "b", "c", "d"}]),
        (0, [{"a", "b", "c", "d"}]),
        (-1, [{"a", "b", "c", "d"}]),
    ],
)
def test_tensors_fill_files_in_order(limit: int, wanted: list[set[str]]) -> None:
    assert groups(plan_files(SPECS, limit)) == wanted


def test_a_tensor_above_the_limit_stands_alone_in_the_middle() -> None:
    specs = {
        name: TensorSpec("F32", (size,)) for name, size in zip("xyz", (4, 100, 4), strict=True)
    }
    assert groups(plan_files(specs, 64)) == [{"x"}, {"y"}, {"z"}]


def test_an_empty_tensor_never_opens_a_file() -> None:
    specs = {"a": TensorSpec("U8", (100,)), "e": TensorSpec("U8", (0,))}
    assert groups(plan_files(specs, 100)) == [{"a", "e"}]


def test_names() -> None:
    assert [file.name for file in plan_files(SPECS, 0)] == ["model.safetensors"]
    assert [file.name for file in plan_files(SPECS, 100)] == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    many = {f"t{i}": TensorSpec("U8", (1,)) for i in range(12)}
    assert plan_files(many, 1)[10].name == "model-00011-of-00012.safetensors"


def test_index() -> None:
    files = plan_files(SPECS, 100)
    assert index_json(files, SPECS, "9.9") == {
        "metadata": {"total_size": 520, "jmerge_version": "9.9"},
        "weight_map": {
            "a": "model-00001-of-00003.safetensors",
            "b": "model-00002-of-00003.safetensors",
            "c": "model-00002-of-00003.safetensors",
            "d": "model-00003-of-00003.safetensors",
        },
    }
    assert index_json(plan_files(SPECS, 0), SPECS, "9.9") is None


@given(
    specs=st.lists(
        st.tuples(
            st.sampled_from(("F64", "F32", "BF16", "U8", "F8_E4M3", "BOOL", "C64")),
            st.lists(st.integers(0, 9), max_size=3),
        ),
        max_size=20,
    ),
    limit=st.integers(-5, 400),
)
def test_every_plan_is_greedy_tight_and_aligned(
    specs: list[tuple[str, list[int]]], limit: int
) -> None:
    wanted = {f"t{i}": TensorSpec(dtype, tuple(shape)) for i, (dtype, shape) in enumerate(specs)}
    files = plan_files(wanted, limit)
    assert sorted(name for file in files for name in file.starts) == sorted(wanted)
    order = {name: i for i, file in enumerate(files) for name in file.starts}
    assert [order[name] for name in wanted] == sorted(order.values()), "files follow the order"
    for file, following in zip(files, [*files[1:], None], strict=True):
        position = len(file.header)
        assert position % 64 == 0
        for name, start in file.starts.items():
            assert start == position
            size, width = wanted[name].nbytes, BITS[wanted[name].dtype] // 8
            assert start % (64 if size % 64 == 0 else width) == 0
            position += size
        assert position == file.size
        filled = file.size - len(file.header)
        assert limit <= 0 or filled <= limit or sum(wanted[n].nbytes > 0 for n in file.starts) == 1
        if following is not None:  # the first tensor of the next file did not fit
            first = min(following.starts, key=list(wanted).index)
            assert filled + wanted[first].nbytes > limit > 0


@pytest.mark.parametrize("limit", [0, 300, 700])
def test_what_was_planned_is_what_lies_on_disk(limit: int, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        write_llama(tmp_path / name, seed)
    recipe = tmp_path / "x.yml"
    entries = "".join(f"- model: {tmp_path / n}\n  parameters: {{weight: 1}}\n" for n in "ab")
    recipe.write_text(f"merge_method: linear\nmodels:\n{entries}")
    merged = merge(recipe, tmp_path / "out", shard_size=limit)
    files = plan_files(merged.plan.outputs, limit)
    assert (len(files) > 1) == (limit > 0)
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == {
        file.name for file in files
    }
    for file in files:
        path = tmp_path / "out" / file.name
        assert path.stat().st_size == file.size
        assert path.read_bytes()[: len(file.header)] == file.header
        extents = read_header(path).extents
        assert {name: extent.start for name, extent in extents.items()} == file.starts
        for name, extent in extents.items():
            assert extent.spec == merged.plan.outputs[name]
    index = tmp_path / "out" / "model.safetensors.index.json"
    if limit:
        found = json.loads(index.read_text())
        assert found["weight_map"] == {name: file.name for file in files for name in file.starts}
        assert found["metadata"]["total_size"] == merged.plan.write_bytes
        assert index.read_text().startswith('{\n  "metadata": {\n    "total_size"')
    else:
        assert not index.exists()
