"""tools/sweeprecord.py keeps what a sweep found, whole, and shows it by outcome."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sweeprecord

Line = dict[str, Any]


def tries(name: str, **ends: tuple[str, str]) -> list[Line]:
    """The lines of a type that is right but for `ends`: status and detail by kind of try."""
    lines: list[Line] = []
    for kind in ("build", "sound", *sweeprecord.TRIES):
        status, detail = ends.get(kind, ("right", ""))
        lines.append({"type": name, "kind": kind, "status": status, "detail": detail})
        if kind == "build" and status != "right":
            break
    return lines


def kept(out: Path, *groups: list[Line], names: str) -> str:
    """What is kept of a sweep with these lines."""
    lines = [line for group in groups for line in group]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (out / "results.jsonl").write_text(text, encoding="utf-8")
    return sweeprecord.write(out, names.split(), "5.0")


COUNTS = "x: modules.x.slices: config.json's 'n' has 4 entries, as layers 1, 2; take it out\nmore"


def test_types_are_shown_by_how_they_ended(tmp_path: Path) -> None:
    text = kept(
        tmp_path,
        tries("a"),
        tries("b", stack=("refused", COUNTS)),
        tries("c", stack=("refused", COUNTS.replace("'n' has 4", "'other.key' has 12"))),
        tries("d", stack=("none", "no layers that slices could name")),
        *(tries(name, build=("none", "AModel: ValueError: no timm. Or so.")) for name in "xyz"),
        tries("e", build=("none", "AModel: ValueError: width (3) must be even. Or not.")),
        tries("f", linear=("wrong", "x [3] 1 of 2"), ties=("crashed", "KeyError")),
        names="a b c d e f x y z",
    )
    page = sweeprecord.markdown(text)
    assert "transformers 5.0" in page and "of 9 types, 5 can be built" in page
    assert "| `linear` | 4 | 0 | 1 |\n| `slerp` | 5 | 0 | 0 |\n| `ties` | 4 | 0 | 1 |\n" in page
    assert "| a stack of layers | 2 | 3 | 0 |\n" in page
    assert "Right in all: `a`.\n" in page
    shared = "config.json's ... has N entries, as layers N"
    assert f"- a stack of layers refused: {shared} (2): `b`, `c`\n" in page
    assert "layers not possible: no layers that slices could name (1): `d`\n" in page
    assert "- `linear` wrong: x ... N of N; `ties` crashed: KeyError (1): `f`\n" in page
    rare = "- for other reasons, which `tools/sweep.jsonl` has (1): `e`\n\n"
    assert page.endswith(f"\n- no timm (3): `x`, `y`, `z`\n{rare}")
    assert '"e", "build": "not possible: width (3) must be even"' in text


def test_the_last_result_counts(tmp_path: Path) -> None:
    text = kept(tmp_path, tries("a", slerp=("wrong", "x")), tries("a"), names="a")
    assert "Right in all: `a`.\n" in sweeprecord.markdown(text)


@pytest.mark.parametrize("last", [0, 3, 5])
def test_a_sweep_that_is_not_finished_is_not_kept(last: int, tmp_path: Path) -> None:
    """No type is left out, and none of its tries."""
    with pytest.raises(ValueError, match="1 types are not tried, such as b"):
        kept(tmp_path, tries("a"), tries("b")[:last], names="a b")


def test_what_is_kept_has_every_type_once() -> None:
    first, *lines = map(json.loads, sweeprecord.RESULTS.read_text(encoding="utf-8").splitlines())
    assert first.keys() == {"day", "jmerge", "transformers"}
    names = [line["type"] for line in lines]
    assert names == sorted(set(names)) and len(names) > 400
