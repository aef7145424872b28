"""YAML text to values: scalars, anchors and merge keys, lines of keys, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from jmerge.errors import RecipeError
from jmerge.recipe.parse import MAX_BYTES, read_text
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ESCAPES
from jmerge.recipe.yamltree import Document, parse_yaml, show_path


def parse(text: str) -> Document:
    """The document in `text`, under the file name that the messages below show."""
    return parse_yaml(text, "x.yml")


def problems(text: str) -> list[str]:
    """Every message about `text`, whether it was refused at once or read to its end."""
    try:
        return [problem.text for problem in parse(text).problems]
    except RecipeError as error:
        return [problem.text for problem in error.problems]


# Scalars

SCALARS: dict[str, Any] = {
    # numbers, exponents without a dot or a sign among them, which YAML 1.1 takes for words
    "0": 0,
    "7": 7,
    "-3": -3,
    "+3": 3,
    "007": 7,
    "0.5": 0.5,
    ".5": 0.5,
    "5.": 5.0,
    "-0.25": -0.25,
    "1e-4": 1e-4,
    "1E5": 1e5,
    "1.5e+2": 150.0,
    "-2.5e-1": -0.25,
    ".inf": math.inf,
    "+.Inf": math.inf,
    "-.INF": -math.inf,
    # booleans
    "true": True,
    "True": True,
    "FALSE": False,
    "yes": True,
    "No": False,
    "on": True,
    "OFF": False,
    # nothing
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    # words that look like something else
    "y": "y",
    "n": "n",
    "inf": "inf",
    "nan": "nan",
    "none": "none",
    "bf16": "bf16",
    "1e": "1e",
    "e5": "e5",
    ".": ".",
    "1.2.3": "1.2.3",
    "12:30": "12:30",
    "2024-01-01": "2024-01-01",
    "torch.float16": "torch.float16",
    "./models/a": "./models/a",
    "org/Name-7B-v0.1": "org/Name-7B-v0.1",
    # quotes keep text text
    '"0.5"': "0.5",
    "'1e-4'": "1e-4",
    '"yes"': "yes",
    "'off'": "off",
    '"null"': "null",
    '""': "",
    "|\n  0.5": "0.5",
    ">-\n  0.5": "0.5",
}


@pytest.mark.parametrize("text", SCALARS)
def test_scalar_table(text: str) -> None:
    """Every scalar has the value and the type that the table says."""
    wanted = SCALARS[text]
    found = parse(f"key: {text}").value["key"]
    assert (type(found), found) == (type(wanted), wanted)


def test_scalar_nan() -> None:
    """`.nan` is the float that differs from itself."""
    found = parse("key: .NaN").value["key"]
    assert isinstance(found, float) and math.isnan(found)


def test_scalars_in_flow_collections() -> None:
    """The table holds inside brackets and braces too."""
    found = parse('key: [1e-3, "2", yes, ~, {a: .5}]').value["key"]
    assert found == [1e-3, "2", True, None, {"a": 0.5}]
    assert [type(item) for item in found] == [float, str, bool, type(None), dict]


@pytest.mark.parametrize("text", ["5: x", "'5': x", "5.0: x", "yes: x", "null: x"])
def test_keys_are_words(text: str) -> None:
    """A key is the text that was written, whatever it looks like."""
    assert parse(text).value == {text.partition(":")[0].strip("'"): "x"}


def test_huge_integer_is_no_traceback() -> None:
    """Thousands of digits, which Python refuses to convert, give a problem or a number."""
    try:
        found = parse("a: 1\nkey: " + "9" * 5000).value["key"]
    except RecipeError as error:
        assert [problem.line for problem in error.problems] == [2]
    else:
        assert isinstance(found, int | float | str)


# Anchors and merge keys

ANCHORS = {
    "anchor_of_a_list": ("a: &t [0, 0.5, 1]\nb: *t\n", {"a": [0, 0.5, 1], "b": [0, 0.5, 1]}),
    "anchor_of_a_scalar": ("a: &m org/model\nb: *m\n", {"a": "org/model", "b": "org/model"}),
    "merge_a_map": ("a: &a {x: 1, y: 2}\nb: {<<: *a, z: 3}\n", {"x": 1, "y": 2, "z": 3}),
    "own_keys_win_after": ("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 9}\n", {"x": 9, "y": 2}),
    "own_keys_win_before": ("a: &a {x: 1, y: 2}\nb: {x: 9, <<: *a}\n", {"x": 9, "y": 2}),
    "merge_a_list_of_maps": (
        "a: &a {x: 1}\nc: &c {x: 2, y: 3}\nb: {<<: [*a, *c], z: 4}\n",
        {"x": 1, "y": 3, "z": 4},  # the earlier map wins
    ),
    "merge_an_inline_map": ("b: {<<: {x: 1}, y: 2}\n", {"x": 1, "y": 2}),
    "merge_of_a_merge": (
        "a: &a {x: 1, y: 1}\nm: &m {<<: *a, y: 2, z: 2}\nb: {<<: *m, z: 3}\n",
        {"x": 1, "y": 2, "z": 3},
    ),
    "merge_is_shallow": ("a: &a {p: {x: 1}}\nb: {<<: *a, p: {y: 2}}\n", {"p": {"y": 2}}),
    "quoted_merge_key_is_a_key": ("a: &a {x: 1}\nb: {'<<': *a}\n", {"<<": {"x": 1}}),
}


@pytest.mark.parametrize("name", ANCHORS)
def test_anchors_and_merge_keys(name: str) -> None:
    """Aliases stand for what they name; `<<` fills in keys that the map does not set itself."""
    text, wanted = ANCHORS[name]
    document = parse(text)
    assert document.problems == ()
    assert (document.value if name.startswith("anchor") else document.value["b"]) == wanted


def test_aliases_are_not_shared() -> None:
    """Two aliases are two values, so that changing one cannot change the other."""
    value = parse("a: &a {x: [1]}\nb: *a\n").value
    assert value["a"] == value["b"] and value["a"] is not value["b"]
    assert value["a"]["x"] is not value["b"]["x"]


# Lines

LINED = """\
# a comment

defaults: &defaults
  density: 0.5
  weight:
    - 1
    - 2
models:
  - model: a
    parameters:
      <<: *defaults
      weight: 0.3
  - model: b
    parameters: *defaults
flow: {x: 1,
       y: [2,
           3]}
"""

LINES = {
    (): 3,
    ("defaults",): 3,
    ("defaults", "density"): 4,
    ("defaults", "weight"): 5,
    ("defaults", "weight", 0): 6,
    ("defaults", "weight", 1): 7,
    ("models",): 8,
    ("models", 0): 9,
    ("models", 0, "model"): 9,
    ("models", 0, "parameters"): 10,
    ("models", 0, "parameters", "density"): 4,  # where the key is written
    ("models", 0, "parameters", "weight"): 12,
    ("models", 1): 13,
    ("models", 1, "parameters"): 14,
    ("models", 1, "parameters", "weight"): 5,
    ("models", 1, "parameters", "weight", 1): 7,
    ("flow", "x"): 15,
    ("flow", "y"): 16,
    ("flow", "y", 0): 16,
    ("flow", "y", 1): 17,
    # what is not there is on the line of the nearest thing around it
    ("models", 1, "parameters", "densty"): 14,
    ("models", 7, "model"): 8,
    ("slices",): 3,
}


@pytest.mark.parametrize("path", LINES, ids=lambda path: show_path(path) or "top")
def test_lines(path: tuple[str | int, ...]) -> None:
    """Every key and item knows its line, counted from 1."""
    assert parse(LINED).line(path) == LINES[path]


def test_lines_with_windows_line_ends() -> None:
    """CRLF ends one line, not two."""
    assert parse("a: 1\r\nb: 2\r\nc: 3\r\n").line(("c",)) == 3


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("dtype",), "dtype"),
        (("models", 1, "parameters", "weight"), "models[1].parameters.weight"),
        (("slices", 0, "sources", 2, "layer_range"), "slices[0].sources[2].layer_range"),
        (("modules", "text_decoder", "models", 0), "modules.text_decoder.models[0]"),
    ],
)
def test_show_path(path: tuple[str | int, ...], text: str) -> None:
    """Paths read as people write them."""
    assert show_path(path) == text


# What is refused

SELF = "an anchor contains itself"
REFUSED = {
    "empty": ("", ["x.yml:1: expected a map of keys, found nothing"]),
    "only_comments": ("# soon\n", ["x.yml:1: expected a map of keys, found nothing"]),
    "null": ("~\n", ["x.yml:1: expected a map of keys, found a list or a string"]),
    "a_list": ("- model: a\n", ["x.yml:1: expected a map of keys, found a list or a string"]),
    "a_word": ("linear\n", ["x.yml:1: expected a map of keys, found a list or a string"]),
    "two_documents": (
        "a: 1\n---\nb: 2\n",
        ["x.yml:3: a second document starts here; a recipe is a single document"],
    ),
    "repeated_key": (
        "a: 1\nb: 2\na: 3\n",
        ["x.yml:3: a: duplicate key; the first is on line 1"],
    ),
    "repeated_key_deep_down": (
        "models:\n- model: x\n  parameters:\n    weight: 1\n    density: 1\n    weight: 2\n",
        ["x.yml:6: models[0].parameters.weight: duplicate key; the first is on line 4"],
    ),
    "repeated_keys_are_all_told": (
        "a: 1\na: 2\na: 3\nb: {c: 1, c: 2}\n",
        [
            "x.yml:2: a: duplicate key; the first is on line 1",
            "x.yml:3: a: duplicate key; the first is on line 1",
            "x.yml:4: b.c: duplicate key; the first is on line 4",
        ],
    ),
    "key_is_a_list": ("a: 1\n? [b]\n: 2\n", ["x.yml:2: a key must be a string"]),
    "merge_of_a_word": (
        "a: 1\nb:\n  <<: word\n",
        ["x.yml:3: b: '<<' takes a map or a list of maps"],
    ),
    "merge_of_a_list_of_words": (
        "b:\n  <<: [word, {x: 1}]\n",
        ["x.yml:2: b: '<<' takes a map or a list of maps"],
    ),
    "self_in_list": ("a: &a\n  - 1\n  - *a\n", [f"x.yml:1: a[1]: {SELF}"]),
    "self_in_map": ("a: &a\n  b: *a\n", [f"x.yml:1: a.b: {SELF}"]),
    "self_at_a_distance": ("a: &a\n  b: [{c: *a}]\n", [f"x.yml:1: a.b[0].c: {SELF}"]),
    "self_in_merge": ("a: &a\n  <<: *a\n  k: 1\n", None),
    "windows_users": (
        'a: 1\nmodels:\n  - model: "C:\\Users\\x"\n',
        [f"x.yml:3: column 15: not valid YAML: '\\U' is not a valid escape; {ESCAPES}"],
    ),
    "windows_models": (
        'a: "D:\\models\\a"\n',
        [f"x.yml:1: column 7: not valid YAML: '\\m' is not a valid escape; {ESCAPES}"],
    ),
    "windows_hexadecimal": (
        'a: "D:\\xmod"\n',
        [f"x.yml:1: column 7: not valid YAML: '\\x' is not a valid escape; {ESCAPES}"],
    ),
    "windows_escape_on_another_line": (
        'a: "D:/one\n  two\\user"\n',
        [f"x.yml:2: column 6: not valid YAML: '\\u' is not a valid escape; {ESCAPES}"],
    ),
    "windows_folder_at_the_end": (
        'a: "D:\\\\models\\"\nb: 1\n',
        [f"x.yml:1: column 4: not valid YAML: the closing quote is missing; {ESCAPES}"],
    ),
    "escape_of_no_letter": (
        'a: "\\UFFFFFFFF"\n',
        [f"x.yml: not valid YAML: an escape is not a character; {ESCAPES}"],
    ),
    "quotes_that_do_not_end": (
        'a: "b\n',
        ["x.yml:2: not valid YAML: found unexpected end of stream"],
    ),
    "unknown_alias": ("a: *b\n", ["x.yml:1: not valid YAML: found undefined alias 'b'"]),
    "open_bracket": (
        "a: 1\nb: [1, 2\n",
        ["x.yml:3: not valid YAML: expected ',' or ']', but got '<stream end>'"],
    ),
    "tab": (
        "a:\n\tb: 1\n",
        [
            "x.yml:2: not valid YAML: found character '\\t' that cannot start any token; indent "
            "with spaces, not tabs"
        ],
    ),
    "wrong_indentation": (
        "models:\n  - model: a\n   parameters: {}\n",
        ["x.yml:3: not valid YAML: expected <block end>, but found '<block mapping start>'"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    """Each wrong text gives these messages and no other."""
    text, wanted = REFUSED[name]
    if wanted is None:  # where in the loop it is noticed does not matter
        (message,) = problems(text)
        assert message.startswith("x.yml:") and message.endswith(SELF)
    else:
        assert problems(text) == wanted


def test_reading_goes_on_after_repeated_keys() -> None:
    """The first of two equal keys counts, so that later checks can find more problems."""
    assert parse("a: 1\nb: 2\na: 3\n").value == {"a": 1, "b": 2}


def test_anchor_defined_twice() -> None:
    """PyYAML refuses this; the message names the anchor and the line of the second."""
    (message,) = problems("a: &x 1\nb: *x\nc: &x 2\n")
    assert message.startswith("x.yml:3: not valid YAML: ")
    assert "duplicate anchor 'x'" in message


@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_nested_too_deeply(brackets: str) -> None:
    """A file of brackets is a problem, not a RecursionError."""
    opening, closing = brackets[0] + ("k: " if brackets == "{}" else ""), brackets[1]
    assert problems(f"a: {opening * 5000}1{closing * 5000}") == [
        "x.yml: not valid YAML: nested too deeply"
    ]


def test_nested_too_deeply_through_aliases() -> None:
    """Anchors that each nest a little and contain each other are no RecursionError either."""
    text = f"a: &a {'[' * 300}1{']' * 300}\n"
    for old, new in ("ab", "bc", "cd"):
        text += f"{new}: &{new} {'[' * 300}*{old}{']' * 300}\n"
    (message,) = problems(text)
    assert message.startswith("x.yml") and message.endswith("nested too deeply")


def laughs(levels: int) -> str:
    """Ten aliases of ten aliases of ten aliases, and so on."""
    text = "l0: &l0 lol\n"
    for i in range(1, levels + 1):
        text += f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n"
    return text


def test_billion_laughs() -> None:
    """Aliases that multiply are stopped at a limit that recipes never reach, at their line."""
    (message,) = problems(laughs(9))
    assert message == "x.yml:1: aliases expand to more than 200,000 values"
    assert len(parse(laughs(4)).value["l4"]) == 10  # 11,110 values are still fine


def test_billion_laughs_of_merge_keys() -> None:
    """Maps that merge each other tenfold end as fast, with a problem or with their few keys."""
    text = "l0: &l0 {k: 1}\n"
    for i in range(1, 31):
        text += f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 10)}], k{i}: 1}}\n"
    found = problems(text)
    assert found == [] or found[0].endswith("aliases expand to more than 200,000 values")


# Files

MINIMAL = b"merge_method: linear\nmodels:\n- model: a\n"


def test_byte_order_mark(tmp_path: Path) -> None:
    """The mark that Windows editors put in front is no part of the first key."""
    path = tmp_path / "x.yml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL)
    assert Recipe.from_file(path).method == "linear"
    assert Recipe.from_file(path).text == MINIMAL.decode()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"merge_method: line\xe4r\n", "is not text in UTF-8"),
        ("merge_method: linear\n".encode("utf-16"), "is not text in UTF-8"),
        (b"\x80\x02}q\x00.", "is not text in UTF-8"),
        (b"# " + b"x" * MAX_BYTES, "is too large for a recipe; name the recipe, not a weight file"),
    ],
    ids=["latin_1", "utf_16", "pickle", "too_large"],
)
def test_not_a_text_file(tmp_path: Path, raw: bytes, message: str) -> None:
    """A file that is no text in UTF-8, or far too large, is one problem that names it."""
    path = tmp_path / "x.yml"
    path.write_bytes(raw)
    with pytest.raises(RecipeError) as caught:
        Recipe.from_file(path)
    assert [problem.text for problem in caught.value.problems] == [f"{path}: {message}"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.yml", "cannot be read: No such file or directory"),
        (".", "cannot be read: Is a directory"),
    ],
)
def test_no_such_file(tmp_path: Path, name: str, message: str) -> None:
    """A recipe that is not there is one problem."""
    path = tmp_path / name
    with pytest.raises(RecipeError) as caught:
        read_text(path)
    assert [problem.text for problem in caught.value.problems] == [f"{path}: {message}"]


def test_control_characters() -> None:
    """Bytes that YAML forbids are a problem that says which."""
    (message,) = problems("a: b\nc: \x00\n")
    assert message.startswith("x.yml")
    assert "unacceptable character #x0000" in message


@pytest.mark.parametrize("text", ["a: 1\n---\n", "---\na: 1\n---\n...\n", "---\n---\na: 1\n"])
def test_an_empty_document_beside_is_nothing(text: str) -> None:
    assert parse(text).value == {"a": 1}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("```yaml\na: 1\n```\n", "remove the ``` lines"),
        ("a: 1\n```\n", "remove the ``` lines"),
        ("a:\n\t- 1\n", "indent with spaces"),
        ("a:\n  - b: x\n \u00a0- c: y\n", "retype it"),
    ],
)
def test_what_comes_along_from_a_page_is_explained(text: str, hint: str) -> None:
    (problem,) = problems(text)
    assert hint in problem
