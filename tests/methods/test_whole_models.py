"""Methods that look at whole models, wrappers, and methods that make several checkpoints: from recipe to folder."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import references
import yaml
from safetensors.numpy import load_file

import jmerge
from jmerge.engine.run import run
from jmerge.engine.schedule import make_schedule
from jmerge.plan.steps import Plan
from jmerge.testing.close import assert_close
from jmerge.testing.tiny import write_checkpoint

LAYERS = 3
SHAPES = {
    "model.embed_tokens.weight": (40, 8),
    **{f"model.layers.{i}.mlp.up.weight": (33, 8) for i in range(LAYERS)},
    **{f"model.layers.{i}.ln.weight": (8,) for i in range(LAYERS)},
    "model.norm.weight": (8,),
}
Tensors = dict[str, np.ndarray]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the models base, a, b and c."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    base = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    write_checkpoint(tmp_path / "base", base)
    for i, model in enumerate("abc"):
        changed = {
            name: (array + 0.01 * (i + 1) * rng.standard_normal(array.shape)).astype(np.float32)
            for name, array in base.items()
        }
        write_checkpoint(tmp_path / model, changed)
    return tmp_path


def read(folder: Path) -> Tensors:
    """The tensors of a checkpoint in one file."""
    return load_file(folder / "model.safetensors")


def wide(place: Path) -> tuple[Tensors, Tensors]:
    """The models [models, *shape] and the base by tensor, in float64."""
    base = {name: array.astype(np.float64) for name, array in read(place / "base").items()}
    models = [read(place / model) for model in "abc"]
    return {name: np.stack([m[name] for m in models]).astype(np.float64) for name in base}, base


def recipe(place: Path, method: str, models: str = "abc", **rest: Any) -> Path:
    """A recipe that merges these models by a method."""
    own = rest.pop("own", {})
    content = {
        "merge_method": method,
        "base_model": "base",
        "models": [{"model": model, "parameters": own} for model in models],
        **rest,
    }
    (place / "x.yml").write_text(yaml.safe_dump(content))
    return place / "x.yml"


def merged(place: Path, *words: Any, **rest: Any) -> Tensors:
    """What a recipe gives."""
    return read(jmerge.merge(recipe(place, *words, **rest), place / "out").folder)


def assert_all_close(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert_close(found[name], wanted[name])


# Whole models


@pytest.mark.parametrize(
    ("method", "hyperparameters"), [("localize_stitch", {"density": 0.1}), ("pcb", {"rho": 0.05})]
)
def test_shares_are_of_whole_models(
    method: str, hyperparameters: dict[str, float], place: Path
) -> None:
    models, base = wide(place)
    wanted = references.of_whole_models(getattr(references, method), models, base, hyperparameters)
    assert_all_close(merged(place, method, parameters=hyperparameters), wanted)


@pytest.mark.parametrize("condition", ["equalize", "equalize_mean", "metagpt", "inverse_norm"])
def test_conditions_know_norms_of_whole_models(condition: str, place: Path) -> None:
    models, base = wide(place)
    change = np.concatenate([(models[n] - base[n]).reshape(3, -1) for n in base], axis=1)
    goal = "mean" if condition.endswith("mean") else "min"
    factors = references.norm_factors(change, condition.removesuffix("_mean"), goal)
    hyperparameters = {"weight": (0.5, 0.5, 0.5), "density": (0.4, 0.4, 0.4)}
    wanted = {}
    for name, origin in base.items():
        scaled = origin + references.each(tuple(factors), models[name]) * (models[name] - origin)
        wanted[name] = references.ties(scaled, origin, hyperparameters)
    own = {"weight": 0.5, "density": 0.4}
    assert_all_close(merged(place, "ties", own=own, wrap={"condition": condition}), wanted)


@pytest.mark.parametrize(
    "lines", [{}, {"alpha": "auto", "beta": 0.3}, {"alpha": 0.2}, {"alpha": 0.2, "beta": 0.7}]
)
def test_lines_grow_with_the_blocks_of_the_output(lines: dict[str, Any], place: Path) -> None:
    models, base = wide(place)
    hyperparameters = {"weight": (0.5, 0.5, 0.5), "lambda": 0.8}
    change = {
        n: references.task_arithmetic(models[n], base[n], hyperparameters) - base[n] for n in base
    }
    alpha = lines.get("alpha", "auto")
    if alpha == "auto":
        whole = np.concatenate([(models[n] - base[n]).reshape(3, -1) for n in base], axis=1)
        alpha = references.lines_alpha(whole, np.concatenate([d.ravel() for d in change.values()]))
    beta = lines.get("beta", 1 - alpha)
    wanted = {}
    for name, origin in base.items():
        layer = int(name.split(".")[2]) if ".layers." in name else None
        scale = references.lines_scale(layer, LAYERS, alpha, beta)
        wanted[name] = origin + scale * change[name]
    found = merged(
        place,
        "task_arithmetic",
        own={"weight": 0.5},
        parameters={"lambda": 0.8},
        wrap={"lines": lines},
    )
    assert_all_close(found, wanted)


def test_no_wrapper_is_no_wrapper(place: Path) -> None:
    plain = jmerge.plan(recipe(place, "ties", own={"weight": 1}))
    assert plain.method == "ties" and not plain.steps[0].group
    none = jmerge.plan(recipe(place, "ties", own={"weight": 1}, wrap={"condition": "none"}))
    assert none.method == "ties"


def test_a_group_is_looked_at_before_any_of_it_is_merged(place: Path) -> None:
    plan = jmerge.plan(recipe(place, "ties", own={"weight": 1}, wrap={"lines": {}}))
    kinds = [turn.what.name for turn in make_schedule(plan).turns]
    assert kinds == ["lines_lengths"] * len(SHAPES) + ["combine"] * len(SHAPES)
    assert [turn.closes for turn in make_schedule(plan).turns[: len(SHAPES)]].count(True) == 1


def test_one_wide_tensor_makes_the_group_wide(place: Path) -> None:
    for model in ("base", "a", "b", "c"):
        tensors = read(place / model)
        tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float64)
        write_checkpoint(place / model, tensors)
    plan = jmerge.plan(recipe(place, "pcb"))
    assert {str(step.arithmetic) for step in plan.steps} == {"float64"}
    models, base = wide(place)
    assert_all_close(
        merged(place, "pcb"), references.of_whole_models(references.pcb, models, base, {})
    )


def test_memory_does_not_grow_with_the_tensors_of_a_group(place: Path) -> None:
    """Cuts and sums of every tensor wait for those of the whole model, not the tensors."""
    rng = np.random.default_rng(1)

    class Nowhere:
        def write(self, *_: Any) -> None:
            pass

    def peak(tensors: int) -> int:
        for model in ("base", "a", "b"):
            drawn = {f"t{i}": rng.standard_normal((64, 1024), np.float32) for i in range(tensors)}
            write_checkpoint(place / model, drawn)
        path = recipe(place, "ties", "ab", own={"weight": 1, "density": 0.3}, wrap={"lines": {}})
        plan = jmerge.plan(path)
        schedule = make_schedule(plan)
        run(plan, schedule, Nowhere())
        tracemalloc.start()
        run(plan, schedule, Nowhere())
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(32) < peak(8) + 24 * 64 * 1024 * 4 / 2  # half of one model's more bytes


def assert_refused(path: Path, *parts: str) -> None:
    with pytest.raises(jmerge.PlanError) as raised:
        jmerge.plan(path)
    text = "\n".join(map(str, raised.value.problems))
    assert all(part in text for part in parts), text


def test_what_is_about_whole_models_is_one_number(place: Path) -> None:
    uneven = [{"filter": "mlp", "value": 0.1}, {"value": 0.2}]
    path = recipe(place, "localize_stitch", own={"density": uneven})
    assert_refused(
        path, "'density' is about whole models", "found [0.2, 0.2, 0.2] and [0.1, 0.1, 0.1]"
    )


def test_whole_models_are_whole(place: Path) -> None:
    tensors = read(place / "b")
    del tensors["model.norm.weight"]
    write_checkpoint(place / "b", tensors)
    path = recipe(place, "pcb")
    assert_refused(
        path, "x.yml:6: models[1]", "model.norm.weight: not in b", "'pcb' looks at whole models"
    )


def test_slices_are_of_the_same_models(place: Path) -> None:
    slices = [
        {"sources": [{"model": m, "layer_range": [i, i + 1]} for m in ("base", model)]}
        for i, model in enumerate("ab")
    ]
    path = place / "x.yml"
    path.write_text(
        yaml.safe_dump({"merge_method": "localize_stitch", "base_model": "base", "slices": slices})
    )
    assert_refused(path, "slices[1]", "every slice needs the same models in the same order")


@pytest.mark.parametrize(
    ("wrap", "parts"),
    [
        ({"condition": "equalise"}, ["wrap.condition: expected one of none, equalize"]),
        ({"condition": 3}, ["wrap.condition: expected one of"]),
        (
            {"lines": {"alpha": "high"}},
            ["wrap.lines.alpha: expected a number or auto, found 'high'"],
        ),
        ({"lines": {"gamma": 1}}, ["wrap.lines.gamma: unknown key", "alpha, beta"]),
        ({"lines": 3}, ["wrap.lines: expected a map"]),
        ({"line": {}}, ["wrap.line: unknown key", "did you mean 'lines'"]),
    ],
)
def test_mistakes_in_wrappers(wrap: Any, parts: list[str], place: Path) -> None:
    with pytest.raises(jmerge.RecipeError) as raised:
        jmerge.plan(recipe(place, "ties", own={"weight": 1}, wrap=wrap))
    (problem,) = raised.value.problems
    assert all(part in str(problem) for part in parts), problem


def test_only_changes_from_a_base_are_wrapped(place: Path) -> None:
    path = recipe(place, "linear", own={"weight": 1}, wrap={"condition": "metagpt"})
    with pytest.raises(jmerge.RecipeError, match="'linear' does not merge changes .* ties"):
        jmerge.plan(path)


def test_advice_on_one_model_alone(place: Path) -> None:
    plan = jmerge.plan(recipe(place, "sce", "a", parameters={"select_topk": 0.5}))
    assert any("one model alone never varies" in warning for warning in plan.warnings)


# Several checkpoints


def outputs_of(plan: Plan) -> list[str]:
    return list(plan.checkpoints)


def test_a_checkpoint_for_each_model(place: Path) -> None:
    models, base = wide(place)
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": LAYERS}
    for model in ("base", "a", "b", "c"):
        (place / model / "config.json").write_text(json.dumps(config))
    (place / "base" / "tokenizer.json").write_text("{}")
    found = jmerge.merge(recipe(place, "emr"), place / "out", shard_size=2000)
    assert outputs_of(found.plan) == ["a", "b", "c"]
    wanted = references.of_whole_models(references.emr, models, base, {})
    for i, model in enumerate("abc"):
        folder = place / "out" / model
        checkpoint = jmerge.open_checkpoint(folder)
        assert len(checkpoint.files) > 1
        for name in SHAPES:
            assert_close(checkpoint[name], wanted[name][i])
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(SHAPES)
        assert (folder / "tokenizer.json").is_file() and (folder / "README.md").is_file()
        assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == LAYERS
    ledger = json.loads((place / "out" / "jmerge.lock.json").read_text())
    assert set(ledger["tensors"]) == {f"{model}/{name}" for model in "abc" for name in SHAPES}
    assert "a/config.json" in ledger["files"]
    again = jmerge.merge(recipe(place, "emr"), place / "out", shard_size=2000)
    assert again.up_to_date
    (place / "out" / "a" / "notes.txt").write_text("mine")
    with pytest.raises(jmerge.PlanError, match="notes.txt"):
        jmerge.merge(recipe(place, "emr", "ab"), place / "out", overwrite=True)


def test_every_checkpoint_has_its_own_tie(place: Path) -> None:
    """A task's head is tied in config.json only where it is its embedding."""
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 40, "tie_word_embeddings": True}
    for model in ("base", "a", "b"):
        tensors = read(place / "base")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        if model == "b":  # far from a's direction, so that a's task stays with the base
            tensors["lm_head.weight"] = tensors["lm_head.weight"] + np.float32(1)
        write_checkpoint(place / model, tensors)
        (place / model / "config.json").write_text(json.dumps(config))
    jmerge.merge(recipe(place, "emr", "ab"), place / "out")
    made = json.loads((place / "out" / "jmerge.lock.json").read_text())["config"]
    tied = {
        model: json.loads((place / "out" / model / "config.json").read_text())[
            "tie_word_embeddings"
        ]
        for model in "ab"
    }
    assert tied == {"a": True, "b": False}
    assert [c["file"] for c in made if c["key"] == "tie_word_embeddings"] == ["b/config.json"]


def test_checkpoints_of_one_name_are_numbered(place: Path) -> None:
    write_checkpoint(place / "other" / "a", read(place / "b"))
    path = place / "x.yml"
    models = [{"model": "a"}, {"model": "other/a"}]
    path.write_text(yaml.safe_dump({"merge_method": "emr", "base_model": "base", "models": models}))
    assert outputs_of(jmerge.plan(path)) == ["a", "a-2"]


def test_the_planner_alone_says_which_model(place: Path) -> None:
    path = recipe(place, "emr", parameters={"task": 1})
    with pytest.raises(jmerge.PlanError, match="'?task'?.*not a parameter of 'emr'"):
        jmerge.plan(path)


def test_checkpoints_stay_in_the_output(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their folders are named by what the paths mean, and never like a file that stands beside them."""
    write_checkpoint(place / "mergekit_config.yml", read(place / "b"))
    (place / "a" / "deep").mkdir()
    monkeypatch.chdir(place / "a" / "deep")
    models = [{"model": ".."}, {"model": "../../mergekit_config.yml"}]
    recipe = {"merge_method": "emr", "base_model": "../../base", "models": models}
    Path("x.yml").write_text(yaml.safe_dump(recipe))
    merged = jmerge.merge("x.yml", place / "out")
    assert outputs_of(merged.plan) == ["a", "mergekit_config.yml-2"]
    assert {path.name for path in place.iterdir()} >= {"out", "a", "b"}
    assert not (place / "model.safetensors").exists()


def test_a_base_listed_twice_is_a_model_too(place: Path) -> None:
    path = place / "x.yml"
    models = [{"model": "base"}, {"model": "base"}, {"model": "a"}]
    path.write_text(yaml.safe_dump({"merge_method": "emr", "base_model": "base", "models": models}))
    assert outputs_of(jmerge.plan(path)) == ["base", "a"]


def test_inputs_inside_the_output_are_kept(place: Path) -> None:
    jmerge.merge(recipe(place, "emr", "ab"), place / "out")
    path = place / "y.yml"
    models = [{"model": "out/a"}, {"model": "out/b"}]
    path.write_text(
        yaml.safe_dump({"merge_method": "linear", "models": models, "parameters": {"weight": 1}})
    )
    with pytest.raises(jmerge.PlanError, match="holds an input of the recipe"):
        jmerge.merge(path, place / "out", overwrite=True)
    assert (place / "out" / "a" / "model.safetensors").is_file()


def test_wrappers_leave_a_methods_own_numbers_alone(place: Path) -> None:
    """`ramplus_tl` has an alpha too."""
    hyperparameters = {"r": 0.1, "alpha": 0.3, "epsilon": 0.01}
    wrap = {"lines": {"alpha": 1.0, "beta": 0.0}}
    plain = merged(place, "ramplus_tl", parameters=hyperparameters)
    (place / "out").rename(place / "plain")
    assert_all_close(merged(place, "ramplus_tl", parameters=hyperparameters, wrap=wrap), plain)


def test_a_nan_spoils_its_own_element_alone(place: Path) -> None:
    tensors = read(place / "a")
    tensors["model.norm.weight"][0] = np.nan
    write_checkpoint(place / "a", tensors)
    found = read(jmerge.merge(recipe(place, "pcb"), place / "out", allow_nonfinite=True).folder)
    base = read(place / "base")
    assert np.isnan(found["model.norm.weight"][0])
    for name in SHAPES:
        assert (found[name] != base[name]).any()
