"""One host's part of a merge, and what the parts of all amount to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jmerge.ckpt.dtypes import TensorSpec
from jmerge.ckpt.guest import GuestFolder
from jmerge.ckpt.journal import Block, joined_crc32
from jmerge.ckpt.shards import OutFile
from jmerge.ckpt.writer import OutputFolder
from jmerge.engine.events import Event, Listener, Wrote, WroteElsewhere
from jmerge.engine.hosts import Hosts
from jmerge.engine.run import Outcome
from jmerge.engine.schedule import Schedule
from jmerge.engine.shares import shared_files, shares
from jmerge.engine.subset import subset


def own_share(
    schedule: Schedule,
    files: Sequence[OutFile],
    hosts: Hosts,
    folder: OutputFolder,
    guest: GuestFolder | None,
) -> Schedule:
    """What this host makes of `schedule`; the files for it are opened.

    folder: the output, which host 0 has made; guest: how the others see it, None on host 0.
    """
    parts = shares(schedule, files, hosts.count)
    own, shared = parts[hosts.number], shared_files(files, parts)
    word = hosts.hear(None if guest else folder.admit(hosts.count, shared))
    if guest is not None:
        mine = [file for file in files if file.starts.keys() & own]
        guest.open(word, folder.identity["plan"], mine, shared)
    return subset(schedule, own)


class Note:
    """A listener that puts what is written in the journal, and tells the others of what other hosts write."""

    def __init__(
        self, folder: OutputFolder | GuestFolder, hosts: Hosts, listeners: Sequence[Listener]
    ) -> None:
        self.blocks: list[Block] = []  # written by this host
        self._folder = folder
        self._hosts = hosts
        self._listeners = listeners
        self._elsewhere = 0  # bytes that the listeners know of

    def __call__(self, event: Event) -> None:
        if isinstance(event, Wrote):
            self._folder.note(event.block)
            self.blocks.append(event.block)
            self._hosts.note_written(event.nbytes)
            self.tell_of_others()

    def tell_of_others(self) -> None:
        """Tell the listeners what other hosts wrote since this was last asked."""
        before, self._elsewhere = self._elsewhere, self._hosts.written_elsewhere()
        if self._elsewhere > before:
            for listener in self._listeners:
                listener(WroteElsewhere(self._elsewhere - before))


def put_together(
    outputs: Mapping[str, TensorSpec],
    written: Iterable[Sequence[Any]],
    kept: Iterable[Sequence[Block]],
) -> Outcome:
    """What is known of the tensors `outputs` from the blocks that every host wrote and those kept of an interrupted run.

    Raises:
      RuntimeError: they do not make up a tensor, each byte of it once; then a share was left out or made twice.
    """
    blocks: dict[str, list[Block]] = {name: [] for name in outputs}
    for part in (*written, *kept):
        for block in part:
            blocks[block[0]].append(Block(*block))
    outcome = Outcome({}, {})
    for name, spec in outputs.items():
        end = 0
        for block in sorted(blocks[name], key=lambda block: block.start):
            if block.start != end:
                raise RuntimeError(f"{name}: byte {min(block.start, end)} was not written once")
            end = block.stop
        if end != spec.nbytes:
            raise RuntimeError(f"{name}: {end} of {spec.nbytes} bytes were written")
        outcome.crc32[name] = joined_crc32(blocks[name])
        if count := sum(block.nonfinite for block in blocks[name]):
            outcome.nonfinite[name] = count
    return outcome
