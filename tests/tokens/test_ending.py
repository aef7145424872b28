"""A template that ends turns with a token that ends no text is told, with what to do; no other is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenkit as kit
from mergeplace import Place

import jmerge

CHATML = ("<|im_start|>", "<|im_end|>")
BRACKETS = ("[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]")
EOS = {"tokenizer_config__json": {"eos_token": "</s>"}}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def warnings(
    place: Place, template: str, files: dict[str, Any], *marks: str, **config: Any
) -> list[str]:
    """What the plan of a merge with this template says, of models with tokens more than eos (2)."""
    text = kit.with_tokens(kit.words("<unk>", "<s>", "</s>", "a"), "</s>", *marks, special=True)
    for name in ("base", "twin"):
        place.model(name, text, files=files, config=config)
    recipe = place.linear("base", "twin", tail=f"chat_template: {template}")
    return [line for line in jmerge.plan(recipe).warnings if "x.yml:7: chat_template" in line]


@pytest.mark.parametrize(
    ("template", "marks", "end"),
    [
        ("chatml", CHATML, "<|im_end|>"),
        ("exaone", BRACKETS, "[|endofturn|]"),
        (
            "'{% for m in messages %}{{ m.content + \"<|im_end|>\" }}{% endfor %}'",
            CHATML,
            "<|im_end|>",
        ),
    ],
)
def test_told(template: str, marks: tuple[str, ...], end: str, place: Place) -> None:
    number = 4 + marks.index(end)
    (line,) = warnings(place, template, EOS, *marks)
    assert f"ends a turn with {end}, but generation ends at </s> (2), so answers" in line
    assert f"add {number} to eos_token_id in the output's generation_config.json" in line
    assert f"(eos_token_id: [2, {number}])" in line


def test_what_generation_config_says_counts(place: Place) -> None:
    """As one id or as a list; without it what config.json says."""
    for said, told in ((5, False), ([2, 5], False), ([2, 3], True), (2, True)):
        files = EOS | {"generation_config__json": {"eos_token_id": said}}
        assert bool(warnings(place, "chatml", files, *CHATML)) == told
    (place.folder / "base" / "generation_config.json").unlink()
    (place.folder / "twin" / "generation_config.json").unlink()
    assert not warnings(place, "chatml", EOS, *CHATML, eos_token_id=[2, 5])


@pytest.mark.parametrize("template", ["mistral", "alpaca"])
def test_not_told(template: str, place: Place) -> None:
    """It writes eos_token, whatever that is, or nothing."""
    assert warnings(place, template, EOS, *CHATML) == []


def test_the_tokenizer_s_own_name_counts(place: Place) -> None:
    assert (
        warnings(place, "chatml", {"tokenizer_config__json": {"eos_token": "<|im_end|>"}}, *CHATML)
        == []
    )


def test_a_model_that_ends_so_is_named(place: Place) -> None:
    assert warnings(place, "chatml", EOS, *CHATML)
    text = (place.folder / "twin" / "tokenizer.json").read_text()
    place.model("twin", text, files={"tokenizer_config__json": {"eos_token": "<|im_end|>"}})
    recipe = place.linear("base", "twin", tail="chat_template: chatml")
    (line,) = [line for line in jmerge.plan(recipe).warnings if "ends a turn" in line]
    assert f"('tokenizer_source: {place.folder / 'twin'}')" in line
    source = f"chat_template: chatml\ntokenizer_source: {place.folder / 'twin'}"
    plan = jmerge.plan(place.linear("base", "twin", tail=source))
    assert not [line for line in plan.warnings if "ends a turn" in line]
