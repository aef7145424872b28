"""Models in another form than the donor: what is read of them, what is told, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from layoutkit import ROWS, Row, Stored
from said import uncoded

import jmerge
from jmerge.ckpt.open import open_checkpoint
from jmerge.dtypes import NUMPY
from jmerge.engine.assemble import Assembler
from jmerge.errors import PlanError
from jmerge.plan.inputs import Assembled, Read
from jmerge.plan.steps import Plan

LINEAR = """\
merge_method: linear
models:
- model: {0}
- model: {1}
parameters: {{weight: 0.5}}
"""


def plan_of(folder: Path, donor: str, other: str, text: str = LINEAR) -> Plan:
    (folder / "x.yml").write_text(text.format(folder / donor, folder / other))
    return jmerge.plan(folder / "x.yml")


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

        def read(item: Read, first: int, buffer: np.ndarray, own: Stored = own) -> None:
            raw = np.ascontiguousarray(own.tensors[item.name]).reshape(-1).view(np.uint8)
            assert 0 <= first and first + buffer.size <= raw.size
            buffer[:] = raw[first : first + buffer.size]

        used = {box.read.name for item in made.values() for box in item.boxes}
        assert used == {each for each in own.tensors if each not in read_plainly(plan)}
        assert all(each in files.index for each in used)
        for item in made.values():
            raw = np.empty(item.spec.nbytes, np.uint8)
            Assembler(read, lambda *_: nullcontext()).read(item, 0, raw)
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


# What is told and refused


def drop(stored: Stored, *names: str) -> None:
    for name in names:
        del stored.tensors[name]


def problems(folder: Path, donor: str, other: str, text: str = LINEAR) -> str:
    """What is wrong, in one line; folders by their names."""
    with pytest.raises(PlanError) as error:
        plan_of(folder, donor, other, text)
    lines = uncoded(str(error.value)).replace(f"{folder}/", "").splitlines()
    assert len(lines) == 1, lines
    return lines[0]


AT = "model.layers.1.mlp.experts"


def test_a_conversion_is_told(tmp_path: Path) -> None:
    written(ROWS["qwen3_moe"](0), tmp_path)
    plan = plan_of(tmp_path, "together", "apart")
    assert [each.replace(f"{tmp_path}/", "") for each in plan.warnings] == [
        "x.yml:4: models[1].model: apart has experts one by one (model.layers.*.mlp.experts.0."
        "gate_proj.weight), together packed experts (model.layers.*.mlp.experts.gate_up_proj): "
        "what it has is brought into that form while it is read (6 tensors) [JM231]"
    ]


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ([f"{AT}.2.up_proj.weight"], f"{AT}.2.up_proj.weight is missing"),
        (
            [f"{AT}.{e}.{part}_proj.weight" for e in (1, 3) for part in ("gate", "up", "down")],
            f"{AT}.1.gate_proj.weight and 5 more are missing",
        ),
        (
            [f"model.layers.{i}.mlp.experts.3.up_proj.weight" for i in range(3)],
            "model.layers.0.mlp.experts.3.up_proj.weight is missing",
        ),
    ],
)
def test_a_missing_expert_is_named(lost: list[str], told: str, tmp_path: Path) -> None:
    row = ROWS["qwen3_moe"](0)
    drop(row.apart, *lost)
    written(row, tmp_path)
    assert told in problems(tmp_path, "together", "apart")


def test_experts_that_all_layers_lack(tmp_path: Path) -> None:
    """The last ones, so that nothing but the other model tells."""
    row = ROWS["qwen3_moe"](0)
    drop(row.apart, *(name for name in row.apart.tensors if ".experts.3." in name))
    written(row, tmp_path)
    assert "it has 3 experts and not 4" in problems(tmp_path, "together", "apart")
    assert "it has 4 experts and not 3" in problems(tmp_path, "apart", "together")


def test_one_of_three_projections(tmp_path: Path) -> None:
    row = ROWS["phi3"](0)
    drop(row.apart, "model.layers.2.self_attn.v_proj.weight")
    written(row, tmp_path)
    told = problems(tmp_path, "together", "apart")
    assert "model.layers.2.self_attn.v_proj.weight is missing" in told


def test_one_of_three_biases(tmp_path: Path) -> None:
    row = ROWS["chatglm"](0)
    drop(row.apart, "model.layers.2.self_attn.k_proj.bias")
    written(row, tmp_path)
    told = problems(tmp_path, "together", "apart")
    assert "model.layers.2.self_attn.k_proj.bias is missing" in told


def test_half_of_what_the_donor_needs(tmp_path: Path) -> None:
    row = ROWS["glm4"](0)
    drop(row.apart, *(name for name in row.apart.tensors if "up_proj" in name))
    written(row, tmp_path)
    told = problems(tmp_path, "together", "apart")
    assert "model.layers.0.mlp.up_proj.weight is missing, so" in told
    assert "model.layers.{}.mlp.up_proj.weight is missing there" in problems(
        tmp_path, "apart", "together"
    )


def test_fused_rows_of_a_class_that_is_not_known(tmp_path: Path) -> None:
    """Heads may be in any order."""
    row = ROWS["gpt_neox"](0)
    row.together.config["model_type"] = "unheard_of"
    written(row, tmp_path)
    for donor, other in SIDES:
        told = problems(tmp_path, donor, other)
        assert "query_key_value.bias is unknown for unheard_of" in told or (
            "query_key_value.weight is unknown for unheard_of" in told
        )


def test_two_orders_of_fused_rows(tmp_path: Path) -> None:
    """Tensors of one name and shape that mean different things are not merged."""
    written(ROWS["gpt_neox"](0), tmp_path / "x")
    other = ROWS["chatglm"](0)
    for name in [name for name in other.together.tensors if "self_attn" in name]:
        moved = name.replace("self_attn", "attention")
        other.together.tensors[moved] = other.together.tensors.pop(name)
    written(other, tmp_path / "y")
    told = problems(tmp_path, "x/together", "y/together")
    assert "their rows are in different orders" in told


def test_packed_experts_of_one_shape_and_two_orders(tmp_path: Path) -> None:
    """A gpt_oss that does not say so might have its gates in any columns."""
    row, other = ROWS["gpt_oss"](0), ROWS["gpt_oss"](1)
    del other.together.config["model_type"]
    written(Row(row.together, other.together), tmp_path)
    for donor, model in SIDES:
        assert "names and shapes agree, but according to config.json" in problems(
            tmp_path, donor, model
        )


def test_columns_of_a_class_that_is_not_known(tmp_path: Path) -> None:
    """Gates may be the first half of them, or every other one."""
    row = ROWS["gpt_oss"](0)
    row.together.config["model_type"] = "unheard_of"
    written(row, tmp_path)
    for donor, other in SIDES:
        told = problems(tmp_path, donor, other)
        assert "experts.gate_up_proj is unknown for unheard_of" in told


def test_heads_that_do_not_fit(tmp_path: Path) -> None:
    row = ROWS["phi3"](0)
    row.together.config["num_key_value_heads"] = 1
    written(row, tmp_path)
    for donor, other in SIDES:
        assert "the shapes do not fit" in problems(tmp_path, donor, other)


def test_sizes_that_do_not_fit(tmp_path: Path) -> None:
    row = ROWS["mixtral"](0)
    name = "model.layers.1.block_sparse_moe.experts.1.w1.weight"
    row.apart.tensors[name] = row.apart.tensors[name][:4].copy()
    written(row, tmp_path)
    told = problems(tmp_path, "together", "apart")
    assert "the shapes do not fit (model.layers.1.block_sparse_moe.experts.0.w1.weight is" in told


def test_models_of_other_sizes(tmp_path: Path) -> None:
    """What fits its own form and not the donor's is a mismatch like any other."""
    row, other = ROWS["qwen3_moe"](0), ROWS["qwen3_moe"](1)
    for name, array in other.apart.tensors.items():
        if ".experts." in name:
            wide = np.concatenate([array, array], 1 if "down" in name else 0)
            other.apart.tensors[name] = wide
    written(Row(other.apart, row.together), tmp_path)
    told = problems(tmp_path, "together", "apart")
    assert "[4, 24, 8] in apart and [4, 12, 8] in together" in told


def test_parts_of_several_dtypes(tmp_path: Path) -> None:
    row = ROWS["qwen3_moe"](0)
    name = f"{AT}.0.up_proj.weight"
    row.apart.tensors[name] = row.apart.tensors[name].astype(np.float16)
    written(row, tmp_path)
    told = problems(tmp_path, "together", "apart")
    assert f"{AT}.gate_up_proj would be made of F32 and F16" in told


def test_quantised_weights(tmp_path: Path) -> None:
    row = ROWS["qwen3_moe"](0)
    for stored in (row.together, row.apart):
        stored.config["quantization_config"] = {"quant_method": "fp8"}
        for i in range(2):
            name = f"model.layers.{i}.self_attn.k_proj.weight"
            stored.tensors[name] = np.ones((8, 8), ml_dtypes.float8_e4m3fn)
            stored.tensors[f"{name}_scale"] = np.ones(1, np.float32)
    written(row, tmp_path)
    copy = "merge_method: passthrough\nslices:\n"
    copy += "".join(f"- sources: [{{{{model: {{{i}}}, layer_range: [0, 2]}}}}]\n" for i in range(2))
    assert "quantised weights cannot be brought" in problems(tmp_path, "together", "apart", copy)


def test_biases_that_the_donor_does_not_have(tmp_path: Path) -> None:
    """They are tensors like any that only one model has, by the name that the donor's form gives them."""
    row = ROWS["chatglm"](0)
    drop(row.apart, *(name for name in row.apart.tensors if name.endswith(".bias")))
    written(row, tmp_path)
    plan = plan_of(tmp_path, "apart", "together")
    steps = {step.name: step for step in plan.steps}
    assert len(steps["model.layers.1.self_attn.k_proj.bias"].inputs) == 1
    assert any("k_proj.bias" in w or "q_proj.bias" in w for w in plan.warnings)


# Recipes on them

PARTIAL = """\
merge_method: linear
except: "*.experts.*"
models:
- model: {0}
- model: {1}
parameters: {{weight: 0.5}}
"""
FILTERED = """\
merge_method: linear
models:
- model: {0}
- model: {1}
  parameters:
    weight:
    - {{filter: experts.2.up_proj, value: 7}}
    - {{value: 0.5}}
parameters: {{weight: 0.5}}
"""
MAPPED = """\
merge_method: linear
models:
- model: {0}
- model: {1}
  map: {{model.: model.language_model.}}
parameters: {{weight: 0.5}}
"""


def test_tensors_that_a_recipe_excludes(tmp_path: Path) -> None:
    written(ROWS["qwen3_moe"](0), tmp_path)
    plan = plan_of(tmp_path, "together", "apart", PARTIAL)
    left = {item.name for item in plan.unused}
    assert left == {name for name in ROWS["qwen3_moe"](0).apart.tensors if ".experts." in name}
    assert all("in 'except'" in item.reason for item in plan.unused)


def test_filters_see_the_names_of_the_output(tmp_path: Path) -> None:
    written(ROWS["qwen3_moe"](0), tmp_path)
    plan = plan_of(tmp_path, "apart", "together", FILTERED)
    weights = {step.name: step.hyperparameters["weight"] for step in plan.steps}
    for name, weight in weights.items():
        assert weight == (0.5, 7.0 if "experts.2.up_proj" in name else 0.5), name


def test_mapped_models_are_converted(tmp_path: Path) -> None:
    """Experts of a text model, one by one, into the packed and transposed ones of a vision-language model."""
    row = ROWS["transposed_experts"](0)
    text = dict(row.together.config)
    inner = {
        name.replace("model.", "model.language_model.", 1): array
        for name, array in row.together.tensors.items()
    }
    vlm = Stored(inner, {"architectures": ["XForConditionalGeneration"], "text_config": text})
    written(Row(row.apart, vlm), tmp_path)
    plan = plan_of(tmp_path, "together", "apart", MAPPED)
    assert {step.name for step in plan.steps} == vlm.tensors.keys()
    assert all(len(step.inputs) == 2 for step in plan.steps)
    assert len(list(assembled(plan))) == 6 and plan.unused == ()


def test_modules_that_the_donor_does_not_have(tmp_path: Path) -> None:
    """They take the form of the first model that has them."""
    row, other = ROWS["qwen3_moe"](0), ROWS["qwen3_moe"](1)
    row.apart.write(tmp_path / "b")
    other.together.write(tmp_path / "c")
    dense = {name: array for name, array in row.apart.tensors.items() if ".experts." not in name}
    Stored(dense, row.apart.config).write(tmp_path / "a")
    lines = LINEAR.splitlines(keepends=True)
    text = "".join([*lines[:-1], "- model: {2}\n", lines[-1]])
    (tmp_path / "x.yml").write_text(text.format(*(tmp_path / each for each in "abc")))
    plan = jmerge.plan(tmp_path / "x.yml")
    assert {step.name for step in plan.steps} == row.apart.tensors.keys()
    for step in plan.steps:
        assert len(step.inputs) == (2 if ".experts." in step.name else 3)
    assert len(list(assembled(plan))) == 36 and plan.unused == ()


def test_a_plan_is_as_long_as_it_has_to_be(tmp_path: Path) -> None:
    """Packed experts in another order are two boxes, however many experts there are, and under another name one."""
    for name, most in (("two_packed", 2), ("granitemoe", 1)):
        folder = written(ROWS[name](0), tmp_path / name)
        for donor, other in SIDES:
            assert {len(item.boxes) for item in assembled(plan_of(folder, donor, other))} <= {1, most}  # fmt: skip
