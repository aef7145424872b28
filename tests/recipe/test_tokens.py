"""`tokenizer`, `tokenizer_source` and `chat_template`: what they mean, and every problem of them at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jmerge.recipe.recipe import Recipe, examine_text
from jmerge.recipe.refs import ModelRef
from jmerge.recipe.tokens import ModelToken, TokenEntry, TokenizerPart, Zero
from jmerge.report.schema import recipe_schema

HEAD = """\
merge_method: linear
models:
  - {model: org/a, parameters: {weight: 1}}
  - {model: union, parameters: {weight: 1}}
"""
A, UNION = ModelRef("org/a"), ModelRef("union")
TOP = ("tokenizer",)


def part(
    source: Any,
    *tokens: TokenEntry,
    pad: int | None = None,
    mode: str = "added",
    path: tuple[str, ...] = TOP,
) -> TokenizerPart:
    """A `tokenizer`."""
    return TokenizerPart(source, tokens, pad, mode, path)


def entry(token: str, source: Any = None, force: bool = False) -> TokenEntry:
    """One of its tokens."""
    return TokenEntry(token, source, force, ("tokenizer", "tokens", token))


MEANT: dict[str, TokenizerPart | None] = {
    "tokenizer_source: union": part("union", path=("tokenizer_source",)),
    "tokenizer_source: base": part("base", path=("tokenizer_source",)),
    "tokenizer_source: org/a": part(A, path=("tokenizer_source",)),
    "tokenizer_source: model:org/a": part(A, path=("tokenizer_source",)),
    "tokenizer_source: 'model: org/a'": part(A, path=("tokenizer_source",)),
    "tokenizer_source: model:union": part(UNION, path=("tokenizer_source",)),
    "tokenizer: {source: 'model:org/a'}": part(A),
    "tokenizer: {tokens: {x: {source: 'model:org/a'}}}": part("union", entry("x", A)),
    "tokenizer: {tokens: {x: {source: {kind: model_token, model: 'model:org/z', token: y}}}}": part(
        "union", entry("x", ModelToken(ModelRef("org/z"), "y", None))
    ),
    "tokenizer_source: {model: union}": part(UNION, path=("tokenizer_source",)),
    "tokenizer_source:": None,
    'tokenizer_source: ""': None,
    "tokenizer:": None,
    "tokenizer: {}": part("union"),
    "tokenizer: {source: union}": part("union"),
    "tokenizer: {source: base, tokens: ~}": part("base"),
    "tokenizer: {source: org/a, pad_to_multiple_of: 64}": part(A, pad=64),
    "tokenizer: {pad_to_multiple_of: '8'}": part("union", pad=8),
    "tokenizer: {union_mode: bpe}": part("union", mode="bpe"),
    "tokenizer: {tokens: {x: {}}}": part("union", entry("x")),
    "tokenizer: {tokens: {x: {force: yes}}}": part("union", entry("x", None, True)),
    "tokenizer: {tokens: {x: {source: org/a, force: 1}}}": part("union", entry("x", A, True)),
    "tokenizer: {tokens: {x: {source: {model: union}}}}": part("union", entry("x", UNION)),
    "tokenizer: {tokens: {x: {source: {kind: zero}}}}": part("union", entry("x", Zero())),
    "tokenizer: {tokens: {7: {source: {kind: model_token, model: org/z, token: 7}}}}": part(
        "union", entry("7", ModelToken(ModelRef("org/z"), "7", None))
    ),
    "tokenizer: {tokens: {b: {}, a: {source: {kind: model_token, model: org/z@r, token_id: 0}}}}": part(
        "union", entry("b"), entry("a", ModelToken(ModelRef("org/z", "r"), None, 0))
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", MEANT)
def test_meant(text: str) -> None:
    """What is written, in its order; the literal words win over models of that name. Editors accept it too."""
    assert Recipe.from_text(HEAD + text).tokenizer == MEANT[text]
    jsonschema.validate(yaml.safe_load(HEAD + text.replace("{7:", '{"7":')), recipe_schema())


REFUSED = {
    "tokenizer_source: org/b": (
        "5: tokenizer_source: 'org/b' is not a model of this merge; did you mean 'org/a'?",
    ),
    "tokenizer_source: model:org/b": (
        "5: tokenizer_source: 'org/b' is not a model of this merge; did you mean 'org/a'?",
    ),
    "tokenizer_source: unoin": (
        "5: tokenizer_source: 'unoin' is not a model of this merge; did you mean 'union'?",
    ),
    "tokenizer_source: 3": (
        "5: tokenizer_source: '3' is not a model of this merge; known: union, base, org/a, union",
    ),
    "tokenizer_source: [base]": ("5: tokenizer_source: expected a model path, found ['base']",),
    "tokenizer: base": ("5: tokenizer: expected a map, found 'base'",),
    "tokenizer: {sorce: base}": (
        "5: tokenizer.sorce: unknown key; did you mean 'source'?",
    ),
    "tokenizer: {source: base}\ntokenizer_source: base": (
        "5: tokenizer: write either tokenizer or tokenizer_source, not both",
    ),
    "tokenizer: {source: base, union_mode: bpe}": (
        "5: tokenizer.union_mode: works only with 'source: union'; remove it",
    ),
    """\
tokenizer:
  pad_to_multiple_of: 0
  union_mode: bp
  tokens:
    a: {source: org/b}
    b: {source: {kind: zeros}}
    c: {source: {kind: model_token, model: org/a}}
    d: {source: {kind: model_token, model: org/a, token: x, token_id: 1}}
    e: {source: {kind: model_token, token: x}}
    f: {source: {kind: model_token, model: org/a, tokn: x}}
    g: {source: {kind: model_token, model: org/a, token_id: -1}}
    h: {source: {kind: zero, model: org/a}}
    i: {source: {token: x}}
    j: {force: maybe}
    k: {forced: yes}
    l: org/a
    m: {source: {kind: model_token, model: org/a, token: yes}}
    n: {source: {kind: model_token, model: org/a, token_id: 1.5}}
    "": {source: {kind: zero}}
""": (
        "6: tokenizer.pad_to_multiple_of: expected a number from 1 to 1,048,576, found 0",
        "7: tokenizer.union_mode: expected added or bpe, found 'bp'; did you mean 'bpe'?",
        "9: tokenizer.tokens.a.source: 'org/b' is not a model of this merge; did you mean 'org/a'?",
        "10: tokenizer.tokens.b.source: kind: expected zero or model_token, found 'zeros'; did you mean 'zero'?",
        "11: tokenizer.tokens.c.source: model_token needs exactly one of token and token_id, found neither",
        "12: tokenizer.tokens.d.source: model_token needs exactly one of token and token_id, found both",
        "13: tokenizer.tokens.e.source: model_token needs the key 'model'",
        "14: tokenizer.tokens.f.source: 'tokn' is not a key of model_token; did you mean 'token'?",
        "15: tokenizer.tokens.g.source: token_id: expected a number of at least 0, found -1",
        "16: tokenizer.tokens.h.source: 'model' is not a key of zero; known: kind",
        "17: tokenizer.tokens.i.source: expected a model, {kind: zero} or {kind: model_token, model, "
        "token or token_id}; found a map without 'kind'",
        "18: tokenizer.tokens.j.force: expected true or false, found 'maybe'",
        "19: tokenizer.tokens.k.forced: unknown key; did you mean 'force'?",
        "20: tokenizer.tokens.l: expected a map, found 'org/a'",
        "21: tokenizer.tokens.m.source: token: expected a string, found True; put it in quotes",
        "22: tokenizer.tokens.n.source: expected a whole number, found 1.5",
        "23: tokenizer.tokens.: a token must not be empty",
    ),
    "chat_template: chatlm": (
        "5: chat_template: 'chatlm' is not a chat template: a template contains '{'; did you mean 'chatml'?",
    ),
    "chat_template: {a: b}": (
        "5: chat_template: expected auto, the name of a template or its text, found {'a': 'b'}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    """All problems at once, each at its line."""
    _, problems = examine_text(HEAD + text, "x.yml")
    assert [f.text.removeprefix("x.yml:") for f in sorted(problems, key=lambda f: f.line)] == list(
        REFUSED[text]
    )


WRONG_FOR_EDITORS = [
    "tokenizer: base",
    "tokenizer: {sorce: base}",
    "tokenizer: {pad_to_multiple_of: 0}",
    "tokenizer: {pad_to_multiple_of: 100000000000}",
    "tokenizer: {union_mode: bp}",
    "tokenizer: {tokens: {a: {source: {kind: zeros}}}}",
    "tokenizer: {tokens: {a: {source: {kind: model_token, model: org/a}}}}",
    "tokenizer: {tokens: {a: {source: {kind: model_token, model: org/a, token: x, token_id: 1}}}}",
    "tokenizer: {tokens: {a: org/a}}",
    "tokenizer_source: [base]",
    "chat_template: chatlm",
    "chat_template: [auto]",
]


@pytest.mark.parametrize("text", WRONG_FOR_EDITORS)
def test_editors_refuse_too(text: str) -> None:
    """The JSON schema knows what parsing knows."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(HEAD + text), recipe_schema())


def test_chat_template() -> None:
    """A word, a text of any length, or nothing."""
    for text in ("auto", "chatml", "{{ messages }}" + "x" * 1000):
        found = Recipe.from_text(f"{HEAD}chat_template: {json.dumps(text)}").chat_template
        assert found == text
        jsonschema.validate({**yaml.safe_load(HEAD), "chat_template": text}, recipe_schema())
    for text in ("", '""', "~"):
        assert Recipe.from_text(f"{HEAD}chat_template: {text}").chat_template is None


def test_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`union` is the word even where a folder has the name; `./union` is the folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "union").mkdir()
    head = HEAD.replace("model: union", "model: ./union")
    for word, source in {"union": "union", "./union": ModelRef("./union")}.items():
        part = Recipe.from_text(head + f"tokenizer_source: {word}").tokenizer
        assert part is not None and part.source == source


def test_models_that_it_names() -> None:
    """Those of the merge with their places, and those of `model_token`, each once."""
    text = (
        HEAD
        + """\
tokenizer:
  source: org/a
  tokens:
    x: {source: {model: union}}
    y: {source: {kind: model_token, model: org/z, token: q}}
    z: {source: {kind: model_token, model: org/z, token: r}}
"""
    )
    recipe = Recipe.from_text(text)
    assert recipe.models() == (A, UNION)
    where = ("tokenizer", "tokens", "y", "source", "model")
    assert recipe.first_path(ModelRef("org/z")) == where
    assert recipe.problem("x", where, code="JM017").line == 9
    assert recipe.first_path(A) == ("models", 0, "model")
    found = recipe.tokenizer
    assert found is not None
    assert list(found.refs()) == [
        (A, ("tokenizer", "source")),
        (UNION, ("tokenizer", "tokens", "x", "source")),
    ]
    assert found.token_models() == (ModelRef("org/z"),)
