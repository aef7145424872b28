"""Karcher mean: the point on the sphere from which the directions of all models are nearest on the whole.

Grove and Karcher, "How to conjugate C1-close group actions", 1973; for model merging https://arxiv.org/abs/2603.04972
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmerge.methods.combine import sum_models, weighted_sum
from jmerge.methods.gram import gram_matrix, gram_sums, lengths_of, product, root
from jmerge.methods.spec import Shared, Whole, merge_method

LEAST_SINE = 1e-3  # a direction nearly opposite to the mean pulls it nowhere in particular


@merge_method(
    "karcher",
    takes="models",
    models=(1, None),
    statistics=(gram_sums(),),
    bundled=False,
    title="Karcher Mean",
    summary=(
        "The mean of the models' directions, measured along the sphere and found by "
        "iteration, at their mean length. It does for any number of models what slerp at 0.5 "
        "does for two."
    ),
    formula="u sum_i |x_i| / N,   u = argmin sum_i angle(u, x_i)^2",
    when="Several models of equal standing, when averaging makes the weights too small.",
    paper="https://arxiv.org/abs/2603.04972",
    max_iter=Whole(10, low=1, doc="maximum number of iterations"),
    tol=Shared(1e-5, low=0.0, doc="steps, angles and lengths below this count as zero"),
)
def karcher(models: jax.Array, *, max_iter: int, tol: jax.Array, sums: jax.Array) -> jax.Array:
    """models [models, *shape], tol scalar -> their mean on the sphere at their mean length [*shape].

    Models no longer than `tol` have no direction; if none has, the result is zero. sums: totals of `gram_terms`
    over the whole tensor. Lengths beyond the dtype give the plain mean.
    """
    tol = jax.lax.stop_gradient(tol)  # only says when to stop
    count = models.shape[0]
    if count == 1:
        return models[0]
    gram, finite = gram_matrix(models, sums)
    length = lengths_of(gram)
    valid = length > tol
    inverse = jnp.where(valid, 1 / jnp.where(valid, length, 1), 0)
    cosine = inverse[:, None] * gram * inverse[None, :]
    some = valid.astype(gram.dtype)
    share = some / jnp.maximum(sum_models(some), 1)

    first = (jnp.arange(count) == jnp.argmax(valid)).astype(gram.dtype)
    u = _iterate(max_iter, cosine, valid, share, first, tol)
    factors = sum_models(length) / count * u * inverse
    return weighted_sum(jnp.where(finite, factors, jnp.full_like(factors, 1 / count)), models)


def _iterate(
    steps: int,
    cosine: jax.Array,
    valid: jax.Array,
    share: jax.Array,
    first: jax.Array,
    tol: jax.Array,
) -> jax.Array:
    """The combination [models] of directions that is their mean on the sphere; `first` where their sum has none."""

    def step(
        state: tuple[jax.Array, jax.Array], _: None
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        going, u = _step(state[1], cosine, valid, share, tol)
        going = state[0] & going
        return (going, jnp.where(going, u, state[1])), None

    # all steps, those after the last without effect: through a loop that stops no gradient goes back
    start = (jnp.ones_like(valid).any(), _unit(cosine, share, first, tol))
    return jax.lax.scan(step, start, length=steps)[0][1]


def _unit(cosine: jax.Array, u: jax.Array, otherwise: jax.Array, least: jax.Array) -> jax.Array:
    """The combination u [models] of directions at length one."""
    square = jnp.maximum(product(product(cosine, u), u), 0)
    usable = square > least * least
    return jnp.where(usable, u / jnp.sqrt(jnp.where(usable, square, 1)), otherwise)


def _step(
    u: jax.Array, cosine: jax.Array, valid: jax.Array, share: jax.Array, tol: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Whether a step towards the mean is long enough to be one, and where it leads."""
    c = jnp.clip(product(cosine, u), -1, 1)
    apart = jnp.abs(c) < 1
    angle = jnp.where(
        apart, jnp.arccos(jnp.where(apart, c, 0)), jnp.arccos(jax.lax.stop_gradient(c))
    )
    sine = jnp.sin(angle)
    pulls = valid & (angle >= tol) & ((c > 0) | (sine > LEAST_SINE))
    pull = jnp.where(pulls, share * angle / jnp.where(pulls & (sine > 0), sine, 1), 0)
    tangent = pull - sum_models(pull * c) * u
    size = root(jnp.maximum(product(product(cosine, tangent), tangent), 0))
    going = size >= tol
    size = jnp.where(going, size, 1)
    turned = jnp.cos(size) * u + jnp.sin(size) / size * tangent
    return going, jnp.where(going, _unit(cosine, turned, turned, tol), u)
