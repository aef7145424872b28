"""DELLA where changes are equal, as differences of bf16 weights often are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references

from jmerge.methods.della import draw, rank_keys
from jmerge.methods.random import make_key
from jmerge.methods.statistics.rows import sort_rows
from jmerge.methods.streams import stream_of

SHAPE = (64, 400)


def few_values(seed: int) -> np.ndarray:
    """Changes of five magnitudes, zero among them."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([0.0, 0.25, 0.5, 0.75, 1.0], SHAPE, p=[0.3, 0.3, 0.2, 0.1, 0.1])
    return (sizes * rng.choice([-1, 1], SHAPE)).astype(np.float32)


def thin(change: np.ndarray, density: float, epsilon: float, seeds: int = 1) -> np.ndarray:
    """What is left of one model's changes, for each of some seeds."""
    hyperparameters = {
        name: jnp.float32([x]) for name, x in (("density", density), ("epsilon", epsilon))
    }
    keys = jnp.asarray([[make_key(seed, stream_of("t"), 0)] for seed in range(seeds)], jnp.uint32)
    delta = jnp.asarray(change[None])
    ordered = [sort_rows(each) for each in rank_keys(delta)]
    drawn = jax.jit(
        jax.vmap(lambda key: draw(delta, keys=key, ordered=ordered, **hyperparameters)[0])
    )
    return np.where(drawn(keys), change, np.float32(0))


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.15), (0.3, 0.0), (0.2, 0.19), (1.0, 0.1)])
def test_equal_changes_agree_with_the_reference(density: float, epsilon: float) -> None:
    """The lowest or the highest of the ranks that they share, as the coin says."""
    change = few_values(0)
    keys = np.asarray([make_key(0, stream_of("t"), 0)], np.uint32)
    hyperparameters = {"density": (density,), "epsilon": (epsilon,)}
    wanted = references.thinned(
        change[None], hyperparameters, *references.drawn(keys, change[None])
    )[0]
    np.testing.assert_array_equal(thin(change, density, epsilon)[0], wanted)


def test_equal_changes_have_the_chance_of_their_middle_rank() -> None:
    """And all of a row are kept with the density on average; five standard errors."""
    change, density, epsilon, draws = few_values(1)[:1], 0.4, 0.3, 400
    kept = thin(change, density, epsilon, draws) != 0
    sizes, last = np.abs(change[0]), change.shape[1] - 1
    for size in np.unique(sizes)[1:]:
        equal = sizes == size
        middle = np.flatnonzero(np.sort(sizes) == size).mean()
        chance = density - epsilon + 2 * epsilon * middle / last
        error = np.sqrt(chance * (1 - chance) / (draws * equal.sum()))
        assert abs(kept[:, 0, equal].mean() - chance) < 5 * error
