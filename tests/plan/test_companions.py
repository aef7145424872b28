"""Files that go with the weights: the donor's, byte for byte, and JSON where they say they are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from partialkit import refused, run, write

import jmerge
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama

SOUP = """\
merge_method: linear
models:
  - {model: {a}, parameters: {weight: 1}}
  - {model: {b}, parameters: {weight: 1}}
"""
CHECKED = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
CARRIED = (
    *CHECKED,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/rag.jinja",
)


@pytest.mark.parametrize("tail", ["", "only: ['*.mlp.*']\n"])
def test_carried(tmp_path: Path, tail: str) -> None:
    """Also by a recipe that merges only a part."""
    for seed, name in enumerate("ab"):
        write_llama(tmp_path / name, seed)
        (tmp_path / name / "additional_chat_templates").mkdir()
        for file in CARRIED:
            (tmp_path / name / file).write_text(f'{{ "of":  "{name}" }}')
    (tmp_path / "a" / "optimizer.json").write_text("{}")
    made = run(tmp_path, SOUP + tail)
    for file in CARRIED:
        assert (tmp_path / "out" / file).read_text() == '{ "of":  "a" }'
        assert made.ledger["files"][file] == 14
    assert not (tmp_path / "out" / "optimizer.json").exists()


def test_the_plan_says_what_comes_along(tmp_path: Path) -> None:
    """It is found once: by what the plan holds, files are written; where they lie is not part of its identity."""
    for seed, name in enumerate("ab"):
        write_llama(tmp_path / name, seed)
        (tmp_path / name / "generation_config.json").write_text("{}")
    (tmp_path / "a" / "optimizer.json").write_text("{}")
    recipe = tmp_path / "x.yml"
    recipe.write_text(SOUP.replace("{a}", str(tmp_path / "a")).replace("{b}", str(tmp_path / "b")))
    plan = jmerge.plan(recipe)
    assert [(file.name, file.own, file.data) for file in plan.taken] == [
        ("generation_config.json", "generation_config.json", None)
    ]
    assert [file.name for file in plan.left] == ["optimizer.json"]
    assert plan == jmerge.plan(recipe) and "taken" not in json.loads(plan.to_json())


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", "nope"])
def test_not_json(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every such file of the donor is named at once; those of others are not read."""
    for seed, name in enumerate("ab"):
        write_llama(tmp_path / name, seed)
        for file in CHECKED:
            (tmp_path / name / file).write_text(text)
    errors = refused(tmp_path, SOUP, capsys)
    assert len(errors) == len(CHECKED)
    for file, error in zip(sorted(CHECKED), sorted(errors), strict=True):
        assert error.startswith(f"error: x.yml:3: models[0].model: a/{file}: is not ")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_config_is_not_json(tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of any model."""
    for seed, name in enumerate("ab"):
        write_llama(tmp_path / name, seed)
        (tmp_path / name / file).write_text("{'a': 1}")
    errors = refused(tmp_path, SOUP, capsys)
    assert [error.split(": is not")[0] for error in errors] == [
        f"error: x.yml:{3 + i}: models[{i}].model: {name}/{file}" for i, name in enumerate("ab")
    ]


PARTS = ("spk_dict.pt", "source.spm", "bpe.codes", "speech_tokenizer/config.json")


def test_what_a_loader_needs_and_what_stays_behind(tmp_path: Path) -> None:
    """Byte for byte; of other models nothing; the ledger names the rest with its reason."""
    for seed, name in enumerate("ab"):
        write_llama(tmp_path / name, seed)
        config = llama_config() | {"model_type": "codec"}
        write_checkpoint(tmp_path / name / "speech_tokenizer", llama_tensors(9, layers=1), config)
        for file in ("spk_dict.pt", "source.spm", "bpe.codes", "optimizer.pt", "x.png"):
            (tmp_path / name / file).write_bytes(f"{file} of {name}".encode())
    (tmp_path / "b" / "more.json").write_text("{}")
    plan = jmerge.plan(write(tmp_path, SOUP))
    merged = jmerge.merge(tmp_path / "x.yml", tmp_path / "out")
    assert merged.strange == ()
    for file in (*PARTS, "speech_tokenizer/model.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "a" / file).read_bytes()
    assert not (tmp_path / "out" / "more.json").exists()
    ledger = json.loads((tmp_path / "out" / "jmerge.lock.json").read_text())
    assert ledger["left_behind"] == [
        {"file": "optimizer.pt", "reason": "state or log of a training run"},
        {"file": "x.png", "reason": "a picture or document for people"},
    ]
    assert [vars(each) for each in plan.left] == [
        {"name": each["file"], "reason": each["reason"]} for each in ledger["left_behind"]
    ]
    (tmp_path / "a" / "y.png").touch()  # what stays behind makes no other result
    assert jmerge.merge(tmp_path / "x.yml", tmp_path / "out").up_to_date


def test_no_config_is_made_up(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", llama_tensors(0))
    write_llama(tmp_path / "b", 1)
    path = write(tmp_path, SOUP)
    (warning,) = jmerge.plan(path).warnings
    assert "has no config.json" in warning and "copy that of" in warning
    jmerge.merge(path, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_none_of_the_models_has_a_config(tmp_path: Path) -> None:
    """There is none to copy, so nothing is said."""
    for seed, name in enumerate("ab"):
        write_checkpoint(tmp_path / name, llama_tensors(seed))
    plan = jmerge.plan(write(tmp_path, SOUP))
    assert plan.warnings == () and plan.config == {}


def test_numbers_that_json_has_not(tmp_path: Path) -> None:
    """As Python writes them and transformers reads them; they come back in the same form."""
    odd = {"a": math.nan, "b": [math.inf, -math.inf], "c": {"__float__": "Infinity"}}
    for seed, name in enumerate("ab"):
        write_checkpoint(tmp_path / name, llama_tensors(seed), llama_config() | odd)
        (tmp_path / name / "generation_config.json").write_text('{"x": NaN}')
    made = run(tmp_path, SOUP)
    assert math.isnan(made.config["a"]) and made.config["b"] == odd["b"]
    assert made.config["c"] == odd["c"]
    text = (tmp_path / "out" / "config.json").read_text()
    assert "NaN" in text and "-Infinity" in text
    assert not [each for each in made.ledger["config"] if each["key"] in odd]
