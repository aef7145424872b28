"""Model references: their grammar as a string and as a map, equality, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jmerge.recipe.refs import ESCAPES, ModelRef, parse_ref

GOOD: dict[str, tuple[Any, ModelRef]] = {
    "local": ("./models/a", ModelRef("./models/a")),
    "absolute": ("/data/models/a", ModelRef("/data/models/a")),
    "windows": ("C:\\models\\a", ModelRef("C:\\models\\a")),
    "hub": ("org/Name-7B-v0.1", ModelRef("org/Name-7B-v0.1")),
    "revision": ("org/name@main", ModelRef("org/name", "main")),
    "lora": ("org/name+org/adapter", ModelRef("org/name", None, "org/adapter")),
    "both": ("p@r+l@s", ModelRef("p", "r", "l@s")),
    "lora_revision_only": ("p+l@s", ModelRef("p", None, "l@s")),
    "number": (7, ModelRef("7")),
    "map": ({"model": "p"}, ModelRef("p")),
    "map_text_as_it_stands": ({"model": "a+b@c"}, ModelRef("a+b@c")),
    "map_parts": (
        {"model": {"path": "p", "revision": "r"}, "lora": {"path": "l", "revision": "s"}},
        ModelRef("p", "r", "l@s"),
    ),
    "map_revision_number": ({"model": {"path": "p", "revision": 2}}, ModelRef("p", "2")),
    "map_nulls": (
        {"model": {"path": "p", "revision": None}, "lora": None, "override_architecture": None},
        ModelRef("p"),
    ),
    "map_lora_text": ({"model": "p", "lora": "l"}, ModelRef("p", None, "l")),
    "map_architecture": (
        {"model": "p", "override_architecture": "LlamaForCausalLM"},
        ModelRef("p", override_architecture="LlamaForCausalLM"),
    ),
    "already_parsed": (ModelRef("p", "r"), ModelRef("p", "r")),
}


@pytest.mark.parametrize("name", GOOD)
def test_parse(name: str) -> None:
    """Every form gives its parts."""
    value, wanted = GOOD[name]
    assert parse_ref(value) == wanted


@pytest.mark.parametrize("text", ["./a", "org/name", "p@r", "p+l", "p@r+l@s"])
def test_a_string_comes_back(text: str) -> None:
    """A reference prints as it was written."""
    assert str(parse_ref(text)) == text


@pytest.mark.parametrize(
    ("left", "right"),
    [("a", "./a"), ("a", "a/"), ("a", "a@main"), ("a@x", "a@y"), ("a", "a+l"), ("a", "A")],
)
def test_textual_equality(left: str, right: str) -> None:
    """Two references are the same model only when all their text is the same."""
    assert parse_ref(left) != parse_ref(right)
    assert parse_ref(left) == parse_ref(left)
    assert len({parse_ref(left), parse_ref(left), parse_ref(right)}) == 2


@pytest.mark.parametrize("name", ["a+b", "a@b", "a+b+c", "a@b@c", "c++@1"])
def test_an_existing_folder_is_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """`+` and `@` in the name of a folder that is there mean nothing, relative or absolute."""
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_ref(name) == ModelRef(name)
    assert parse_ref(str(tmp_path / name)) == ModelRef(str(tmp_path / name))


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the home folder, and the reference keeps the text as written."""
    (tmp_path / "a@b").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_ref("~/a@b") == ModelRef("~/a@b")
    assert parse_ref("~/c@d") == ModelRef("~/c", "d")


BAD: dict[str, tuple[Any, str]] = {
    "two_plus": ("a+b+c", "'a+b+c' has more than one '+'; write one adapter at most"),
    "two_at": ("a@b@c", "'a@b@c' has more than one '@'; write path@revision"),
    "two_at_in_lora": ("a+b@c@d", "'b@c@d' has more than one '@'; write path@revision"),
    "empty": ("", "'' is incomplete; write path or path@revision"),
    "no_path": ("@main", "'@main' is incomplete; write path or path@revision"),
    "no_revision": ("a@", "'a@' is incomplete; write path or path@revision"),
    "no_adapter": ("a+", "'' is incomplete; write path or path@revision"),
    "no_model": ("+l", "'' is incomplete; write path or path@revision"),
    "windows": (
        "C:\new\tab",
        f"'C:\\new\\tab' is not a path: it contains a control character; {ESCAPES}",
    ),
    "map_windows": (
        {"model": {"path": "D:\bin"}},
        f"'D:\\x08in' is not a path: it contains a control character; {ESCAPES}",
    ),
    "null": (None, "expected a model path, found None"),
    "switch": (True, "expected a model path, found True"),
    "list": (["a"], "expected a model path, found ['a']"),
    "map_without_model": ({"lora": "l"}, "a model reference needs the key 'model'"),
    "map_null_model": ({"model": None}, "a model reference needs the key 'model'"),
    "map_typo": (
        {"model": "p", "lorra": "l"},
        "'lorra' is not a key of a model reference; did you mean 'lora'?",
    ),
    "map_path_at_top": (
        {"path": "p"},
        "'path' is not a key of a model reference; known: model, lora, override_architecture",
    ),
    "map_empty": ({"model": ""}, "expected a path or {path, revision}, found ''"),
    "map_list": ({"model": ["p"]}, "expected a path or {path, revision}, found ['p']"),
    "map_part_typo": (
        {"model": {"path": "p", "rev": "r"}},
        "expected a path or {path, revision}, found {'path': 'p', 'rev': 'r'}",
    ),
    "map_part_empty": (
        {"model": {"path": ""}},
        "expected a path or {path, revision}, found {'path': ''}",
    ),
    "map_architecture_list": (
        {"model": "p", "override_architecture": ["A"]},
        "override_architecture: expected a class name, found ['A']",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str) -> None:
    """What is no reference is refused with its own text in the words."""
    value, message = BAD[name]
    with pytest.raises(ValueError) as caught:
        parse_ref(value)
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["~no-such-user-here/model", "x" * 300, "a\0b"])
def test_paths_the_system_cannot_have(text: str) -> None:
    """An unknown home, an overlong name or a zero byte is a model that is not there."""
    try:
        found = parse_ref(text)
    except ValueError:
        return  # refusing it at once is as good
    assert found == ModelRef(text)
