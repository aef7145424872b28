"""Merges of Python values into folders, arrays and sinks: all the same bytes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import jmerge
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the models base, a and b."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        write_llama(tmp_path / name, seed)
    return tmp_path


def ties(base: Any = "base", a: Any = "a", b: Any = "b", **keys: Any) -> dict[str, Any]:
    """A recipe whose statistics read every tensor more than once."""
    own = {"weight": 0.5, "density": 0.5}
    models = [{"model": model, "parameters": own} for model in (a, b)]
    return {"merge_method": "dare_ties", "base_model": base, "models": models, **keys}


def digests(arrays: Any) -> dict[str, str]:
    return {n: f"{a.dtype} {hashlib.sha256(a.tobytes()).hexdigest()}" for n, a in arrays.items()}


def in_memory(seed: int) -> dict[str, Any]:
    return {name: jnp.asarray(array) for name, array in llama_tensors(seed).items()}


RECIPES: dict[str, Callable[[Path], Any]] = {
    "path": lambda place: place / "x.yml",
    "text of a path": lambda place: str(place / "x.yml"),
    "dict": lambda place: ties(dtype="bfloat16"),
    "recipe": lambda place: jmerge.Recipe.from_dict(ties(dtype="bfloat16")),
    "opened": lambda place: ties(jmerge.open_checkpoint("base"), dtype="bfloat16"),
    "arrays": lambda place: ties(a=in_memory(1), b=llama_tensors(2), dtype="bfloat16"),
    "all arrays": lambda place: ties(
        in_memory(0), jmerge.open_checkpoint(in_memory(1)), in_memory(2), dtype="bfloat16"
    ),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_every_kind_of_recipe_gives_the_same_tensors(kind: str, place: Path) -> None:
    (place / "x.yml").write_text(yaml.safe_dump(ties(dtype="bfloat16"), sort_keys=False))
    folder = jmerge.merge(place / "x.yml", place / "want").folder
    merged = jmerge.merge(RECIPES[kind](place))
    assert digests(merged) == digests(jmerge.open_checkpoint(folder))
    assert merged["lm_head.weight"].dtype == ml_dtypes.bfloat16


def test_a_sink_gets_the_bytes_and_comes_back(place: Path) -> None:
    class Whole(dict[str, bytearray]):
        def write(self, tensor: str, start: int, data: memoryview) -> None:
            held = self.setdefault(tensor, bytearray())
            held.extend(bytes(max(0, start + len(data) - len(held))))
            held[start : start + len(data)] = data

    sink = Whole()
    assert jmerge.merge(ties(), sink) is sink
    assert {n: bytes(d) for n, d in sink.items()} == {
        n: a.tobytes() for n, a in jmerge.merge(ties()).items()
    }


def test_small_budgets_hold_for_arrays_too(place: Path) -> None:
    arrays = ties(a=in_memory(1))
    assert digests(jmerge.merge(arrays, memory="64MB")) == digests(jmerge.merge(arrays))


# Folders of what lies in memory


def test_a_folder_of_arrays_is_up_to_date_while_they_are_the_same(place: Path) -> None:
    recipe = ties(a=in_memory(1))
    first = jmerge.merge(recipe, "out")
    assert not first.up_to_date and jmerge.merge(ties(a=llama_tensors(1)), "out").up_to_date
    assert "memory://1" in (place / "out" / "mergekit_config.yml").read_text()
    with pytest.raises(jmerge.PlanError, match="from other inputs; overwrite=True replaces it"):
        jmerge.merge(ties(a=in_memory(5)), "out")
    again = jmerge.merge(ties(a=in_memory(5)), "out", overwrite=True)
    assert digests(jmerge.open_checkpoint("out")) == digests(jmerge.merge(ties(a=in_memory(5))))
    assert again.strange == ()


def test_a_donor_in_memory_brings_config_and_files(place: Path) -> None:
    (place / "base" / "generation_config.json").write_text("{}")
    donor = jmerge.open_checkpoint("base")
    base = jmerge.open_checkpoint(in_memory(0), like=donor)
    jmerge.merge(ties(base), "out")
    assert (place / "out" / "generation_config.json").read_text() == "{}"
    assert jmerge.open_checkpoint("out").config == llama_config()


def test_fused_and_gathered_arrays_are_read_as_those_of_files(place: Path) -> None:
    """A model that stores q, k and v in one tensor, and one in memory that does not."""
    fused = llama_tensors(1)
    for layer in range(2):
        start = f"model.layers.{layer}.self_attn."
        parts = [fused.pop(f"{start}{part}_proj.weight") for part in "qkv"]
        fused[f"{start}qkv_proj.weight"] = np.concatenate(parts)
    config = {**llama_config(), "model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    write_checkpoint(place / "a", fused, config)
    recipe = {
        "merge_method": "linear",
        "models": [{"model": m, "parameters": {"weight": 1}} for m in ("base", "a")],
        "allow_conflicts": ["model_type"],
    }
    want = jmerge.merge(recipe)
    recipe["models"][1]["model"] = jmerge.open_checkpoint(fused, config=config)  # type: ignore[index]
    assert digests(jmerge.merge(recipe)) == digests(want)


def test_tokens_of_arrays_are_those_of_the_model_they_are_like(place: Path) -> None:
    """Tables in memory are gathered by rows as those of files."""
    for seed, (name, tokens) in enumerate({"base": "<ab", "a": "b<cd"}.items()):
        folder = write_llama(place / name, seed, vocab=len(tokens))
        ids = {token: i for i, token in enumerate(tokens)}
        Tokenizer(WordLevel(ids, unk_token="<")).save(str(folder / "tokenizer.json"))
    recipe = {
        "merge_method": "linear",
        "models": [{"model": m, "parameters": {"weight": 1}} for m in ("base", "a")],
        "tokenizer": {"source": "union"},
    }
    want = jmerge.merge(recipe, "want").folder
    for entry in recipe["models"]:
        model = jmerge.open_checkpoint(entry["model"])  # type: ignore[index]
        entry["model"] = jmerge.open_checkpoint(dict(model), like=model)  # type: ignore[index]
    got = jmerge.merge(recipe, "got").folder
    assert digests(jmerge.open_checkpoint(got)) == digests(jmerge.open_checkpoint(want))
    names = {path.name for path in want.iterdir()}
    assert "tokenizer.json" in names and names == {path.name for path in got.iterdir()}
    named = {"README.md", "jmerge.lock.json", "jmerge.tokens.jsonl", "mergekit_config.yml"}
    for name in names - named:  # those name the models
        assert (want / name).read_bytes() == (got / name).read_bytes(), name


def test_plans_hold_on_to_arrays(place: Path) -> None:
    """What `run` needs is there though nobody else holds it; a plan of equal headers is equal."""
    plan = jmerge.plan(ties(a=in_memory(1)))
    arrays = jmerge.advanced.Arrays(plan.outputs)
    jmerge.advanced.run(plan, jmerge.advanced.make_schedule(plan), arrays)
    assert digests(arrays) == digests(jmerge.merge(ties(a=in_memory(1))))
    assert plan == jmerge.plan(ties(a=in_memory(7))) and "memory://1" in plan.to_json()


def test_a_recipe_that_had_arrays_says_so_without_them(place: Path) -> None:
    jmerge.merge(ties(a=in_memory(1)), "out")
    with pytest.raises(jmerge.JmergeError, match="existed only in the program that wrote"):
        jmerge.plan("out/mergekit_config.yml")


def test_problems_of_models_in_memory_have_their_place(place: Path) -> None:
    recipe = ties(a={"w": 5, "v": np.ones(2)}, b="nowhere")
    with pytest.raises(jmerge.JmergeError) as caught:
        jmerge.plan(recipe)
    assert [str(problem) for problem in caught.value.problems] == [
        "models[0].model: w: expected a NumPy or JAX array, found a value of type int [JM125]",
        f"models[1].model: 'nowhere' is not a folder in {os.getcwd()} [JM101]",
    ]


# Errors in Python's words

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no recipe": ({"recipe": None}, "recipe: expected the path of a recipe, a dict or a jmerge"),
    "a list": ({"recipe": [1]}, r"recipe: expected the path .*, found \[1\]"),
    "a checkpoint": ({"recipe": {"w": 1}, "out": 5}, "out: expected the path of a folder, a sink"),
    "seed": ({"seed": 1.5}, "seed: expected a whole number, found 1.5"),
    "seed word": ({"seed": "1"}, "seed: expected a whole number, found '1'"),
    "seed flag": ({"seed": True}, "seed: expected a whole number, found True"),
    "overwrite": ({"overwrite": 1}, "overwrite: expected True or False, found 1"),
    "nonfinite": ({"allow_nonfinite": "no"}, "allow_nonfinite: expected True or False"),
    "memory": ({"memory": 1.5}, "memory: expected a number of bytes or a text such as '5GB'"),
    "memory flag": ({"memory": True}, "memory: expected a number of bytes .*, found True"),
    "shard_size": ({"shard_size": None}, "shard_size: expected a number of bytes or a text"),
    "devices": ({"devices": 1.0}, "devices: expected a number or platforms such as 'gpu,cpu'"),
    "cancel": ({"cancel": True}, "cancel: expected a threading.Event, found True"),
    "listeners": ({"listeners": [5]}, "listeners: expected functions, found"),
    "on_plan": ({"on_plan": 5}, "on_plan: expected a function, found 5"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_types_are_one_line_that_names_the_argument(case: str, place: Path) -> None:
    given, words = WRONG[case]
    with pytest.raises(TypeError, match=f"^{words}") as caught:
        jmerge.merge(**{"recipe": ties(), "out": "out", **given})
    assert "\n" not in str(caught.value) and not (place / "out").exists()


def test_errors_speak_of_arguments_and_the_command_of_flags(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jmerge import cli

    (place / "x.yml").write_text(yaml.safe_dump(ties(), sort_keys=False))
    jmerge.merge("x.yml", "out")
    cases: list[tuple[dict[str, Any], list[str], str, str]] = [
        (
            {"seed": 5},
            ["--seed=5"],
            "seed=0, not 5; overwrite=True",
            "--seed 0, not 5; --overwrite",
        ),
        ({"memory": "x"}, ["--memory=x"], "^memory: expected a size", "--memory: expected a size"),
        (
            {"memory": "1MB"},
            ["--memory=1MB"],
            "^memory: expected at least",
            "--memory: expected at",
        ),
        ({"devices": 0}, ["--devices=0"], "^devices: expected at least", "--devices: expected at"),
        ({"devices": "moon"}, ["--devices=moon"], "^devices: expected", "--devices: expected a"),
    ]
    for given, words, said, told in cases:
        out = "out" if "seed" in given else "new"
        with pytest.raises(jmerge.PlanError, match=said) as caught:
            jmerge.merge("x.yml", out, **given)
        assert not re.search(r"--\w", str(caught.value))
        assert cli.main(["x.yml", out, *words]) == 2
        assert told in capsys.readouterr().err
    assert not (place / "new").exists()


def test_a_text_in_place_of_a_path_is_told_what_reads_it(place: Path) -> None:
    with pytest.raises(jmerge.RecipeError, match="use jmerge.Recipe.from_text"):
        jmerge.plan("merge_method: linear\nmodels: []\n")
