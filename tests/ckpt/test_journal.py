"""The journal by itself: what is believed of a torn one, blocks that overlap, checksums put together."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from jmerge.ckpt.journal import (
    Block,
    Journal,
    joined_crc32,
    ledger_blocks,
    read_journal,
    verified,
)
from jmerge.ckpt.leftover import refusal

HEADER = {"plan": "p", "jmerge": "test"}
DATA = {"a": random.Random(0).randbytes(1000), "ü/b": bytes(50)}


def block(tensor: str, start: int, stop: int, nonfinite: int = 0) -> Block:
    """What is in `DATA` there."""
    return Block(tensor, start, stop, zlib.crc32(DATA[tensor][start:stop]), nonfinite)


BLOCKS = [block("a", 0, 400), block("ü/b", 0, 50, 3), block("a", 400, 1000)]


def write(path: Path) -> Path:
    journal = Journal(path, HEADER, BLOCKS[:1])
    for each in BLOCKS[1:]:
        journal.add(each)
    journal.close()
    return path


def read(tensor: str, start: int, stop: int) -> Iterator[bytes]:
    """`DATA` as a folder gives it."""
    data = DATA.get(tensor, b"")[start:stop]
    yield data[:7]
    yield data[7:]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_journal(write(tmp_path / "j")) == (HEADER, BLOCKS)
    assert [path.name for path in tmp_path.iterdir()] == ["j"]


def test_every_line_is_there_at_once(tmp_path: Path) -> None:
    """A kill loses nothing that `add` returned from."""
    journal = Journal(tmp_path / "j", HEADER)
    for number, each in enumerate(BLOCKS):
        assert read_journal(tmp_path / "j") == (HEADER, BLOCKS[:number])
        journal.add(each)
    journal.close()


def test_a_torn_end_is_ignored(tmp_path: Path) -> None:
    """Wherever it is torn, the whole lines before it count, and no other."""
    text = write(tmp_path / "j").read_bytes()
    for size in range(len(text)):
        (tmp_path / "j").write_bytes(text[:size])
        lines = text[:size].count(b"\n")
        wanted = (HEADER, BLOCKS[: lines - 1]) if lines else ({}, [])
        assert read_journal(tmp_path / "j") == wanted


@pytest.mark.parametrize(
    "torn",
    [b"", b"\x00\x00", b'["a", 0, 4', b'["a", 0, 4, 5]', b'{"a": 1}', b"\xff", b"7", b'["a"'],
)
def test_a_torn_line_in_the_middle_ends_trust(torn: bytes, tmp_path: Path) -> None:
    lines = write(tmp_path / "j").read_bytes().split(b"\n")
    lines[2] = torn
    (tmp_path / "j").write_bytes(b"\n".join(lines))
    assert read_journal(tmp_path / "j") == (HEADER, BLOCKS[:1])
    lines[0] = torn
    (tmp_path / "j").write_bytes(b"\n".join(lines))
    header, blocks = read_journal(tmp_path / "j")
    assert blocks == [] and "plan" not in header


def test_no_journal_says_nothing(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "j") == ({}, [])


def test_a_journal_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the new one is in its place, the old one counts."""
    write(tmp_path / "j")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError()))
        with pytest.raises(OSError):
            Journal(tmp_path / "j", HEADER)
    assert read_journal(tmp_path / "j") == (HEADER, BLOCKS)


def test_what_the_disk_refused_is_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", HEADER, BLOCKS)
    journal.forget()
    assert read_journal(tmp_path / "j") == (HEADER, [])
    journal.add(BLOCKS[0])
    journal.close()
    assert read_journal(tmp_path / "j") == (HEADER, BLOCKS[:1])


def test_only_what_is_there_is_believed() -> None:
    lies = [
        BLOCKS[0]._replace(crc32=BLOCKS[0].crc32 ^ 1),
        block("a", 0, 10)._replace(stop=11),
        Block("a", 990, 1010, zlib.crc32(DATA["a"][990:])),  # beyond the end
        Block("c", 0, 5, zlib.crc32(b"")),  # no such tensor
    ]
    assert sorted(verified(BLOCKS + lies, read)) == sorted(BLOCKS)


def test_of_blocks_that_overlap_the_later_counts() -> None:
    old, new = block("a", 0, 500), block("a", 400, 600)
    assert verified([old, new], read) == [new]
    assert verified([old, new._replace(crc32=0)], read) == [old]
    assert verified([old, old], read) == [old]
    assert verified([old, block("a", 500, 600)], read) == [old, block("a", 500, 600)]


def test_checksums_of_blocks_in_any_order() -> None:
    rng = random.Random(1)
    for _ in range(20):
        cuts = sorted({0, 1000, *rng.sample(range(1, 1000), 5)})
        blocks = [block("a", *pair) for pair in zip(cuts[:-1], cuts[1:], strict=True)]
        rng.shuffle(blocks)
        assert joined_crc32(blocks) == zlib.crc32(DATA["a"])
    assert joined_crc32([]) == zlib.crc32(b"")


def test_a_ledger_tells_of_whole_tensors() -> None:
    crc32 = f"{zlib.crc32(DATA['a']):08x}"
    entry = {"dtype": "BF16", "shape": [5, 100], "crc32": crc32}
    ledger = {"tensors": {"a": entry, "n": {**entry, "nonfinite": 2}}}
    assert ledger_blocks(ledger) == [
        block("a", 0, 1000),
        block("a", 0, 1000, 2)._replace(tensor="n"),
    ]


FULL = {
    "plan": "p",
    "jmerge": "1",
    "jaxlib": "2",
    "recipe": "r",
    "seed": 0,
    "shard_size": 5,
    "inputs": {"m/x": [1, "h", 9], "m/y": [1, "h", 9]},
    "platform": "Linux cpu",
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"plan": "q", "inputs": {"m/x": [1, "h", 9], "m/y": [2, "h", 9]}}, "m/y"),
        ({"inputs": {"m/x": [1, "h", 9], "m/y": [1, "h", 8]}}, "inputs have changed"),
        ({"plan": "q", "inputs": {"m/x": [1, "h", 9]}}, "m/y"),
        ({"plan": "q", "inputs": {}, "recipe": "s"}, "another recipe"),
        ({"plan": "q"}, "another recipe"),
        ({"plan": "q", "seed": 3}, "with seed=3; this run has seed=0"),
        (
            {"plan": "q", "seed": 3, "shard_size": 7, "inputs": {}},
            "with seed=3 shard_size=7; this run has seed=0 shard_size=5",
        ),
        ({"plan": "q", "seed": 3, "recipe": "s"}, "another recipe"),
        ({"jmerge": "0"}, "with jmerge 0; this run has 1"),
        ({"plan": "q", "jmerge": "0"}, "with jmerge 0"),
        ({"plan": "q", "recipe": "s", "jmerge": "0", "platform": "x"}, "another recipe"),
        ({"jaxlib": "3"}, "with jaxlib 3; this run has 2"),
        ({"platform": "Darwin"}, "with platform Darwin; this run has Linux cpu"),
    ],
)
def test_whose_work_can_be_gone_on_with(change: dict[str, object], words: str) -> None:
    message = refusal(FULL | change, FULL)
    assert (words in message) if words else (message == "")
    assert "\n" not in message


def test_what_a_journal_does_not_say_is_not_compared() -> None:
    """A ledger knows neither platform nor times."""
    assert refusal({"plan": "p", "jmerge": "1"}, FULL) == ""
    assert "another recipe" in refusal({"plan": "q", "jmerge": "1"}, FULL)
