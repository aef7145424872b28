"""Tokens and templates that cannot be merged, through the command: a line for each problem, code 2, nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenkit as kit
from mergeplace import EMBED, HEAD, Place
from said import Said

WORDS = kit.words(*"abc")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.model("base", WORDS)
    made.model("other", kit.words(*"cbad"))
    return made


def refused(place: Place, recipe: Path) -> list[str]:
    """What is said of a recipe that is refused by both commands, and leaves nothing behind."""
    before = sorted(place.folder.rglob("*"))
    said = Said(str(recipe), str(place.folder / "out"))
    planned = Said("plan", str(recipe))
    assert (said.code, said.out) == (2, "") == (planned.code, planned.out)
    assert said.errors == planned.errors and "Traceback" not in said.err
    assert sorted(place.folder.rglob("*")) == before
    for line in said.errors:
        assert line.startswith(f"error: {recipe}:")
    return [line.removeprefix(f"error: {recipe}:") for line in said.errors]


def union(place: Place, *models: str, tail: str = "tokenizer_source: union") -> list[str]:
    """The same of a union, whose tail is on line 7 with two models."""
    return refused(place, place.linear(*(models or ("base", "other")), tail=tail))


def test_no_fast_form(place: Place) -> None:
    place.model("tik", rows=4, files={"qwen__tiktoken": "YQ== 0\n"})
    (line,) = union(place, "base", "tik")
    assert line.startswith("6: models[1].model: ")
    assert (
        "tik/qwen.tiktoken: cannot be converted here: save the tokenizer as tokenizer.json" in line
    )


def test_not_a_tokenizer(place: Place) -> None:
    """What cannot be parsed, and what is JSON but no tokenizer."""
    for name, text in {"torn": WORDS[:-9], "odd": '{"model": 3}', "binary": b"\xff\xfe"}.items():
        place.model(name, rows=4, files={"tokenizer__json": text})
    lines = union(place, "base", "torn", "odd", "binary")
    assert [line.split(": ")[0] for line in lines] == ["6", "7", "8"]
    assert "torn/tokenizer.json: is not valid JSON: " in lines[0]
    assert "odd/tokenizer.json: is not a tokenizer: " in lines[1]
    assert "binary/tokenizer.json: is not text in UTF-8" in lines[2]


def test_companions_that_are_not_json(place: Place) -> None:
    for name in ("tokenizer_config", "added_tokens", "special_tokens_map"):
        place.model(name, WORDS, files={f"{name}__json": "{"})
    lines = union(place, "base", "tokenizer_config", "added_tokens", "special_tokens_map")
    assert len(lines) == 3 and all(".json: is not valid JSON" in line for line in lines)


def test_no_tokenizer_at_all(place: Place) -> None:
    """The base needs one."""
    place.model("none", rows=3)
    assert union(place, "none", "base") == [
        f"7: tokenizer_source: '{place.folder}/none' has no tokenizer; add its tokenizer.json to its folder"
    ]


def test_a_vocabulary_larger_than_its_table(place: Place) -> None:
    """Where it cannot do without what has no row."""
    text = kit.with_tokens(kit.words("a", "b"), "<s>", special=True)
    document = json.loads(text)
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [2], "tokens": ["<s>"]}},
    }
    place.model("large", json.dumps(document), rows=2)
    (line,) = union(place, "large", "base")
    assert line.startswith("7: tokenizer_source: ")
    assert "the tokenizer needs '<s>' with id 2, but the model has only 2 usable rows" in line


@pytest.mark.parametrize(
    ("entry", "where", "message"),
    [
        ("nope: {}", "nope", "no model has the token 'nope'; give it a source"),
        ("d: {source: '{base}'}", "d.source", "base' has no row for the token 'd'"),
        (
            "x: {source: {kind: model_token, model: '{other}', token: dd}}",
            "x.source.token",
            "other' has no token 'dd'; did you mean 'd'?",
        ),
        (
            "x: {source: {kind: model_token, model: '{other}', token_id: 4}}",
            "x.source.token_id",
            "other' has 4 rows, so there is no row 4",
        ),
        ("x: {source: {kind: model_token, model: '{other}'}}", "x.source", "exactly one of token"),
    ],
)
def test_tokens_that_exist_nowhere(entry: str, where: str, message: str, place: Place) -> None:
    """At the line of the entry."""
    tail = f"tokenizer:\n  source: union\n  tokens:\n    {entry}"
    (line,) = union(place, tail=tail)
    assert line.startswith(f"10: tokenizer.tokens.{where}: ") and message in line


def test_union_mode_bpe_of_words(place: Place) -> None:
    tail = "tokenizer:\n  source: union\n  union_mode: bpe"
    lines = union(place, tail=tail)
    assert lines and all(line.startswith("9: tokenizer.union_mode: bpe needs") for line in lines)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("'{% for m in messages %}{{ m }}'", "does not compile: line 1: Unexpected end"),
        ("'{{ raise_exception(\"no\") }}'", "cannot be rendered: no"),
        ("'{{ ().__class__.__mro__ }}'", "cannot be rendered: access to attribute '__class__'"),
        ("zephyr", "'zephyr' is not a chat template: a template contains '{'"),
    ],
)
def test_templates_that_cannot_be_rendered(template: str, message: str, place: Place) -> None:
    place.model("same", WORDS)
    (line,) = union(place, "base", "same", tail=f"chat_template: {template}")
    assert line.startswith("7: chat_template: ") and message in line


@pytest.mark.slow
def test_a_template_that_does_not_end(place: Place) -> None:
    loop = "{% for i in range(9999) %}" * 3 + "{% endfor %}" * 3
    place.model("same", WORDS)
    (line,) = union(place, "base", "same", tail=f"chat_template: '{loop}'")
    assert "does not end: rendering a short dialogue took more than 10 seconds" in line


def test_a_template_of_a_broken_tokenizer(place: Place) -> None:
    """Also where only the template is asked for."""
    place.model("torn", rows=3, files={"tokenizer__json": "{"})
    (line,) = union(place, "torn", "base", tail="chat_template: chatml")
    assert line.startswith(("2: base_model: ", "5: models[0].model: "))
    assert "is not valid JSON" in line


def test_all_problems_at_once(place: Place) -> None:
    """Tokens, template, numbers and shapes, in the order of lines."""
    place.model("wide", WORDS, hidden=16)
    tail = "tokenizer: {source: union, tokens: {nope: {}}}\nchat_template: '{% x'"
    recipe = place.linear("base", "wide", tail=tail)
    recipe.write_text(recipe.read_text().replace("weight: 2", "weight: much"))
    lines = refused(place, recipe)
    assert [line.split(":")[0] for line in lines] == ["6", "6", "7", "8"]
    assert "models of different sizes cannot be merged" in "".join(lines)


def test_other_widths(place: Place) -> None:
    """Tables of other widths are no matter of vocabularies."""
    place.model("wide", WORDS, hidden=16)
    (line,) = union(place, "base", "wide")
    assert "models of different sizes cannot be merged" in line and "tokenizer_source" not in line


def test_rows_of_another_width(place: Place) -> None:
    """Nor can they fill tokens."""
    place.model("wide", WORDS, hidden=16)
    entry = "x: {source: {kind: model_token, model: '{wide}', token: a}}"
    lines = union(place, tail=f"tokenizer: {{source: union, tokens: {{{entry}}}}}")
    assert len(lines) == 2 and all(
        "rows of other lengths cannot fill its tokens" in x for x in lines
    )
    assert EMBED in lines[0] and HEAD in lines[1]


def test_a_config_without_a_size(place: Place) -> None:
    """Loaders would take a default for it."""
    place.model("mute", WORDS)
    path = place.folder / "mute" / "config.json"
    config = json.loads(path.read_text())
    del config["vocab_size"]
    path.write_text(json.dumps(config))
    (line,) = union(place, "mute", "other")
    assert "config.json of" in line and "add vocab_size to it" in line
    assert (
        Said(
            str(place.linear("mute", "base", tail="tokenizer_source: base")),
            str(place.folder / "same"),
        ).code
        == 0
    )


def test_tables_of_integers(place: Place) -> None:
    tables = {EMBED: np.ones((3, 8), np.int8), HEAD: np.ones((3, 8), np.int8)}
    for name, words in (("one", "abc"), ("two", "cab")):
        place.model(name, kit.words(*words), tensors=tables)
    lines = union(place, "one", "two")
    assert len(lines) == 2
    assert all("has rows of I8, which cannot be put in another order" in line for line in lines)


def test_a_row_with_a_number_for_each_token(place: Place) -> None:
    """BART's bias of logits: refused where a token moves, merged where none does."""
    table = np.ones((3, 8), np.float32)
    tensors = {EMBED: table, HEAD: table, "final_logits_bias": np.ones((1, 3), np.float32)}
    for name, words in (("one", "abc"), ("two", "cab"), ("same", "abc")):
        place.model(name, kit.words(*words), tensors=tensors)
    (line,) = union(place, "one", "two")
    assert "final_logits_bias is [1, 3], a row with a number for each token" in line
    recipe = place.linear("one", "same", tail="tokenizer_source: union")
    assert Said(str(recipe), str(place.folder / "merged")).code == 0


def test_a_model_that_is_not_there(place: Place) -> None:
    """A model that only fills tokens has to be there."""
    entry = "x: {source: {kind: model_token, model: '{far}', token: a}}"
    recipe = place.linear("base", "other", tail=f"tokenizer: {{tokens: {{{entry}}}}}")
    recipe.write_text(recipe.read_text().replace("{far}", str(place.folder / "far")))
    (line,) = refused(place, recipe)
    assert line.startswith("7: tokenizer.tokens.x.source.model: ") and "is not a folder" in line


def test_a_nan_in_a_table_is_told(place: Place) -> None:
    """With the model and tensor it came from; nothing is left."""
    table = np.zeros((4, 8), np.float32)
    table[3, 2] = np.nan
    place.model("sick", kit.words(*"cbad"), tensors={HEAD: table})
    recipe = place.linear("base", "sick", tail="tokenizer_source: union")
    before = sorted(place.folder.rglob("*"))
    said = Said(str(recipe), str(place.folder / "out"))
    assert said.code == 2 and len(said.errors) == 1
    base, sick = place.folder / "base", place.folder / "sick"
    wanted = (
        f"error: {HEAD}: 1 elements of '{HEAD}' in {base} (where tokens are filled from {sick})"
    )
    assert said.errors[0].startswith(f"{wanted} are NaN or infinite")
    assert sorted(place.folder.rglob("*")) == before


@pytest.mark.parametrize("order", [("base", "other"), ("other", "base")])
def test_a_stack_of_models_with_other_vocabularies(order: tuple[str, str], place: Place) -> None:
    """Its embedding would be of the first model and its head of the last, so that no config.json describes both."""
    first, last = order
    text = f"""merge_method: passthrough
slices:
- sources: [{{model: '{{{first}}}', layer_range: [0, 1]}}]
- sources: [{{model: '{{{last}}}', layer_range: [0, 2]}}]
"""
    rows = {"base": 3, "other": 4}
    (line,) = refused(place, place.recipe(text))
    assert line.startswith(f"4: slices[1].sources[0].model: {HEAD} has {rows[last]} rows in ")
    assert f"/{last}, {rows[first]} in " in line and "add 'tokenizer_source: union'" in line
    made = place.run(place.recipe(text + "tokenizer_source: union\n"))
    assert made[EMBED].shape == made[HEAD].shape == (4, 8)
