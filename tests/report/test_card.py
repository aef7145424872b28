"""The model card: front matter that parses, no guessed Hub names, the recipe whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from jmerge.plan.steps import InputModel, Plan
from jmerge.report.card import model_card

RECIPE = "merge_method: linear\nmodels: []\n"


def plan(*refs: str, recipe: str = RECIPE, method: str = "linear") -> Plan:
    """A plan of which the card reads the models, the recipe and the method."""
    return Plan(
        version="1.2.3",
        recipe=recipe,
        method=method,
        seed=0,
        models=tuple(InputModel(ref=ref, path=ref, files=()) for ref in refs),
        steps=(),
        unused=(),
        config={},
        changes=(),
        tied=None,
        warnings=(),
    )


def front(card: str) -> dict[str, object]:
    """The front matter, as the Hub reads it."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found is not None
    loaded = yaml.safe_load(found[1])
    assert isinstance(loaded, dict)
    return loaded


def fenced(card: str) -> str:
    """The text of the only fenced block; a closing fence is at least as long as the opening one."""
    blocks = []
    lines = iter(card.splitlines())
    for line in lines:
        if opening := re.fullmatch(r"(`{3,})yaml", line):
            block = []
            for inner in lines:
                closing = re.fullmatch(r" {0,3}(`{3,})\s*", inner)
                if closing and len(closing[1]) >= len(opening[1]):
                    break
                block.append(inner)
            blocks.append("\n".join(block))
    (text,) = blocks
    return text


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """References are relative to a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_front_matter() -> None:
    card = model_card(plan("org/one", "org/two"), "My Model")
    assert front(card) == {
        "base_model": ["org/one", "org/two"],
        "library_name": "transformers",
        "tags": ["jmerge", "mergekit", "merge"],
    }
    assert "\n# My Model\n" in card and "1.2.3" in card


@pytest.mark.parametrize(
    ("ref", "named"),
    [
        ("org/model", ["org/model"]),
        ("org/model-7B.v0_1", ["org/model-7B.v0_1"]),
        ("org/model@main", ["org/model"]),
        ("org/model+lora/x", []),
        ("here/model", []),
        ("here/model@main", []),
        ("/abs/model", []),
        ("./model", []),
        ("../model", []),
        ("model", []),
        ("a/b/c", []),
        ("~/model", []),
        ("with space/model", []),
    ],
)
def test_only_what_can_be_a_hub_name_is_called_one(
    ref: str, named: list[str], elsewhere: Path
) -> None:
    (elsewhere / "here" / "model").mkdir(parents=True)
    assert front(model_card(plan(ref), "m")).get("base_model", []) == named


@pytest.mark.parametrize(
    "ref", ["yes", "a: b", "- x", "#x", "'quoted'", "[1]", "null", "è/ü", "---"]
)
def test_front_matter_parses_whatever_models_are_called(ref: str) -> None:
    assert front(model_card(plan(ref, f"{ref}/m", "12/34"), "m"))["library_name"] == "transformers"


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        "no newline at the end: true",
        "# ```\nmerge_method: linear\n# ```\n",
        "a: |\n  ```yaml\n  inner\n  ```\n  ````\n",
        "a: '`````'\nb: '```'\n",
        "---\na: 1\n",
    ],
)
def test_the_recipe_is_there_whole(recipe: str) -> None:
    assert fenced(model_card(plan("org/m", recipe=recipe), "m")) == recipe.rstrip()


def test_method_is_named_with_its_paper() -> None:
    card = model_card(plan("org/m", method="linear"), "m")
    assert "[Linear](https://arxiv.org/abs/2203.05482)" in card
    assert "Passthrough" in model_card(plan("org/m", method="passthrough"), "m")
