"""The factors of two vectors on the arc between them."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def arc_factors(
    t: jax.Array, angle: jax.Array, sine: jax.Array, arc: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What to multiply the first and the second of two vectors by to go the share t of the way between them.

    angle between them and its sine; where `arc` is false, the way is a straight line. Shoemake, "Animating rotation
    with quaternion curves", SIGGRAPH 1985.
    """
    below = jnp.where(arc, sine, 1)
    start = jnp.where(arc, jnp.sin((1 - t) * angle) / below, 1 - t)
    end = jnp.where(arc, jnp.sin(t * angle) / below, t)
    return start, end
