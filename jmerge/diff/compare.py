"""`compare`: the values of all tensors that two models have in common, each byte read once, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from jmerge.ckpt.open import Checkpoint
from jmerge.ckpt.remote import CONNECTIONS, RemoteSource
from jmerge.ckpt.source import Source
from jmerge.diff.beside import Beside, compare_beside
from jmerge.diff.pairs import Lone, Pair, pair_up
from jmerge.diff.sums import Gauge, Sums, add_up
from jmerge.dtypes import BITS
from jmerge.engine.local import Files, aligned_buffer
from jmerge.engine.threads import work_through
from jmerge.errors import Problem

PIECE = 1 << 20  # elements that a thread reads at a time of either model
THREADS = min(8, os.cpu_count() or 1)


class Compared(NamedTuple):
    """A tensor of both models and what was found of it."""

    pair: Pair
    sums: Sums


@dataclass(frozen=True)
class Difference:
    """Two models, compared.

    Attributes:
      a, b: the models.
      tensors: those in both, in the order of A.
      unlike: those in both whose values cannot be compared.
      only_a, only_b: those that the other model lacks.
      beside: what differs in config.json and in the files beside the weights.
      problems: what makes the comparison worthless or a model broken; differences are none.
    """

    a: Checkpoint
    b: Checkpoint
    tensors: tuple[Compared, ...]
    unlike: tuple[Pair, ...]
    only_a: tuple[Lone, ...]
    only_b: tuple[Lone, ...]
    beside: Beside
    problems: tuple[Problem, ...]

    @property
    def same_weights(self) -> bool:
        """Whether both models have the same tensors, byte for byte."""
        return (
            not (self.unlike or self.only_a or self.only_b)
            and bool(self.tensors)
            and all(each.sums.identical for each in self.tensors)
        )

    @property
    def total(self) -> Sums:
        """Over all tensors."""
        return add_up(each.sums for each in self.tensors)


def compare(
    a: Checkpoint, b: Checkpoint, *, tell: Callable[[int, int], None] = lambda done, total: None
) -> Difference:
    """How `b` differs from `a`: tensor by tensor, in config.json, and in the files beside the weights.

    tell: called with the elements of every piece that is then compared, and those of all, by any thread.

    Raises:
      CheckpointError, RunError: a file cannot be read although its header could.
    """
    pairs = pair_up(a, b)
    beside = compare_beside(a, b)
    able = [pair for pair in pairs.both if not pair.why_not]
    tensors = tuple(
        Compared(pair, sums)
        for pair, sums in zip(able, _read_all(able, a.source, b.source, tell), strict=True)
    )
    return Difference(
        a=a,
        b=b,
        tensors=tensors,
        unlike=tuple(pair for pair in pairs.both if pair.why_not),
        only_a=pairs.only_a,
        only_b=pairs.only_b,
        beside=beside,
        problems=tuple(_problems(a, b, tensors)),
    )


def _problems(a: Checkpoint, b: Checkpoint, tensors: tuple[Compared, ...]) -> Iterator[Problem]:
    if not tensors:
        names = " and ".join(next(iter(each), "no tensor") for each in (a, b))
        yield Problem(
            f"A and B have no tensor in common to compare (first ones: {names})", code="JM129"
        )
    for pair, sums in tensors:
        if pair.place.buffer:  # masks are made of infinity
            continue
        for model, name, count in (
            (a, pair.name_a, sums.nonfinite_a),
            (b, pair.name_b, sums.nonfinite_b),
        ):
            if count:
                message = f"{count:,} of {sums.elements:,} elements are NaN or infinite"
                yield Problem(message, name, str(model.path), code="JM126")


class _Piece(NamedTuple):
    number: int  # of its pair
    start: int  # element
    stop: int


def _read_all(
    pairs: list[Pair], source_a: Source, source_b: Source, tell: Callable[[int, int], None]
) -> list[Sums]:
    """The sums of every pair, by several threads that share one list of pieces."""
    remote = isinstance(source_a, RemoteSource) or isinstance(source_b, RemoteSource)
    threads = CONNECTIONS if remote else THREADS
    total = sum(pair.a.spec.size for pair in pairs)
    found: list[dict[int, Sums]] = [{} for _ in pairs]
    files = Files()

    def comparer() -> Callable[[_Piece], Sums]:
        gauge, buffers = Gauge(), [aligned_buffer(width * PIECE) for width in _widths(pairs)]

        def work(piece: _Piece) -> Sums:
            number, start, stop = piece
            pair = pairs[number]
            raws = []
            sides = (source_a, pair.a), (source_b, pair.b)
            for (source, entry), buffer in zip(sides, buffers, strict=True):
                width = BITS[entry.spec.dtype] // 8
                raw = buffer[: width * (stop - start)]
                files.read_from(source, entry.file, entry.start + width * start, raw)
                raws.append(raw)
            dtypes = pair.a.spec.dtype, pair.b.spec.dtype
            return gauge.compare(raws[0], dtypes[0], raws[1], dtypes[1], start)

        return work

    def take(piece: _Piece, sums: Sums) -> None:
        found[piece.number][piece.start] = sums
        tell(piece.stop - piece.start, total)

    try:
        work_through(_pieces(pairs), comparer, take, threads=threads, name="jmerge-diff")
    finally:
        files.close()
    return [
        add_up(parts[start] for start in sorted(parts))._replace(identical=_identical(pair, parts))
        for pair, parts in zip(pairs, found, strict=True)
    ]


def _identical(pair: Pair, parts: dict[int, Sums]) -> bool:
    return pair.a.spec == pair.b.spec and all(part.identical for part in parts.values())


def _widths(pairs: list[Pair]) -> tuple[int, int]:
    """The most bytes of an element of A, and of B."""
    return (
        max((BITS[pair.a.spec.dtype] // 8 for pair in pairs), default=0),
        max((BITS[pair.b.spec.dtype] // 8 for pair in pairs), default=0),
    )


def _pieces(pairs: list[Pair]) -> Iterator[_Piece]:
    for number, pair in enumerate(pairs):
        size = pair.a.spec.size
        for start in range(0, size, PIECE):
            yield _Piece(number, start, min(start + PIECE, size))
