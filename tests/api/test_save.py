"""Trees of arrays to folders that load: names, values, the files beside, errors, and nothing half done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jmerge
from jmerge.api.save import name_of
from jmerge.ckpt.writer import OutputFolder
from jmerge.cli import main
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model that has a tokenizer's file."""
    monkeypatch.chdir(tmp_path)
    write_llama(tmp_path / "a", 0)
    (tmp_path / "a" / "tokenizer_config.json").write_text('{"a": 1}')
    (tmp_path / "a" / "optimizer.pt").write_bytes(b"x")
    return tmp_path


def nested(tensors: dict[str, Any]) -> dict[str, Any]:
    """The same as maps in maps, as Flax has them."""
    tree: dict[str, Any] = {}
    for name, array in tensors.items():
        *words, last = name.split(".")
        inner = tree
        for word in words:
            inner = inner.setdefault(word, {})
        inner[last] = jnp.asarray(array)
    return tree


def same(folder: str | Path, tensors: dict[str, Any]) -> bool:
    checkpoint = jmerge.open_checkpoint(folder)
    return set(checkpoint) == set(tensors) and all(
        array.dtype == tensors[name].dtype
        and array.tobytes() == np.asarray(tensors[name]).tobytes()
        for name, array in checkpoint.items()
    )


TREES: dict[str, Any] = {
    "flat": llama_tensors,
    "nested": lambda seed: nested(llama_tensors(seed)),
    "checkpoint": lambda seed: jmerge.open_checkpoint(llama_tensors(seed)),
    "frozen": lambda seed: pytest.importorskip("flax.core").freeze(nested(llama_tensors(seed))),
}


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("shard_size", ["5GB", 1000])
def test_a_tree_becomes_a_folder(kind: str, shard_size: Any, place: Path) -> None:
    folder = jmerge.save(TREES[kind](7), "out", like="a", shard_size=shard_size)
    assert folder == Path("out") and same("out", llama_tensors(7))
    assert list(jmerge.open_checkpoint("out")) == list(jmerge.open_checkpoint("a"))
    assert json.loads((folder / "config.json").read_text()) == llama_config()
    assert (folder / "tokenizer_config.json").read_text() == '{"a": 1}'
    assert not (folder / "optimizer.pt").exists()
    assert (folder / "model.safetensors.index.json").exists() == (shard_size == 1000)
    assert main(["verify", "out", "--deep", "--quiet"]) == 0
    assert {path.name for path in place.iterdir()} == {"a", "out"}


def test_the_dtype_is_noted(place: Path) -> None:
    tree = {name: array.astype(ml_dtypes.bfloat16) for name, array in llama_tensors(1).items()}
    tree["model.norm.weight"] = tree["model.norm.weight"].astype(np.float32)
    jmerge.save(tree, "out", like=jmerge.open_checkpoint("a"))
    assert same("out", tree)
    assert jmerge.open_checkpoint("out").config["torch_dtype"] == "bfloat16"


def test_transformers_loads_what_was_saved(place: Path) -> None:
    transformers = pytest.importorskip("transformers")
    jmerge.save(llama_tensors(3), "out", like="a", shard_size=1000)
    model = transformers.AutoModelForCausalLM.from_pretrained("out", dtype="float32")
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), llama_tensors(3)[name])


def test_modules_of_sentence_transformers_keep_their_folders(place: Path) -> None:
    """Tensors whose names begin with a folder are saved in it."""
    write_checkpoint(place / "st" / "2_Dense", {"linear.weight": np.ones((2, 8), np.float32)}, {})
    write_llama(place / "st", 0)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (place / "st" / "modules.json").write_text(json.dumps(modules))
    (place / "st" / "1_Pooling").mkdir()
    (place / "st" / "1_Pooling" / "config.json").write_text("{}")
    tree = {name: array * 2 for name, array in jmerge.load("st").items()}
    assert "2_Dense/linear.weight" in tree
    jmerge.save(tree, "out", like="st")
    assert same("out", tree) and (place / "out" / "2_Dense" / "model.safetensors").exists()


def test_what_a_merge_gives_is_saved(place: Path) -> None:
    recipe = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}]}
    jmerge.save(jmerge.merge(recipe), "out", like="a")
    assert same("out", llama_tensors(0))


def test_names_are_paths() -> None:
    nnx = pytest.importorskip("flax.nnx")
    tree = {"a": [jnp.ones(1), {"b": nnx.Param(jnp.ones(1))}]}
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    assert [name_of(path) for path, _ in leaves] == ["a.0", "a.1.b"]


# What does not fit


def without(name: str) -> dict[str, Any]:
    return {other: array for other, array in llama_tensors(0).items() if other != name}


WRONG: dict[str, tuple[Any, str]] = {
    "missing": (
        lambda: without("lm_head.weight"),
        "^tree: lacks 1 tensors of a: lm_head.weight \\[JM412\\]$",
    ),
    "misspelt": (
        lambda: {**without("lm_head.weight"), "lm_haed.weight": jnp.ones((16, 8))},
        "lacks 1 .*: lm_head.weight .JM412.\ntree: has 1 .*: lm_haed.weight; did you mean 'lm_h",
    ),
    "many": (dict, r"^tree: lacks 21 tensors of a: model\.\*, lm_head\.weight \[JM412\]$"),
    "shape": (
        lambda: {**llama_tensors(0), "model.norm.weight": jnp.ones(7)},
        r"^tree: has shapes that a does not have: model.norm.weight is \[7\], not \[8\] \[JM412\]$",
    ),
    "number": (
        lambda: {"x": 1.0},
        "^x: expected a NumPy or JAX array, found a value of type float",
    ),
    "key": (lambda: {"x": jax.random.key(0)}, "^x: safetensors has no dtype key<fry> .JM125.$"),
    "twice": (lambda: {"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, "^a.b: is the name of two"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_told_before_anything_is_written(case: str, place: Path) -> None:
    tree, words = WRONG[case]
    with pytest.raises(jmerge.JmergeError, match=words):
        jmerge.save(tree(), "out", like="a")
    assert {path.name for path in place.iterdir()} == {"a"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"folder": 5}, "^folder: expected a path, found 5$"),
        ({"like": None}, "^like: expected a checkpoint or its place, found None$"),
        ({"shard_size": None}, "^shard_size: expected a number of bytes or a text"),
        ({"overwrite": "yes"}, "^overwrite: expected True or False, found 'yes'$"),
        ({"tree": jnp.ones(3)}, "^tree: expected a tree of arrays, such as a dict"),
    ],
)
def test_wrong_types_name_the_argument(given: dict[str, Any], words: str, place: Path) -> None:
    with pytest.raises(TypeError, match=words):
        jmerge.save(**{"tree": llama_tensors(0), "folder": "out", "like": "a", **given})


def test_traced_arrays_are_told(place: Path) -> None:
    with pytest.raises(jmerge.CheckpointError, match="save outside of jit and grad"):
        jax.jit(lambda x: jmerge.save({"x": x}, "out", like="a"))(jnp.ones(1))


# What is there already


def test_another_result_is_replaced_on_request(place: Path) -> None:
    jmerge.save(llama_tensors(1), "out", like="a")
    with pytest.raises(jmerge.PlanError, match="out holds a result of jmerge; overwrite=True"):
        jmerge.save(llama_tensors(2), "out", like="a")
    assert same("out", llama_tensors(1))
    jmerge.save(llama_tensors(2), "out", like="a", overwrite=True)
    assert same("out", llama_tensors(2))


@pytest.mark.parametrize(
    ("folder", "words"), [("a", "^folder: a is the"), (".", "^folder: . holds")]
)
def test_the_checkpoint_it_is_like_is_not_replaced(folder: str, words: str, place: Path) -> None:
    with pytest.raises(jmerge.PlanError, match=words):
        jmerge.save(llama_tensors(1), folder, like="a", overwrite=True)
    assert same("a", llama_tensors(0))


def test_files_of_others_stay(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "mine.txt").write_text("x")
    with pytest.raises(jmerge.PlanError, match="was not written by jmerge; choose another folder"):
        jmerge.save(llama_tensors(1), "out", like="a", overwrite=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_save_that_was_cut_off_is_begun_anew(
    error: type[BaseException], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other values in the files that are left, of which none stays."""

    def cut_off(self: OutputFolder) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "publish", cut_off)
        with pytest.raises(error):
            jmerge.save(llama_tensors(1), "out", like="a")
    assert not (place / "out").exists()
    jmerge.save(llama_tensors(2), "out", like="a")
    assert same("out", llama_tensors(2))
    assert {path.name for path in place.iterdir()} == {"a", "out"}


def test_equal_saves_are_equal_folders(place: Path) -> None:
    folders = [jmerge.save(llama_tensors(1), name, like="a") for name in ("one", "two")]
    found = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders]
    assert found[0] == found[1]
