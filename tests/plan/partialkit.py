"""Recipes run on tiny models: the tensors that come out, the ledger, and the errors of refused ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file
from said import uncoded

import jmerge
from jmerge.ckpt.source import LocalSource
from jmerge.ckpt.writer import LEDGER
from jmerge.cli import main
from jmerge.verify.checks import verify

SOUP = """\
merge_method: linear
models:
  - model: {a}
    parameters: {weight: 1}
  - model: {b}
    parameters: {weight: 3}
"""


class Made(NamedTuple):
    """What a merge wrote."""

    tensors: dict[str, np.ndarray]
    ledger: dict[str, Any]
    config: dict[str, Any]


def run(folder: Path, recipe: str) -> Made:
    """The result of a recipe that writes the models in `folder` as {name}, each its folder."""
    path = write(folder, recipe)
    out = folder / "out"
    merged = jmerge.merge(path, out)
    assert merged.strange == () and all(each.fine for each in verify(LocalSource(out), deep=True))
    files = sorted(out.rglob("*.safetensors"))
    tensors = {
        "/".join([*file.relative_to(out).parts[:-1], name]): array
        for file in files
        for name, array in load_file(file).items()
    }
    config = next(out.rglob("config.json"))
    return Made(tensors, json.loads((out / LEDGER).read_text()), json.loads(config.read_text()))


def refused(folder: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the command says of a recipe it refuses, folders by their names; nothing is left behind."""
    path = write(folder, recipe)
    before = sorted(folder.iterdir())
    capsys.readouterr()
    assert main([str(path), str(folder / "out")]) == 2
    assert sorted(folder.iterdir()) == before
    err = uncoded(capsys.readouterr().err).replace(f"{folder}/", "")
    return [line for line in err.splitlines() if not line.endswith("nothing was written")]


def write(folder: Path, recipe: str) -> Path:
    """The recipe as x.yml in `folder`."""
    for path in folder.iterdir():
        if path.is_dir():
            recipe = recipe.replace(f"{{{path.name}}}", str(path))
    (folder / "x.yml").write_text(recipe)
    return folder / "x.yml"


def account(made: Made, inputs: dict[str, dict[str, np.ndarray]]) -> None:
    """Every tensor of every input is a source or unused with a reason."""
    told = {
        (Path(source["model"]).name, source["tensor"])
        for entry in made.ledger["tensors"].values()
        for source in entry["sources"]
    }
    told |= {(Path(each["model"]).name, each["tensor"]) for each in made.ledger["unused"]}
    assert told == {(model, name) for model, tensors in inputs.items() for name in tensors}
    assert all(each["reason"] for each in made.ledger["unused"])
