"""A work folder in which several processes write: who may, how, and what of it an interrupted run leaves."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from jmerge.ckpt.journal import Block, read_journal
from jmerge.ckpt.shards import plan_files
from jmerge.ckpt.writer import JOURNAL, LEDGER, OutputFolder
from jmerge.ckpt.written import GuestFolder, journal_of, journals_of_guests
from jmerge.dtypes import TensorSpec
from jmerge.errors import RunError

SPECS = {name: TensorSpec("U8", (100,)) for name in "abcd"}
FILES = plan_files(SPECS, 200)
DATA = {name: bytes(range(i, i + 100)) for i, name in enumerate(SPECS)}
IDENTITY = {"plan": "p", "jmerge": "test"}


@pytest.fixture
def host0(tmp_path: Path) -> Iterator[OutputFolder]:
    """The folder as host 0 has it."""
    with OutputFolder(tmp_path / "out", IDENTITY, False) as folder:
        yield folder


def put(folder: OutputFolder | GuestFolder, name: str) -> Block:
    block = Block(name, 0, 100, zlib.crc32(DATA[name]))
    folder.write(name, 0, memoryview(DATA[name]))
    folder.note(block)
    return block


def guest_of(host0: OutputFolder, number: int, word: str) -> GuestFolder:
    guest = GuestFolder(host0.work, number)
    guest.open(word, "p", FILES, FILES[:1])
    return guest


def test_two_write_one_folder(host0: OutputFolder, tmp_path: Path) -> None:
    host0.create(FILES)
    word = host0.admit(2, FILES[:1])
    with guest_of(host0, 1, word) as guest:
        put(guest, "b")
        put(host0, "a")
        put(guest, "d")
        put(host0, "c")
        guest.finish()
    assert set(host0.sizes()) == {file.name for file in FILES}
    host0.write_text(LEDGER, json.dumps(IDENTITY | {"files": host0.sizes()}))
    host0.publish()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        LEDGER,
        *(file.name for file in FILES),
    }
    for file in FILES:
        found = (tmp_path / "out" / file.name).read_bytes()
        assert found == file.header + b"".join(DATA[name] for name in file.starts)


def test_every_journal_is_read_again(tmp_path: Path) -> None:
    with pytest.raises(RunError), OutputFolder(tmp_path / "out", IDENTITY, False) as folder:
        folder.create(FILES)
        word = folder.admit(3, ())
        made = [put(folder, "a")]
        for number, name in ((1, "d"), (2, "b")):
            with guest_of(folder, number, word) as guest:
                made.append(put(guest, name))
        torn = folder.work / journal_of(2)
        torn.write_bytes(torn.read_bytes() + b'["c", 0, 1')
        raise RunError("a host died")
    for hosts in (1, 2):  # what is left once all is in one journal, too
        with pytest.raises(RunError), OutputFolder(tmp_path / "out", IDENTITY, False) as folder:
            assert folder.resumed and len(journals_of_guests(folder.work)) == 2 * (hosts == 1)
            assert sorted(folder.create(FILES)) == sorted(made)
            assert journals_of_guests(folder.work) == []
            raise RunError("again")


def test_only_the_folder_of_host_0_will_do(host0: OutputFolder, tmp_path: Path) -> None:
    host0.create(FILES)
    before = host0.admit(2, ())
    word = host0.admit(2, ())
    line = "is not the folder that host 0 made; --out must be on a file system that all hosts share"
    for folder, number, said in (
        (tmp_path / "other", 1, word),
        (host0.work, 1, before),
        (host0.work, 2, word),
    ):
        with pytest.raises(RunError, match=line):
            GuestFolder(folder, number).open(said, "p", FILES, ())
    guest_of(host0, 1, word).close()


@pytest.mark.skipif(not hasattr(os, "O_DSYNC"), reason="no O_DSYNC here")
def test_shared_files_are_written_byte_for_byte(
    host0: OutputFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: dict[int, tuple[str, int]] = {}
    written: list[tuple[str, bool]] = []
    real_open, real_write = os.open, os.pwrite

    def open_(path: str | Path, flags: int, *mode: int) -> int:
        descriptor = real_open(path, flags, *mode)
        opened[descriptor] = Path(path).name, flags
        return descriptor

    def write(descriptor: int, data: memoryview, position: int) -> int:
        name, flags = opened[descriptor]
        written.append((name, flags & os.O_DSYNC == os.O_DSYNC))
        return real_write(descriptor, data, position)

    monkeypatch.setattr(os, "open", open_)
    host0.create(FILES)
    word = host0.admit(2, FILES[:1])
    monkeypatch.setattr(os, "pwrite", write)
    with guest_of(host0, 1, word) as guest:
        put(guest, "a")
        put(host0, "b")
        put(guest, "c")
    assert written == [(FILES[0].name, True), (FILES[0].name, True), (FILES[1].name, False)]


def test_headers_are_on_the_disk_before_guests_come(
    host0: OutputFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    real = os.fsync

    def sync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        real(descriptor)

    host0.create(FILES)
    monkeypatch.setattr(os, "fsync", sync)
    host0.admit(2, ())
    assert {(host0.work / file.name).stat().st_ino for file in FILES} <= synced


def test_a_guest_takes_its_blocks_back(
    host0: OutputFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    host0.create(FILES)
    word = host0.admit(2, ())
    mine = put(host0, "a")

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    with guest_of(host0, 1, word) as guest:
        put(guest, "b")
        assert len(read_journal(host0.work / journal_of(1))[1]) == 1
        with monkeypatch.context() as patch, pytest.raises(RunError, match="I/O error"):
            patch.setattr(os, "fsync", fail)
            guest.finish()
    assert read_journal(host0.work / journal_of(1))[1] == []
    assert read_journal(host0.work / JOURNAL)[1] == [mine]
