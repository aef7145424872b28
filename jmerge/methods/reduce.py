"""Sums over a tensor that are the same bits however the tensor is cut.

The elements, in flat order and padded with zeros, are added in blocks of `BLOCK`: first 64 of them by a plain tree,
which keeps the loop over memory fast, then by a tree of halvings in which each value is a pair of floats
(the sum, and what rounding lost: Knuth's two-sum). The blocks are added by the same tree of pairs, whose shape
depends on the tensor's size alone. Pieces, devices and threads only decide who computes which block.
The plain part rounds six times, about as much error as the products being summed already carry.

Of a tensor that lies on several devices each device adds up an equal share of the blocks, or of the rows. Elements that
lie elsewhere are dealt out anew for that: a tensor of more than a few blocks moves once at
most and is not brought together on a device (BUILD.md, Trees, has the layouts for which XLA knows no such way).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from jmerge.methods.mesh import axis_to_deal, deal, devices_of, mesh_of
from jmerge.methods.xla import add_together, always, branch, rounded

BLOCK = 4096  # elements; pieces of a tensor start at multiples of it
ROWS = (
    4  # that are added at a time: from more streams than that XLA's loops on CPU do not vectorise
)
PLAIN = ROWS**3  # elements of a block that are added without pairs
TOGETHER = 6  # terms that are added in one loop: with more, XLA's loops on CPU do not vectorise
PARTS = 16  # of an axis that are added at a time


def block_pairs(
    terms: Sequence[jax.Array], beside: jax.Array | None = None, *, short: bool = False
) -> jax.Array:
    """The sum of every block of each of the terms [elements], whole blocks long -> pairs [sums, blocks, 2].

    beside: numbers that XLA does not know either; of a term that others are made with, it would make a copy.
    short: whether an element of a term takes few operations, so that all are added in one loop, see `add_together`.
    """
    return _pairs([term.reshape(-1, BLOCK) for term in terms], beside, short)


def add_blocks(pairs: jax.Array) -> jax.Array:
    """The totals [sums] of pairs [sums, blocks, 2]; a number of blocks that is no power of two is zero-padded."""
    blocks = pairs.shape[1]
    pairs = jnp.pad(pairs, ((0, 0), (0, padded_blocks(blocks) - blocks), (0, 0)))
    totals = _halve(pairs[..., 0], pairs[..., 1])
    return totals[..., 0] + totals[..., 1]


def block_tree(pairs: jax.Array) -> jax.Array:
    """The sum of pairs [sums, blocks, 2], blocks a power of two, as one pair: [sums, 1, 2]."""
    return _halve(pairs[..., 0], pairs[..., 1])[:, None]


def padded_blocks(blocks: int) -> int:
    """The power of two to which a number of blocks is padded."""
    return 1 << (max(blocks, 1) - 1).bit_length()


def total(terms: Sequence[jax.Array]) -> jax.Array:
    """The sums [sums] of whole arrays, all of one shape."""
    return add_blocks(total_pairs(terms))


def total_pairs(terms: Sequence[jax.Array], *, short: bool = False) -> jax.Array:
    """The sums of whole arrays, all of one shape, as pairs [sums, 1, 2]; short: as in `block_pairs`."""
    mesh = mesh_of(terms)
    add = _total if devices_of(mesh) == 1 else _total_compiled
    found: jax.Array = add(list(terms), mesh, short)
    return found


def along(terms: jax.Array, axis: int) -> jax.Array:
    """The sums of terms over one axis, which is kept with length one; a scalar is its own sum.

    The order of the additions depends on that axis alone, so that rows have the same sums in any company.
    """
    if terms.ndim == 0:
        return terms
    mesh = mesh_of([terms])
    add = _along if devices_of(mesh) == 1 else _along_compiled
    added: jax.Array = add(terms, axis % terms.ndim, mesh)
    return added


def along_rows(terms: jax.Array, *, last: bool) -> jax.Array:
    """The sums [rows] of terms [*shape] over each of their rows: vectors along the last axis, or where not `last` all but
    the first axis; a vector is one row."""
    axes = terms.ndim - 1 if last else 1
    rows, row = terms.shape[:axes], terms.shape[axes:]
    if terms.ndim < 2:
        rows, row = (), terms.shape
    return along(terms.reshape(math.prod(rows), math.prod(row)), 1)[:, 0]


def _total(terms: Sequence[jax.Array], mesh: AbstractMesh, short: bool) -> jax.Array:
    """The sums of whole arrays as pairs [sums, 1, 2]."""
    pairs = deal(_pairs([_blocks(term, mesh) for term in terms], None, short), mesh, None)
    parts = pairs.shape[1]
    blocks = -(-terms[0].size // (parts * BLOCK))  # of each part: what follows is padding
    pairs = pairs[:, :, :blocks].reshape(len(terms), parts * blocks, 2)
    missing = padded_blocks(parts * blocks) - parts * blocks
    return block_tree(jnp.pad(pairs, ((0, 0), (0, missing), (0, 0))))


def _along(terms: jax.Array, axis: int, mesh: AbstractMesh) -> jax.Array:
    others = [i for i in range(terms.ndim) if i != axis]
    dealt = axis_to_deal(terms.shape, others, devices_of(mesh)) if others else None
    sums = deal(terms, mesh, dealt)

    def pad(length: int) -> jax.Array:
        missing = [(0, 0)] * sums.ndim
        missing[axis] = (0, length - sums.shape[axis])
        return jnp.pad(sums, missing)

    if sums.shape[axis] == 0:
        sums = pad(1)
    while sums.shape[axis] > 1:
        parts = jnp.split(pad(-(-sums.shape[axis] // PARTS) * PARTS), PARTS, axis=axis)
        while len(parts) > 1:
            parts = [parts[i] + parts[i + 1] for i in range(0, len(parts), 2)]
        sums = parts[0]
    return sums


# only within a program may an array lie on its devices in unequal parts
_total_compiled = jax.jit(_total, static_argnames=("mesh", "short"))
_along_compiled = jax.jit(_along, static_argnames=("axis", "mesh"))


def _pairs(terms: Sequence[jax.Array], beside: jax.Array | None, short: bool) -> jax.Array:
    """The sums of blocks [..., BLOCK] of every term as pairs [terms, ..., 2]."""
    true = always(terms[0] if beside is None else beside)
    halves = [_pairs_of_rows(each) for each in rounded(terms, true)]
    step = TOGETHER if short else 1
    groups = [halves[i : i + step] for i in range(0, len(halves), step)]
    quarters = [each for group in groups for each in add_together(group)]
    return branch(true, _end_pairs, _no_pairs, quarters)


def _end_pairs(quarters: list[jax.Array]) -> jax.Array:
    sums = jnp.stack([_add_rows(_add_rows(each)) for each in quarters])
    return _halve(sums, jnp.zeros_like(sums))


def _no_pairs(quarters: list[jax.Array]) -> jax.Array:
    """Never run: anything of the shape of `_end_pairs`, that lies where that does."""
    return jnp.stack([each[..., :2] for each in quarters])


def _pairs_of_rows(blocks: jax.Array) -> jax.Array:
    """The sums [..., 2, elements / 4] of the first two and the last two of the four rows of blocks [..., elements]."""
    rows = blocks.reshape(*blocks.shape[:-1], 2, 2, blocks.shape[-1] // ROWS)
    return rows[..., 0, :] + rows[..., 1, :]


def _add_rows(blocks: jax.Array) -> jax.Array:
    """The sums over the four rows [..., elements / 4] of blocks [..., elements]."""
    halves = _pairs_of_rows(blocks)
    return halves[..., 0, :] + halves[..., 1, :]


def _halve(high: jax.Array, low: jax.Array) -> jax.Array:
    """The sum over the last axis (a power of two long) of numbers high + low, as pairs in a new last axis."""
    while high.shape[-1] > 1:
        half = high.shape[-1] // 2
        a, b = high[..., :half], high[..., half:]
        high = a + b
        rounded = high - a
        lost = (a - (high - rounded)) + (b - rounded)
        low = low[..., :half] + low[..., half:] + lost
    return jnp.concatenate([high, low], axis=-1)


def _blocks(term: jax.Array, mesh: AbstractMesh) -> jax.Array:
    """The blocks of an array [parts, blocks, BLOCK], those of every part dealt out over the devices.

    A part is what lies at one index of the axes before the one that is dealt out; at its end there may be more blocks
    of zeros than it takes to fill the last one.
    """
    devices, shape = devices_of(mesh), term.shape
    share = devices * BLOCK
    if devices == 1 or term.size <= share:  # less than a block for each
        rows, share = deal(term, mesh, None).reshape(1, term.size), BLOCK
    else:
        rests = [math.prod(shape[axis:]) for axis in range(max(term.ndim - 1, 1))]
        whole = [i for i, rest in enumerate(rests) if rest % BLOCK == 0 and rest >= share]
        axis = axis_to_deal(shape, sorted({0, *whole}), devices)
        # the axis first: only from there does the compiler know a way to the flat order without a gather
        rows = deal(term, mesh, axis).reshape(-1, rests[axis])
        rows = deal(rows, mesh, 1)
    rows = jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % share)))
    if share > BLOCK:
        rows = deal(rows, mesh, 1)
    return rows.reshape(rows.shape[0], rows.shape[1] // BLOCK, BLOCK)
