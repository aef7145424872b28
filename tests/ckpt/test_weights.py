"""Which files are the model: in the order of transformers, with copies, paths, variants and names of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import jmerge
from jmerge.ckpt.open import open_checkpoint
from jmerge.errors import CheckpointError
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Where = dict[str, str]


def value(x: float) -> np.ndarray:
    return np.full(4, x, np.float32)


def shards(folder: Path, files: dict[str, dict[str, np.ndarray]], where: Where | None) -> Path:
    """A model of these files, and its index when one is given."""
    for file, tensors in files.items():
        write_checkpoint(folder / "made", tensors)
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / "made" / "model.safetensors").rename(folder / file)
    (folder / "made").rmdir()
    if where is not None:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    (problem,) = caught.value.problems
    return str(problem)


# Several copies of a tensor


def test_the_index_names_an_overlay(tmp_path: Path) -> None:
    """The old copy is in a shard that is needed for its other tensor."""
    overlay = "model-overlay-00001.safetensors"
    files = {FIRST: {"a": value(1), "b": value(2)}, overlay: {"a": value(3)}}
    model = open_checkpoint(shards(tmp_path, files, {"a": overlay, "b": FIRST}))
    assert model["a"][0] == 3 and model["b"][0] == 2
    (note,) = model.notes
    assert f"a is in {overlay} and in {FIRST}; merged from {overlay}" in note
    assert "delete" not in note and "transformers" not in note
    assert list(model) == ["b", "a"]  # the order of the files


def test_the_index_names_the_copy_that_transformers_would_not_take(tmp_path: Path) -> None:
    files = {"a-new.safetensors": {"a": value(3)}, FIRST: {"a": value(1), "b": value(2)}}
    model = open_checkpoint(shards(tmp_path, files, {"a": "a-new.safetensors", "b": FIRST}))
    assert model["a"][0] == 3
    (note,) = model.notes
    assert "transformers, which reads files in name order, uses the other" in note


def test_equal_copies_without_index(tmp_path: Path) -> None:
    files = {FIRST: {"a": value(1), "b": value(2)}, SECOND: {"a": value(1), "c": value(3)}}
    model = open_checkpoint(shards(tmp_path, files, None))
    assert {name: array[0] for name, array in model.items()} == {"a": 1, "b": 2, "c": 3}
    (note,) = model.notes
    assert "they are equal" in note


def test_copies_that_differ_without_index(tmp_path: Path) -> None:
    files = {FIRST: {"a": value(1), "b": value(2)}, SECOND: {"a": value(2), "c": value(3)}}
    line = refusal(shards(tmp_path, files, None))
    assert FIRST in line and SECOND in line and f"write {INDEX}" in line and "delete" not in line


def test_copies_that_the_index_does_not_name(tmp_path: Path) -> None:
    files = {FIRST: {"a": value(1), "b": value(2)}, SECOND: {"a": value(2), "c": value(3)}}
    model = open_checkpoint(shards(tmp_path, files, {"b": FIRST, "c": SECOND}))
    assert model["a"][0] == 2 and "uses the last" in model.notes[0]


def test_notes_are_warnings_of_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = llama_tensors(0)
    norm = {"model.norm.weight": value(1).repeat(2)}
    files = {FIRST: tensors, "model-x.safetensors": norm}
    where = dict.fromkeys(tensors, FIRST) | dict.fromkeys(norm, "model-x.safetensors")
    shards(tmp_path / "a", files, where)
    (tmp_path / "a" / "config.json").write_text(json.dumps(llama_config()))
    write_llama(tmp_path / "b", 1)
    recipe = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n"
    (tmp_path / "x.yml").write_text(recipe + "- {model: b, parameters: {weight: 1}}\n")
    (warning,) = jmerge.plan("x.yml").warnings
    assert warning.startswith("x.yml:3: models[0].model: a: model.norm.weight is in model-x")


# Paths in an index


@pytest.mark.parametrize("start", ["./", "weights/", "./weights/../", "weights//", "a/b/"])
def test_paths_that_stay_inside(start: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "weights").mkdir()
    files = {start + FIRST: {"a": value(1)}, start + SECOND: {"b": value(2)}}
    where = {"a": start + FIRST, "b": start + SECOND}
    model = open_checkpoint(shards(tmp_path, files, where))
    assert {name: array[0] for name, array in model.items()} == {"a": 1, "b": 2}


def test_two_spellings_of_one_file(tmp_path: Path) -> None:
    where = {"a": FIRST, "b": f"./{FIRST}"}
    model = open_checkpoint(shards(tmp_path, {FIRST: {"a": value(1), "b": value(2)}}, where))
    assert [file.name for file in model.files] == [FIRST] and len(model) == 2


# Variants, and the key of config.json that names a file


def test_the_only_variant(tmp_path: Path) -> None:
    shards(tmp_path, {"model.fp16.safetensors": {"a": value(1)}}, None)
    model = open_checkpoint(tmp_path)
    assert model["a"][0] == 1 and "variant 'fp16'" in model.notes[0]


def test_the_only_variant_in_shards(tmp_path: Path) -> None:
    names = [f"model-0000{i}-of-00002.bf16.safetensors" for i in (1, 2)]
    shards(tmp_path, {names[0]: {"a": value(1)}, names[1]: {"b": value(2)}}, None)
    where = {"weight_map": dict(zip("ab", names, strict=True))}
    (tmp_path / "model.safetensors.index.bf16.json").write_text(json.dumps(where))
    assert set(open_checkpoint(tmp_path)) == {"a", "b"}


def test_a_variant_beside_the_model_is_passed_over(tmp_path: Path) -> None:
    files = {"model.fp16.safetensors": {"a": value(1)}, "model.safetensors": {"a": value(2)}}
    model = open_checkpoint(shards(tmp_path, files, None))
    assert model["a"][0] == 2 and model.notes == ()


def test_a_pickle_goes_before_a_variant(tmp_path: Path) -> None:
    """As transformers looks for them, and other precision is no way out without a word."""
    shards(tmp_path, {"model.fp16.safetensors": {"a": value(1)}}, None)
    (tmp_path / "pytorch_model.bin").touch()
    line = refusal(tmp_path)
    assert "pytorch_model.bin" in line and "copy the variant fp16 to its own folder" in line


def test_a_pickle_beside_weights_of_another_stem(tmp_path: Path) -> None:
    """Merged they are as ever, and it is said that transformers takes the pickle."""
    shards(tmp_path, {"consolidated.safetensors": {"a": value(1)}}, None)
    assert open_checkpoint(tmp_path).notes == ()
    (tmp_path / "pytorch_model.bin").touch()
    (note,) = open_checkpoint(tmp_path).notes
    assert note.startswith("also has pytorch_model.bin, which transformers loads instead")


def test_several_variants(tmp_path: Path) -> None:
    files = {f"model.{kind}.safetensors": {"a": value(1)} for kind in ("fp16", "bf16")}
    assert "several variants of its weights (bf16, fp16)" in refusal(shards(tmp_path, files, None))


def test_config_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As transformers does, which then saves a config without the key."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        write_llama(tmp_path / name, seed)
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / "best.safetensors")
    shards(tmp_path / "a", {"model.safetensors": {"old": value(1)}}, None)
    config = llama_config() | {"transformers_weights": "best.safetensors"}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    assert set(open_checkpoint("a")) == set(llama_tensors(0))
    recipe = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n"
    (tmp_path / "x.yml").write_text(recipe + "- {model: b, parameters: {weight: 1}}\n")
    plan = jmerge.plan("x.yml")
    assert "transformers_weights" not in plan.config
    assert "transformers_weights" in {change.key for change in plan.changes}


@pytest.mark.parametrize("name", ["../x.safetensors", "gone.safetensors", "x.bin"])
def test_config_names_a_file_that_cannot_be_it(name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"a": value(1)}, {"transformers_weights": name})
    assert name in refusal(tmp_path)


@pytest.mark.slow
def test_the_same_files_as_transformers_takes(tmp_path: Path) -> None:
    """Whatever lies beside each other; what it takes of pickles is refused, and what it refuses may be taken."""
    resolve = pytest.importorskip("transformers.modeling_utils")._get_resolved_checkpoint_files
    kinds = {
        "single": ["model.safetensors"],
        "shards": [FIRST, SECOND],
        "variant": ["model.fp16.safetensors"],
        "pickle": ["pytorch_model.bin"],
        "other": ["mine.safetensors", "consolidated.safetensors"],
    }
    for number in range(1, 2 ** len(kinds)):
        names = [kind for bit, kind in enumerate(kinds) if number >> bit & 1]
        for explicit in (None, "mine.safetensors") if "other" in names else (None,):
            folder = tmp_path / f"{number}-{explicit}"
            files = [file for kind in names for file in kinds[kind]]
            held = {file: {file: value(1)} for file in files if file != "pytorch_model.bin"}
            where = {FIRST: FIRST, SECOND: SECOND} if "shards" in names else None
            if held:
                shards(folder, held, where)
            folder.mkdir(exist_ok=True)
            if "pickle" in names:
                (folder / "pytorch_model.bin").touch()
            config = {"transformers_weights": explicit} if explicit else {}
            (folder / "config.json").write_text(json.dumps(config))
            try:
                theirs, _ = resolve(
                    str(folder),
                    None,
                    None,
                    None,
                    None,
                    False,
                    transformers_explicit_filename=explicit,
                )
            except OSError:
                continue
            taken = sorted(Path(file).name for file in theirs or ())
            if taken == ["pytorch_model.bin"]:
                if "other" not in names:  # of another stem, which only others read
                    assert "pytorch_model.bin" in refusal(folder)
            else:
                assert [file.name for file in open_checkpoint(folder).files] == taken, names


# What did not arrive whole


def test_pointers_among_good_shards(tmp_path: Path) -> None:
    files = {FIRST: {"a": value(1)}, SECOND: {"b": value(2)}}
    shards(tmp_path, files, {"a": FIRST, "b": SECOND})
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / SECOND).write_text(pointer)
    line = refusal(tmp_path)
    assert f"1 of 2 weight files are git-LFS pointers ({SECOND})" in line and "git lfs pull" in line


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "spm.model"])
def test_pointers_beside_the_weights(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        write_llama(tmp_path / name, seed)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "a" / file).write_text(pointer)
    recipe = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n"
    (tmp_path / "x.yml").write_text(recipe + "- {model: b, parameters: {weight: 1}}\n")
    with pytest.raises(ValueError, match=f"a/{file}: is a git-LFS pointer.*git lfs pull"):
        jmerge.plan("x.yml")


def test_a_file_that_is_still_being_filled(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"a": value(1)})
    (tmp_path / "model.safetensors.aria2").touch()
    assert "interrupted" in refusal(tmp_path)


def test_missing_shards_of_an_interrupted_download(tmp_path: Path) -> None:
    shards(tmp_path, {FIRST: {"a": value(1)}}, {"a": FIRST, "b": SECOND})
    (tmp_path / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "download" / "x.incomplete").touch()
    line = refusal(tmp_path)
    assert f"missing: {SECOND}; a download was interrupted (x.incomplete)" in line


def test_an_empty_buffer_is_no_training_state(tmp_path: Path) -> None:
    tensors = {"x.g_idx": np.zeros(0, np.int32), "x.weight": value(1), "x.w": np.zeros((0, 4))}
    assert len(open_checkpoint(write_checkpoint(tmp_path, tensors))) == 3
