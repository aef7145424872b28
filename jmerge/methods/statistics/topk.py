"""The search for thresholds, exactly and piece by piece.

The number of a threshold is found digit by digit, from the highest: a pass counts the keys that begin with the digits so
far by their next one. A last pass, over the part where it lies, finds the position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.mesh import devices_of, mesh_of
from jmerge.methods.statistics.counts import (
    AnyCount,
    Count,
    add,
    as_count,
    choose,
    less,
    minimum,
    narrow,
    reach,
    stack_counts,
    subtract,
    times,
    total,
)
from jmerge.methods.statistics.fold import (
    NONE,
    Again,
    Extent,
    Found,
    Hyperparameters,
    Place,
    Statistic,
)
from jmerge.methods.statistics.thresholds import Threshold, make_threshold

# Bits of a digit by platform, and elsewhere: a wide one takes fewer passes, but its counters have to fit a fast memory.
DIGITS, DIGIT = {"cpu": 16}, 11
COUNTERS = 1 << 18  # of a threshold, about, in all groups of pieces
MOST = 1 << 31  # keys that are counted at a time: a counter has 32 bits
ROW = 1 << 8  # elements of a vector among which a position is looked for in the end

Counts = Callable[[Hyperparameters, int, Found], Sequence[Sequence[AnyCount]]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Search:
    """Thresholds [n] under way. Counts are in one word where the scope has fewer than 2^32 elements."""

    wanted: Count  # how many each keeps, at most all
    prefix: jax.Array  # unsigned: the digits so far
    above: Count  # keys above all that begin with them
    left: jax.Array  # uint32: bits that follow them
    counted: Count  # [groups, n, digits]: keys that begin so by their next digit, the largest first
    rank: Count  # of the last tie that is kept, among those in pieces yet to come
    group: jax.Array  # uint32: the group of pieces that it lies in, or `NONE`
    last: Count  # its position
    pieces: jax.Array  # uint32: to a group
    of_term: tuple[int, ...] = field(metadata={"static": True})  # of which terms they are


@dataclass(frozen=True, kw_only=True)
class TopK(Statistic):
    """The `Threshold` [n] that keeps so many of some keys, the largest first; those of the first term come first."""

    # Of hyperparameters, elements of the scope and statistics so far: how many to keep, for each term a list.
    counts: Counts
    uses_bits: bool = False  # whether the method uses the threshold itself, not only what it keeps

    def passes(self, dtype: np.dtype[Any]) -> int:
        """How many there are: one for each digit, and one for positions."""
        return -(-8 * dtype.itemsize // _digit()) + 1

    @property
    def narrows(self) -> bool:
        """Positions are looked for where they lie."""
        return True

    def known(
        self, extent: Extent, hyperparameters: Hyperparameters, found: Found
    ) -> Threshold | None:
        """The thresholds that keep nothing, or everything, whatever the keys are."""
        try:
            rows = self.counts(hyperparameters, extent.size, found)
        except KeyError:  # they follow from what is yet to be found
            return None
        counts = [count for row in rows for count in row]
        word = np.dtype(f"u{extent.dtype.itemsize}")
        cuts = []
        for count in counts:
            if not isinstance(count, int) or (count > 0 and self.uses_bits and extent.size):
                return None
            if 0 < count < extent.size:
                return None
            cuts.append((0, extent.size) if count > 0 else (int(np.iinfo(word).max), 0))
        return make_threshold([bits for bits, _ in cuts], [last for _, last in cuts], word)

    def init(self, extent: Extent, hyperparameters: Hyperparameters, found: Found) -> Search:
        """The search before the first pass."""
        rows = self.counts(hyperparameters, extent.size, found)
        words: Callable[[Count], Count] = narrow if extent.size < 1 << 32 else as_count
        wanted = stack_counts([minimum(count, extent.size) for row in rows for count in row])
        number = wanted.low.size
        none = words(stack_counts([0] * number))
        pieces = max(extent.pieces, len(extent.sizes), 1)
        groups = max(COUNTERS >> _digit(), 1) if pieces > 1 else 1  # every number takes a program
        counted = jnp.zeros((groups, number, 1 << _digit()), jnp.uint32)
        return Search(
            wanted=words(wanted),
            prefix=jnp.zeros(number, f"u{extent.dtype.itemsize}"),
            above=none,
            left=jnp.uint32(8 * extent.dtype.itemsize),
            counted=words(Count(counted, counted)),
            rank=none,
            group=jnp.full(number, np.uint32(NONE)),
            last=words(stack_counts([extent.size] * number)),
            of_term=tuple(term for term, row in enumerate(rows) for _ in row),
            pieces=jnp.uint32(-(-pieces // groups)),
        )

    def update(
        self, state: Search, terms: Sequence[jax.Array], place: Place, *, last: bool = True
    ) -> Search:
        """The search after one more piece; in the last pass, only after the pieces before it."""
        if not state.of_term or not terms[0].size:
            return state
        # once for all thresholds, not anew for each
        terms = jax.lax.optimization_barrier(list(terms))
        valid = None
        if place.valid is not None:
            lanes = jnp.arange(terms[0].size, dtype=jnp.uint32)
            valid = (lanes < place.valid).reshape(terms[0].shape)
        group = jnp.asarray(place.piece, jnp.uint32) // state.pieces
        if last:
            return _locate(state, terms, group, place.start, valid)
        found = [_digits_of(terms[term], state, i, valid) for i, term in enumerate(state.of_term)]
        own = jax.tree.map(lambda *words: jnp.stack(words), *found)
        # to all groups, of which the others get zeros: XLA takes three times as long to put a part in its place
        groups = jnp.arange(len(state.counted.low), dtype=jnp.uint32)
        mine = (groups == group).reshape(-1, 1, 1)
        added = jax.tree.map(lambda word: jnp.where(mine, word, 0), own)
        return replace(state, counted=add(state.counted, added))

    @staticmethod
    def join(states: Sequence[Search]) -> Search:
        """One search of those of several devices; the last pass has to be on one."""
        counted = states[0].counted
        for each in states[1:]:
            counted = add(counted, each.counted)
        return replace(states[0], counted=counted)

    @staticmethod
    def finish(state: Search, *, last: bool = True) -> Threshold | Again:
        """The thresholds after the last pass, before that the search with one more digit."""
        if last:
            high, low = state.last
            some = state.wanted.low != 0
            if state.wanted.high is not None:
                some = some | (state.wanted.high != 0)
            return Threshold(
                jnp.where(some, state.prefix, ~jnp.zeros_like(state.prefix)),
                jnp.zeros_like(low) if high is None else jnp.where(some, high, 0),
                jnp.where(some, low, 0),
            )
        one = Count(None, jnp.ones_like(state.wanted.low))
        rank = subtract(choose(less(state.wanted, one), one, state.wanted), state.above)
        by_digit = total(jax.tree.map(lambda word: jnp.moveaxis(word, 0, -1), state.counted))
        place, beyond = reach(by_digit, rank)
        rank = subtract(rank, beyond)
        bits = _next_bits(state)
        digit = (jnp.uint32(1) << bits) - 1 - place.astype(jnp.uint32)
        # of the keys with all digits so far, those of each group
        index = place[None, :, None]
        ties = jax.tree.map(lambda word: _at(word, index).T, state.counted)
        group, skipped = reach(ties, rank)
        some = less(rank, jax.tree.map(lambda word: _at(word, place[:, None]), by_digit))
        group = jnp.where(some, group.astype(jnp.uint32), jnp.uint32(NONE))
        word = state.prefix.dtype
        after = replace(
            state,
            prefix=(state.prefix << bits.astype(word)) | digit.astype(word),
            above=add(state.above, beyond),
            left=state.left - bits,
            counted=jax.tree.map(jnp.zeros_like, state.counted),
            rank=subtract(rank, skipped),
            group=group,
        )
        return Again(after, group)


def _at(array: jax.Array, index: jax.Array) -> jax.Array:
    """What lies at an index [...] of the last axis."""
    return jnp.take_along_axis(array, index, axis=-1).squeeze(-1)


def _locate(
    state: Search,
    terms: Sequence[jax.Array],
    group: jax.Array,
    start: jax.Array,
    valid: jax.Array | None,
) -> Search:
    """The search after a piece in which the last ties that are kept may lie."""
    masks = [terms[term] == state.prefix[i] for i, term in enumerate(state.of_term)]
    if valid is not None:
        masks = [mask & valid for mask in masks]
    one = Count(None, jnp.ones_like(state.rank.low))
    looked = (state.group == group) & ~less(state.rank, one)
    place, ties = nth_true(masks, state.rank)
    here = looked & ~less(ties, state.rank)
    first = Count(None if place.high is None else start[0], start[1])
    left = choose(here, subtract(one, one), subtract(state.rank, ties))
    return replace(
        state,
        rank=choose(looked, left, state.rank),
        last=choose(here, add(first, place), state.last),
    )


def nth_true(masks: Sequence[jax.Array], rank: Count) -> tuple[Count, Count]:
    """The flat position [n] of the rank-th [n] true element of each of n masks of one shape, counted from one, and how
    many there are; any position where there are fewer. Both in as many words as rank."""
    several, shape = devices_of(mesh_of(masks)) > 1, masks[0].shape
    if not several or not shape:
        shape = (math.prod(shape),)
        masks = [mask.reshape(shape) for mask in masks]
    position, number = subtract(rank, rank), None
    while True:
        if len(shape) == 1 and shape[0] > ROW and not several:
            shape = (-(-shape[0] // ROW), ROW)
            more = shape[0] * ROW - masks[0].size
            masks = [jnp.pad(mask, (0, more)).reshape(shape) for mask in masks]
        found = [_by_first_axis(mask, rank.high is not None) for mask in masks]
        counts = jax.tree.map(lambda *words: jnp.stack(words), *found)
        number = total(counts) if number is None else number
        index, before = reach(counts, rank)
        rank = subtract(rank, before)
        moved = times(index.astype(jnp.uint32), math.prod(shape[1:]))
        position = add(position, moved if rank.high is not None else narrow(moved))
        if len(shape) == 1:
            return position, number
        shape = shape[1:]
        if several:  # cut out, an axis that lies on several devices would be brought together
            chosen = [jnp.arange(len(mask)) == index[i] for i, mask in enumerate(masks)]
            rest = [1] * len(shape)
            masks = [
                jnp.any(mask & own.reshape(-1, *rest), axis=0)
                for mask, own in zip(masks, chosen, strict=True)
            ]
        else:
            masks = [
                jax.lax.dynamic_index_in_dim(mask, index[i], keepdims=False)
                for i, mask in enumerate(masks)
            ]


def _by_first_axis(mask: jax.Array, wide: bool) -> Count:
    """How many are true at each index of the first axis; `wide`: in two words."""
    rows = mask.astype(jnp.uint32) if mask.ndim == 1 else jnp.sum(mask, -1, dtype=jnp.uint32)
    if not wide or rows.ndim == 1:
        rows = jnp.sum(rows, axis=tuple(range(1, rows.ndim)), dtype=jnp.uint32)
        return Count(jnp.zeros_like(rows) if wide else None, rows)
    rows = rows.reshape(rows.shape[0], -1)
    return total(Count(jnp.zeros_like(rows), rows))


def _digits_of(keys: jax.Array, state: Search, number: int, valid: jax.Array | None) -> Count:
    """How many of the keys that begin with a prefix have each next digit, the largest digit first."""
    digits, wide = state.counted.low.shape[-1], state.counted.high is not None
    if keys.size >= MOST:
        rest = math.prod(keys.shape[1:])
        step = max(MOST // 2 // max(rest, 1), 1)
        parts = [keys[i : i + step] for i in range(0, keys.shape[0], step)]
        if len(parts) == 1:
            return _digits_of(keys[0], state, number, None if valid is None else valid[0])
        found = Count(
            jnp.zeros(digits, jnp.uint32) if wide else None, jnp.zeros(digits, jnp.uint32)
        )
        for i, part in enumerate(parts):
            own = None if valid is None else valid[i * step : (i + 1) * step]
            found = add(found, _digits_of(part, state, number, own))
        return found
    bits = _next_bits(state)
    begins = keys >> (state.left - bits).astype(keys.dtype)
    mask = (jnp.uint32(1) << bits) - 1
    index = ~begins.astype(jnp.uint32) & mask
    counts = (begins >> bits.astype(keys.dtype)) == state.prefix[number]
    if valid is not None:
        counts = counts & valid
    none = jnp.zeros(digits, jnp.uint32)
    low = none.at[jnp.where(counts, index, digits)].add(1, mode="drop")
    return Count(none if wide else None, low)


def _next_bits(state: Search) -> jax.Array:
    """How many bits the next digit has."""
    return jnp.minimum(state.left, jnp.uint32(_digit()))


def _digit() -> int:
    return DIGITS.get(jax.default_backend(), DIGIT)
