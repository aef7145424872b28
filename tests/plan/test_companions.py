"""Files that go with the weights: the donor's, byte for byte, and JSON where they say they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from partialkit import refused, run

from jmerge.testing.tiny import write_llama

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
