"""What leans on how XLA compiles today: branches, masks and barriers that change no value, only what XLA makes of them.

Each function says what it is for and what goes wrong without it. `tests/methods/test_xla.py` tells, by bytes and by what
programs allocate, whether each still works and whether XLA still needs it; `tools/bench.py --xla` measures the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Inputs = TypeVar("Inputs")
Result = TypeVar("Result")


def always(numbers: jax.Array) -> jax.Array:
    """True (bool scalar), computed from the first of some numbers so that no compiler sees it: of two integers in a
    row one is even. Conditions that XLA can work out are gone before they have the effects of `rounded` and `branch`."""
    word = np.dtype(f"u{numbers.dtype.itemsize}")
    # sliced as it lies: of an array on several devices, flattening would gather all
    first = jax.lax.slice(numbers, [0] * numbers.ndim, [min(size, 1) for size in numbers.shape])
    bits = jax.lax.bitcast_convert_type(first, word)
    true: jax.Array = jnp.all((bits * (bits + 1)) & 1 == 0)
    return true


def rounded(terms: Sequence[jax.Array], true: jax.Array) -> list[jax.Array]:
    """The terms [..., elements], each rounded to its dtype before anything is added to it. `true` is from `always`.

    Without it LLVM may contract a product and the addition that follows into one operation, which rounds once. Whether
    it does depends on what stands between them, such as padding, so the last bit would depend on how a tensor is cut.
    """
    # Numbers out of memory, in an order that is no range, are compared: what is known of a range would be enough for
    # XLA to drop the mask.
    size = terms[0].shape[-1]
    lanes = jnp.asarray(np.arange(size, dtype=np.uint32)[::-1])
    seen = lanes < jnp.where(true, jnp.uint32(size), 0)
    return [jnp.where(seen, each, 0) for each in terms]


def branch(
    true: jax.Array,
    function: Callable[[Inputs], Result],
    otherwise: Callable[[Inputs], Result],
    inputs: Inputs,
) -> Result:
    """`function(inputs)`, in loops of its own: XLA fuses nothing across a branch. `true` is a condition that always
    holds and that XLA does not see through; `otherwise` never runs, and gives anything of the same shapes.

    Without it a sum of squares writes them to memory before it adds them: three times the memory. A barrier does not
    do: on CPU, XLA takes it away before it fuses (JAX 0.9 and 0.10).
    """
    result: Result = jax.lax.cond(true, function, otherwise, inputs)
    return result


def add_together(terms: Sequence[jax.Array]) -> list[jax.Array]:
    """The sums [..., n] of the two rows of each of some terms [..., 2, n], all of one shape, in one loop.

    Without it XLA on CPU has a loop for each, which reads and computes anew what terms have in common: twice the time
    for the products of all pairs of three models.
    """
    return [_sum_of_rows(terms[0])] if len(terms) == 1 else _in_one_loop(terms)


@jax.custom_jvp
def _in_one_loop(terms: Sequence[jax.Array]) -> list[jax.Array]:
    def add(sums: Sequence[jax.Array], more: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        return tuple(a + b for a, b in zip(sums, more, strict=True))

    # minus zero changes nothing that it is added to
    nothing = tuple(np.asarray(-0.0, each.dtype) for each in terms)
    return list(jax.lax.reduce(tuple(terms), nothing, add, (terms[0].ndim - 2,)))


def _moved(primals: Any, tangents: Any) -> tuple[list[jax.Array], list[jax.Array]]:
    ((terms,), (moved,)) = primals, tangents
    return _in_one_loop(terms), [_sum_of_rows(each) for each in moved]


_in_one_loop.defjvp(_moved)


def _sum_of_rows(rows: jax.Array) -> jax.Array:
    return rows[..., 0, :] + rows[..., 1, :]


def unknown(number: jax.Array) -> jax.Array:
    """A number that XLA does not know while it compiles.

    Without it XLA multiplies by the inverse of a constant instead of dividing, and contracts other products: the last
    bit of a result would depend on whether a number was given to the program or built into it.
    """
    hidden: jax.Array = jax.lax.optimization_barrier(number)
    return hidden
