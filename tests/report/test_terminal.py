"""Lines on a terminal and elsewhere: where they break, and where they have colour."""

from __future__ import annotations

import contextlib
import io
import sys

import pytest

from jmerge.report.terminal import columns, paint, say, wrap


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 80 columns with colours."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


@pytest.mark.parametrize("width", [60, 80, 131])
def test_lines_break_between_words_and_hang(width: int) -> None:
    name = "model.layers." + "x" * 70 + ".weight"
    text = f"error: a.yml:3: {name}: " + "some words of a sentence " * 20
    lines = wrap(text, width).splitlines()
    assert " ".join(line.strip() for line in lines).split() == text.split()
    assert all(len(line) <= width for line in lines if name not in line)
    assert all(line.startswith("  ") and line[2] != " " for line in lines[1:])


def test_the_last_column_of_a_table_hangs_below_itself() -> None:
    text = "  passed      readable, duplicates, stale, companions, names, places, layers, config, shapes"
    first, second = wrap(text, 60).splitlines()
    assert first.startswith("  passed      readable, ") and len(first) <= 60
    assert second == " " * 14 + second.strip()


@pytest.mark.parametrize("text", ["", "short", "two\nlines", "x" * 500, "  indented"])
def test_what_fits_or_cannot_break_stays(text: str) -> None:
    assert wrap(text, 80) == text
    assert wrap(text + " " + text, None) == text + " " + text


def test_files_and_pipes_get_whole_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert columns(sys.stderr) is None
    say("error: " + "word " * 100)
    assert capsys.readouterr().err == "error: " + "word " * 100 + "\n"
    assert paint("PROBLEM", "red", sys.stdout) == "PROBLEM"


@pytest.mark.parametrize(("head", "code"), [("error", "1;31"), ("warning", "33"), ("note", "36")])
def test_the_first_word_has_a_colour(head: str, code: str, terminal: Terminal) -> None:
    with contextlib.redirect_stderr(terminal):
        say(f"{head}: {'word ' * 20}: end")
    first, second = terminal.getvalue().splitlines()
    assert first.startswith(f"\x1b[{code}m{head}:\x1b[0m word") and second.startswith("  word")
    assert "\x1b" not in second


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_can_be_switched_off(
    name: str, value: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with contextlib.redirect_stderr(terminal):
        say("error: x")
    assert terminal.getvalue() == "error: x\n"
    monkeypatch.setenv("NO_COLOR", "")  # as good as unset, by no-color.org
    monkeypatch.setenv("TERM", "xterm")
    with contextlib.redirect_stderr(terminal):
        say("error: x")
    assert terminal.getvalue().endswith("\x1b[0m x\n")
