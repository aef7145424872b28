"""Tensors that a model keeps in a wider dtype than the rest keep it, unless the recipe names them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from partialkit import SOUP, refused, run, write

import jmerge
from jmerge.plan.steps import Plan
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

BF16 = np.dtype(ml_dtypes.bfloat16)
A_LOG = "model.layers.{}.mixer.A_log"
STACK = """\
merge_method: passthrough
slices:
  - sources: [{model: {a}, layer_range: [0, 2]}]
  - sources: [{model: {b}, layer_range: [1, 2]}]
"""
TASK = """\
merge_method: task_arithmetic
base_model: {a}
models:
  - model: {b}
    parameters: {weight: 1}
"""


def model(
    folder: Path, seed: int, rest: np.dtype, kept: np.dtype, extra: bool = True
) -> dict[str, np.ndarray]:
    """A model stored in `rest`, but for a vector in each layer (14 and thousandths) that is stored in `kept`."""
    tensors = {name: array.astype(rest) for name, array in llama_tensors(seed).items()}
    if extra:
        values = np.float32(14) + np.linspace(0, 0.02, 8, dtype=np.float32)
        tensors |= {A_LOG.format(i): (values + seed / 1000).astype(kept) for i in range(2)}
    write_checkpoint(folder, tensors, llama_config())
    return tensors


def planned(folder: Path, recipe: str) -> tuple[dict[str, str], Plan]:
    """The dtypes of a recipe's result, and its plan."""
    plan = jmerge.plan(write(folder, recipe))
    return {name: spec.dtype for name, spec in plan.outputs.items()}, plan


F16, F32, F64 = (np.dtype(kind) for kind in (np.float16, np.float32, np.float64))


@pytest.mark.parametrize(
    "recipe", [SOUP, STACK, TASK, SOUP + "otherwise: first\nexcept: ['*q*']\n"]
)
@pytest.mark.parametrize("key", ["dtype", "out_dtype"])
def test_wider_than_the_rest(tmp_path: Path, recipe: str, key: str) -> None:
    """Merged, stacked or changed, it keeps its dtype; the plan says so once, the ledger's note for each."""
    for seed, name in enumerate("ab"):
        model(tmp_path / name, seed, BF16, F32)
    dtypes, plan = planned(tmp_path, recipe + f"{key}: bfloat16\n")
    wide = {name for name in dtypes if "A_log" in name}
    assert len(wide) >= 2
    assert dtypes == {name: "F32" if name in wide else "BF16" for name in dtypes}
    (warning,) = plan.warnings
    assert f"{key}: {len(wide)} tensors keep F32" in warning
    assert "cast: [model.layers.*.mixer.A_log]" in warning
    notes = {step.name: step.note for step in plan.steps if "kept in F32" in step.note}
    assert notes.keys() == wide


def test_values_are_not_rounded(tmp_path: Path) -> None:
    """The order of a router's scores outlives `dtype: bfloat16`, and config.json still tells the dtype of most."""
    a, b = (model(tmp_path / name, seed, BF16, F32) for seed, name in enumerate("ab"))
    made = run(tmp_path, SOUP + "dtype: bfloat16\n")
    for name in map(A_LOG.format, range(2)):
        np.testing.assert_allclose(made.tensors[name], 0.25 * a[name] + 0.75 * b[name], rtol=1e-6)
        assert np.all(np.diff(made.tensors[name]) > 0)
        assert made.ledger["tensors"][name]["note"] == f"kept in F32, as in {tmp_path / 'a'}"
    assert made.config["torch_dtype"] == "bfloat16"


# Of the first model the rest and the vector, of the second the vector, what is asked for; the vector's dtype then.
CASES = {
    "the second has it narrower": (BF16, F32, BF16, "bfloat16", "F32"),
    "the first has it narrower": (BF16, BF16, F32, "bfloat16", "BF16"),
    "all are as wide": (F32, F32, F32, "bfloat16", "BF16"),
    "F16 beside BF16": (BF16, F16, F16, "bfloat16", "BF16"),
    "BF16 beside F16": (F16, BF16, BF16, "float16", "F16"),
    "narrower than the rest": (F32, BF16, BF16, "float16", "F16"),
    "F64 beside F32": (F32, F64, F64, "float32", "F64"),
    "F64 beside F32, both too wide": (F32, F64, F64, "bfloat16", "F64"),
    "wider yet is asked for": (BF16, F32, F32, "float64", "F64"),
}


@pytest.mark.parametrize("case", CASES)
def test_whose_dtype(tmp_path: Path, case: str) -> None:
    """The first model decides, by width."""
    rest, first, second, asked, wanted = CASES[case]
    model(tmp_path / "a", 0, rest, first)
    model(tmp_path / "b", 1, rest, second)
    dtypes, _ = planned(tmp_path, SOUP + f"dtype: {asked}\n")
    assert dtypes[A_LOG.format(0)] == wanted
    assert dtypes["lm_head.weight"] == {"bfloat16": "BF16", "float16": "F16"}.get(
        asked, {"float32": "F32", "float64": "F64"}.get(asked)
    )


def test_only_another_model_has_it(tmp_path: Path) -> None:
    """Then that model decides, by its own other tensors."""
    model(tmp_path / "a", 0, BF16, BF16, extra=False)
    model(tmp_path / "b", 1, BF16, F32)
    dtypes, _ = planned(tmp_path, SOUP + "dtype: bfloat16\n")
    assert dtypes[A_LOG.format(0)] == "F32"


def test_a_layer_from_a_model_that_has_it_narrower(tmp_path: Path) -> None:
    """All layers of a stack are stored alike, as in the donor."""
    model(tmp_path / "a", 0, BF16, F32)
    model(tmp_path / "b", 1, BF16, BF16)
    dtypes, _ = planned(tmp_path, STACK + "dtype: bfloat16\n")
    assert [dtypes[A_LOG.format(i)] for i in range(3)] == ["F32"] * 3


def test_bytes_decide(tmp_path: Path) -> None:
    """A model most bytes of which are F32 is cast as asked, however many of its tensors are BF16."""
    for seed, name in enumerate("ab"):
        tensors = {
            key: array.astype(BF16) if array.ndim == 1 else array
            for key, array in llama_tensors(seed).items()
        }
        write_checkpoint(tmp_path / name, tensors, llama_config())
    dtypes, plan = planned(tmp_path, SOUP + "dtype: bfloat16\n")
    assert set(dtypes.values()) == {"BF16"} and plan.warnings == ()


def test_a_module_that_is_copied(tmp_path: Path) -> None:
    """The copy of a module that the recipe leaves out keeps it too."""
    for seed, name in enumerate("ab"):
        tower = {
            f"visual.blocks.{i}.{part}": np.ones(4, kind)
            for i in range(2)
            for part, kind in (("norm.weight", BF16), ("gamma", F32))
        }
        tensors = {key: array.astype(BF16) for key, array in llama_tensors(seed).items()}
        config = llama_config() | {"vision_config": {"depth": 2}}
        config["architectures"] = ["Qwen2VLForConditionalGeneration"]
        write_checkpoint(tmp_path / name, tensors | tower, config)

    recipe = "merge_method: linear\nmodules:\n  text_decoder:\n    models:\n"
    recipe += "".join(f"      - {{model: {{{n}}}, parameters: {{weight: 1}}}}\n" for n in "ab")

    dtypes, _ = planned(tmp_path, recipe + "dtype: float16\n")
    assert dtypes["visual.blocks.0.gamma"] == "F32"
    assert dtypes["visual.blocks.0.norm.weight"] == "F16"


def test_cast_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The pattern that the warning names casts them; one that matches nothing is refused, one without a dtype idle."""
    for seed, name in enumerate("ab"):
        model(tmp_path / name, seed, BF16, F32)
    cast = "cast: [model.layers.*.mixer.A_log]\n"
    dtypes, plan = planned(tmp_path, SOUP + "dtype: bfloat16\n" + cast)
    assert set(dtypes.values()) == {"BF16"} and plan.warnings == ()
    assert not any(step.note for step in plan.steps)
    lines = refused(tmp_path, SOUP + "dtype: bfloat16\ncast: ['*.A_lag']\n", capsys)
    (error,) = [line for line in lines if line.startswith("error")]
    assert error.startswith("error: x.yml:8: cast[0]: '*.A_lag' matches no tensor that is merged")
    dtypes, plan = planned(tmp_path, SOUP + cast)
    assert dtypes[A_LOG.format(0)] == "F32"
    assert "no effect without dtype" in plan.warnings[0]
