"""Inner products of all pairs of models: what the methods that work with directions know of whole tensors.

Any vector that such a method arrives at is a combination of the models, so its length and its angles follow from
these products; the method itself needs no second look at the tensors.
"""

from __future__ import annotations

from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import jax
import jax.numpy as jnp

from jmerge.methods.combine import sum_models
from jmerge.methods.statistics.sums import BlockSum


def gram_terms(vectors: jax.Array, **_: Any) -> tuple[jax.Array, ...]:
    """vectors [models, *shape] -> the products [*shape] of every pair, each with itself too, row by row.

    It is the `sums` of the methods that use `gram_matrix`, so it is called with their keywords.
    """
    pairs = combinations_with_replacement(range(vectors.shape[0]), 2)
    return tuple(vectors[i] * vectors[j] for i, j in pairs)


gram_sums = partial(BlockSum, keyword="sums", terms=gram_terms, short=True)


def gram_matrix(vectors: jax.Array, sums: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The inner products [models, models] of vectors [models, *shape], and whether all of them fit the dtype.

    sums: totals of `gram_terms` over the whole tensor. Products that do not fit are
    replaced by zeros.
    """
    count = vectors.shape[0]
    finite = jnp.isfinite(sums).all()
    entries = iter(jnp.where(finite, sums, 0))
    rows: list[list[jax.Array]] = [[] for _ in range(count)]
    for i, j in combinations_with_replacement(range(count), 2):
        entry = next(entries)
        rows[i].append(entry)
        if i != j:
            rows[j].append(entry)
    # row i holds the pairs (0, i), ..., (i, i), (i, i + 1), ...: the matrix is symmetric
    return jnp.stack([jnp.stack(row) for row in rows]), finite


def lengths_of(gram: jax.Array) -> jax.Array:
    """The norms [models] of the vectors of a Gram matrix."""
    return root(jnp.diagonal(gram))


def root(squares: jax.Array) -> jax.Array:
    """Square roots, whose gradient is finite at zero too."""
    some = squares > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1)), 0)


def product(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """matrix [n, n] times vector [n], or two vectors' inner product, in full precision on every device.

    Added up left to right: a product of matrices is another program for many tensors at once than for one.
    """
    return sum_models([matrix[..., i] * vector[i] for i in range(vector.size)])
