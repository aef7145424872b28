"""One host's part of a merge, and what the parts of all amount to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from jmerge.ckpt.journal import Block, joined_crc32
from jmerge.ckpt.shards import OutFile
from jmerge.ckpt.writer import OutputFolder
from jmerge.ckpt.written import GuestFolder
from jmerge.dtypes import TensorSpec
from jmerge.engine.events import Event, Listener, Wrote, WroteElsewhere
from jmerge.engine.hosts import Hosts
from jmerge.engine.partition import shared_files, shares, subset
from jmerge.engine.run import Outcome
from jmerge.engine.schedule import Schedule


class Share:
    """What this host makes; all of it where there is no other.

    files: of the output; folder: the output, which host 0 has made; guest: how the others see it, None on host 0.
    """

    def __init__(
        self,
        files: Sequence[OutFile],
        hosts: Hosts,
        folder: OutputFolder,
        guest: GuestFolder | None,
    ) -> None:
        self._files = files
        self._hosts = hosts
        self._folder = folder
        self._guest = guest
        self._own: Collection[str] | None = None  # tensors, once they are shared out

    def __call__(self, schedule: Schedule) -> Schedule:
        """The part of a schedule that this host makes; the first time, what is left is shared out and files opened."""
        if self._hosts.count == 1:
            return schedule
        if self._own is None:
            self._own = self._share_out(schedule)
        pieces = {
            turn.work.step.name: turn.pieces
            for turn in schedule.turns
            if turn.what.combines and turn.work.step.name in self._own
        }
        return subset(schedule, pieces)

    def part_of(self, blocks: Iterable[Block]) -> list[Block]:
        """Those of some blocks that are of this host's tensors."""
        if self._own is None:
            return list(blocks)
        return [block for block in blocks if block.tensor in self._own]

    def _share_out(self, schedule: Schedule) -> Collection[str]:
        parts = shares(schedule, self._files, self._hosts.count)
        own, shared = parts[self._hosts.number], shared_files(self._files, parts)
        guest = self._guest
        word = self._hosts.hear(None if guest else self._folder.admit(self._hosts.count, shared))
        if guest is not None:
            mine = [file for file in self._files if file.starts.keys() & own]
            guest.open(word, self._folder.identity["plan"], mine, shared)
        return frozenset(own)


class Note:
    """A listener that puts what is written in the journal, and tells the others of what other hosts write."""

    def __init__(
        self, folder: OutputFolder | GuestFolder, hosts: Hosts, listeners: Sequence[Listener]
    ) -> None:
        self._folder = folder
        self._hosts = hosts
        self._listeners = listeners
        self._elsewhere = 0  # bytes that the listeners know of

    def __call__(self, event: Event) -> None:
        """Note a block that was written."""
        if isinstance(event, Wrote):
            self._folder.note(event.block)
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
    made: Sequence[Sequence[Sequence[Any]]],
    written: Iterable[Block],
) -> Outcome:
    """What is known of the tensors `outputs` from the blocks of every host's own tensors, and of `written` those of
    tensors that none had to make.

    Raises:
      RuntimeError: they do not make up a tensor, each byte of it once; then a share was left out or made twice.
    """
    blocks: dict[str, list[Block]] = {name: [] for name in outputs}
    for part in made:
        for block in part:
            blocks[block[0]].append(Block(*block))
    shared_out = {name for name, found in blocks.items() if found}
    for block in written:
        if block.tensor not in shared_out:
            blocks[block.tensor].append(block)
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
