"""Choosing the chat template, and refusing those that do not compile, render or end."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tokenkit as kit

from jmerge.errors import RecipeError, RunError
from jmerge.tokens.chat import choose_template, most_frequent, try_template
from jmerge.tokens.templates import BUILT_IN

FINE = {
    "plain": "{{ messages[0]['content'] }}",
    "no_system": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}x",
    "only_one_turn": "{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}",
    "lists_of_parts": "{% for m in messages %}{% for p in m.content %}{{ p['text'] + '' }}{% endfor %}{% endfor %}",
    "what_transformers_offers": (
        "{% generation %}{{ messages | tojson(indent=2) }}{% endgeneration %}{{ strftime_now('%Y') }}"
        "{% for m in messages %}{% break %}{% endfor %}"
    ),
    **BUILT_IN,
}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
def test_fine(name: str) -> None:
    """A template that renders any dialogue passes."""
    assert isinstance(try_template(FINE[name]), str)


BAD = {
    "syntax": ("\n{{ x", r"does not compile: line 2: unexpected end of template"),
    "unknown_tag": ("{% tag %}", r"does not compile: line 1: Encountered unknown tag 'tag'\."),
    "refuses_all": ("{{ raise_exception('never\n again') }}", r"cannot be rendered: never again"),
    "sandbox": ("{{ ''.__class__.__mro__ }}", r"cannot be rendered: access to attribute .* unsafe"),
    "changes_messages": ("{% set _ = messages.append(1) %}", r"cannot be rendered: .*append.*"),
    "too_long": (
        "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}",
        r"cannot be rendered: writes more than 1,000,000 characters",
    ),
    "too_large": ("{{ 'x' * 10 ** 10 }}", r"cannot be rendered: .*[Mm]emory.*"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    """One line says why."""
    text, message = BAD[name]
    with pytest.raises(ValueError, match=message) as caught:
        try_template(text)
    assert "\n" not in str(caught.value) and re.match(message, str(caught.value))


def test_one_that_does_not_end() -> None:
    """It is stopped, whatever it does meanwhile."""
    start = time.monotonic()
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ValueError, match="^does not end: .* took more than 1 seconds$"):
        try_template(loop, patience=1.0)
    assert time.monotonic() - start < 30


def test_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none can be started the machine is at problem, not the template."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(
        RunError, match="^cannot start a process to try the chat template: No such file"
    ):
        try_template(FINE["plain"])


def test_the_working_directory_is_no_place_to_import_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that happens to lie there is not run."""
    (tmp_path / "jinja2.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert try_template(FINE["plain"])


def test_most_frequent() -> None:
    """White space around is no difference, empty ones do not count; of equals the base's, else the first."""
    assert most_frequent([None, "", " \n"]) == (None, "auto")
    assert most_frequent(["a", "b", " b\n"]) == ("b", "auto: of 2 models")
    assert most_frequent([" b\n", "b", "a"])[0] == " b\n"
    assert most_frequent(["c", "a", "b", "a", "b", "c"])[0] == "c"
    assert most_frequent([None, "a", "b"])[0] == "a"
    assert most_frequent(["c", "b", "a", "b", "a"])[0] == "b"


def choose(tail: str, *templates: str | None) -> tuple[Any, ...]:
    """What a recipe with this line makes of two models' templates, and the marks that the one chosen writes."""
    return choose_template(kit.recipe_of("a", "b", tail=tail), templates or (None, None))[:4]


def test_what_follows_an_answer() -> None:
    """An answer, not what was asked; nothing where no answer was written."""
    for name, begins in (
        ("chatml", "<|im_end|>\n"),
        ("mistral", "<jmerge eos>"),
        ("alpaca", "\n\n#"),
    ):
        chosen = choose_template(kit.recipe_of("a", tail=f"chat_template: {name}"), (None,))
        assert chosen.after.startswith(begins)
    chosen = choose_template(kit.recipe_of("a", tail=f'chat_template: "{TEXT}"'), (None,))
    assert chosen.after == ""


TEXT = "{{ messages[0]['content'] }}"


def test_choose() -> None:
    """None, auto, a name, a text."""
    assert choose("dtype: float32") == (None, "as it is", (), ())
    assert choose("chat_template: auto", None, TEXT) == (TEXT, "auto: of 1 model", (), ())
    assert choose("chat_template: chatml") == (
        *(BUILT_IN["chatml"], "the built-in chatml", ()),
        ("<|im_start|>", "<|im_end|>"),
    )
    assert choose(f'chat_template: "{TEXT}"') == (TEXT, "the text in the recipe", (), ())


def test_choose_notes() -> None:
    """Where nothing is found, and where MergeKit would refuse."""
    template, _, notes, _ = choose("chat_template: auto")
    assert template is None
    assert [n.text for n in notes] == [
        "x.yml:6: chat_template: no model has a chat template, so the output has none"
    ]
    template, _, notes, _ = choose('chat_template: "{{ messages }}"')
    assert template == "{{ messages }}"
    assert [n.message for n in notes] == [
        "'{{ messages }}' is very short for a chat template; MergeKit refuses it"
    ]


def test_choose_refuses() -> None:
    """At the line of the key, with where the template is from."""
    with pytest.raises(RecipeError) as caught:
        choose('chat_template: "{% if x %} without its end"')
    assert str(caught.value).startswith(
        "x.yml:6: chat_template: the chat template (the text in the recipe) does not compile: line 1: "
    )
    with pytest.raises(RecipeError, match=r"\(auto: of 1 model\) does not compile"):
        choose("chat_template: auto", "{{")


def test_a_long_text_is_no_file_name() -> None:
    """Nothing looks for a file of that name, however long it is."""
    text = "{{ messages[0]['content'] }}" + "x" * 5000
    found = choose(f'chat_template: "{text}"')
    assert found == (text, "the text in the recipe", (), ())
    with pytest.raises(RecipeError, match="is not a chat template: a template contains '{'"):
        choose("chat_template: ../chatml")
