"""`jmerge quickstart`: what it writes is the repository's, merges and verifies; nothing is overwritten."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jmerge import cli, quickstart

ROOT = Path(__file__).resolve().parent.parent
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_command_that_it_prints_merges(
    place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what comes out verifies. It is the README's command."""
    assert cli.main(["quickstart"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("wrote configs/quickstart.yml and its models (base, prose, code; 5.")
    folder, merge = second.removeprefix("next: cd ").split(" && ")
    assert f"\n{merge}\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(place / folder)
    program, *words = merge.split()
    assert program == "jmerge" and cli.main(words) == 0
    assert cli.main(["verify", "--deep", words[-1]]) == 0


def test_the_files_are_those_of_the_repository(place: Path) -> None:
    """The recipe and its models, whole, and not the texts that they were measured on."""
    assert cli.main(["quickstart", "here"]) == 0
    found, configs = content(place / "here"), content(ROOT / "configs")
    wanted = ("quickstart.yml", "quickstart/base/", "quickstart/prose/", "quickstart/code/")
    assert found == {f"configs/{name}": x for name, x in configs.items() if name.startswith(wanted)}
    assert "configs/quickstart/code/model.safetensors" in found


@pytest.mark.parametrize("words", [["a b"], ["-o", "a b"], ["--out", "a b"], ["--out=a b"]])
def test_the_folder_may_be_a_flag(words: list[str], place: Path, capsys: Capture) -> None:
    """One that is there and empty is taken; a name with a blank is quoted."""
    (place / "a b").mkdir()
    assert cli.main(["quickstart", *words]) == 0
    assert (place / "a b" / "configs" / "quickstart.yml").is_file()
    assert "next: cd 'a b' && jmerge " in capsys.readouterr().out


def test_quiet_prints_nothing(capsys: Capture) -> None:
    assert cli.main(["quickstart", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("taken", ["mine/notes.txt", "mine"])
def test_what_is_there_is_left_alone(taken: str, place: Path, capsys: Capture) -> None:
    """A folder that is not empty, and a file."""
    (place / taken).parent.mkdir(exist_ok=True)
    (place / taken).write_text("mine")
    assert cli.main(["quickstart", "mine"]) == 2
    told = "error: mine exists and is not an empty folder; choose another folder [JM601]\n"
    assert capsys.readouterr().err == told
    assert content(place) == {taken: b"mine"}


def test_a_word_too_many_is_refused(place: Path, capsys: Capture) -> None:
    assert cli.main(["quickstart", "a", "b"]) == 2
    assert "'b': unexpected argument" in capsys.readouterr().err
    assert content(place) == {}


def test_a_full_disk_leaves_nothing(
    place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the same command works once there is room."""
    copy = shutil.copyfile

    def full(source: Path, target: Path) -> None:
        if target.parent.name == "prose":
            raise OSError(28, "No space left on device")
        copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        assert cli.main(["quickstart", "here"]) == 3
    assert capsys.readouterr().err.startswith("error: here: ")
    assert content(place) == {}
    assert cli.main(["quickstart", "here"]) == 0


def test_a_wheel_brings_its_own(
    place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package's configs/ comes first, then the one beside it; without both, one line says so."""
    package = place / "site-packages" / "jmerge"
    monkeypatch.setattr(quickstart, "PACKAGE", package)
    assert cli.main(["quickstart", "here"]) == 2
    assert "has lost configs/quickstart.yml; install jmerge again" in capsys.readouterr().err
    shutil.copytree(ROOT / "configs", package.parent / "configs")
    assert quickstart.home() == package.parent
    shutil.copytree(ROOT / "configs", package / "configs")
    assert quickstart.home() == package
