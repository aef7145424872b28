"""What leans on XLA works, and XLA still needs it.

A test of the second kind fails where the lowest JAX that jmerge supports does without; a later one, which does without,
is told in the summary (skipped) until the floor is there too.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmerge.methods import xla
from jmerge.methods.reduce import BLOCK, along, block_pairs
from jmerge.testing.close import assert_same_bytes
from jmerge.testing.leaning import ELEMENTS, NAMES, example, without_rounded

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    """The program, of a function that no cache knows."""
    return jax.jit(lambda *given: function(*given)).lower(*arguments).compile()


def temporary(function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    """The bytes that the program allocates beside arguments and result."""
    return int(compiled(function, *arguments).memory_analysis().temp_size_in_bytes)


def still_needed(name: str, problem: bool) -> None:
    """Say that `jmerge.methods.xla` has a function too many, where there is no problem without it."""
    if problem:
        return
    (floor,) = (
        found[1] for each in PROJECT["dependencies"] if (found := re.match(r"jax>=([\d.]+)$", each))
    )
    said = (
        f"JAX {jax.__version__} on {jax.default_backend()} does without jmerge.methods.xla.{name}"
    )
    if jax.__version__ == floor:
        pytest.fail(f"{said}, and no older one is supported: remove it")
    pytest.skip(f"{said}; remove it once the lowest supported JAX, {floor}, does")


def test_every_function_has_an_example() -> None:
    functions = {name for name, found in vars(xla).items() if inspect.isfunction(found)}
    public = {name for name in functions if not name.startswith("_")}
    assert public == {*NAMES, "always"}


@pytest.mark.parametrize("name", NAMES)
def test_no_value_changes(name: str) -> None:
    """Beyond the last bit, which two of them are for."""
    leaning, plain, arguments = example(name, 4 * BLOCK)
    found, wanted = jax.jit(leaning)(*arguments), jax.jit(plain)(*arguments)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.uint32, np.int32, np.float16, np.uint8])
def test_always_is_true(dtype: Any) -> None:
    word = np.dtype(f"u{np.dtype(dtype).itemsize}")
    ends = np.iinfo(word).max - np.arange(3, dtype=word)
    for bits in (*ends, *np.arange(3, dtype=word)):
        assert jax.jit(lambda x: xla.always(x))(np.asarray([bits]).view(dtype))
    assert jax.jit(lambda x: xla.always(x))(np.zeros(0, dtype))


def chosen(true: Callable[[jax.Array], Any]) -> str:
    """The program of a branch on a condition."""
    x = np.ones(BLOCK, np.float32)

    def either(x: jax.Array) -> jax.Array:
        found: jax.Array = xla.branch(true(x), jnp.sin, jnp.cos, x)
        return found

    text: str = compiled(either, x).as_text()
    return text


def test_no_compiler_sees_that_always_is_true() -> None:
    assert "cosine(" in chosen(xla.always)


def test_always_is_needed() -> None:
    """A condition that is plainly true leaves no branch."""
    still_needed("always", "cosine(" not in chosen(lambda x: jnp.asarray(True)))


def padded_and_whole(
    way: Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]],
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of the products of two arrays, padded after they were multiplied, and before."""
    size = 7 * BLOCK + 11
    x, y = np.random.default_rng(1).standard_normal((2, size), np.float32)
    ends = (0, 8 * BLOCK - size)
    after = compiled(way(lambda x, y: block_pairs([jnp.pad(x * y, ends)])), x, y)
    whole = np.pad(x, ends), np.pad(y, ends)
    before = compiled(way(lambda x, y: block_pairs([x * y])), *whole)
    return np.asarray(after(x, y)), np.asarray(before(*whole))


def test_rounded_terms_are_added_to_the_same_bits_padded_or_not() -> None:
    assert_same_bytes(*padded_and_whole(lambda function: function))


def test_rounded_is_needed() -> None:
    found, wanted = padded_and_whole(without_rounded)
    still_needed("rounded", found.tobytes() != wanted.tobytes())


def test_a_branch_keeps_terms_out_of_memory() -> None:
    leaning, _, arguments = example("branch")
    assert temporary(leaning, arguments) < ELEMENTS * 4 / 2


def test_branch_is_needed() -> None:
    """Without it a sum of squares writes them to memory."""
    _, plain, arguments = example("branch")
    still_needed("branch", temporary(plain, arguments) >= ELEMENTS * 4)


def bytes_of_sums(name: str) -> float:
    """The bytes that the program of an example reads and writes, by XLA's account."""
    case = example("add_together")
    accessed: float = compiled(getattr(case, name), *case.arguments).cost_analysis()[
        "bytes accessed"
    ]
    return accessed


def test_sums_of_products_read_what_they_share_once() -> None:
    assert bytes_of_sums("leaning") < 6.5 * 4 * ELEMENTS


def test_add_together_is_needed() -> None:
    """Without it x and y are read twice each."""
    still_needed("add_together", bytes_of_sums("plain") > bytes_of_sums("leaning") + 4 * ELEMENTS)


def test_sums_in_one_loop_have_the_same_bits() -> None:
    leaning, plain, arguments = example("add_together")
    assert_same_bytes(
        *(np.asarray(compiled(way, *arguments)(*arguments)) for way in (leaning, plain))
    )


def test_sums_in_one_loop_have_gradients() -> None:
    """Of both orders, as sums by themselves."""

    def square(x: jax.Array) -> jax.Array:
        (a, b) = xla.add_together([x.reshape(2, 2), 3 * x.reshape(2, 2)])
        return jnp.sum(a * b)

    x = jnp.arange(4.0)
    np.testing.assert_allclose(jax.grad(square)(x), 6 * np.asarray([2.0, 4.0, 2.0, 4.0]))
    jax.hessian(square)(x)


def quotients(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers divided by seven, which is known to the program, and which is given to it."""
    program = compiled(getattr(example("unknown"), name), np.float32(1))
    given = jax.jit(lambda x, divisor: x / divisor)
    numbers = np.random.default_rng(0).standard_normal(64, np.float32)
    found = [np.asarray(program(number)) for number in numbers]
    return np.stack(found), np.stack([np.asarray(given(each, np.float32(7))) for each in numbers])


def test_unknown_numbers_divide_as_given_ones() -> None:
    assert_same_bytes(*quotients("leaning"))


def test_unknown_is_needed() -> None:
    found, wanted = quotients("plain")
    still_needed("unknown", found.tobytes() != wanted.tobytes())


@pytest.mark.parametrize(("shape", "axis"), [((64, 4096), 1), ((4096, 64), 0), ((64, 16, 256), 2)])
def test_steps_of_a_sum_along_an_axis_are_computed_once(shape: tuple[int, ...], axis: int) -> None:
    """No step is computed anew in the next: about one addition for each element, and no copy of the terms."""
    x = np.ones(shape, np.float32)
    program = compiled(lambda x: along(x, axis), x)
    assert program.cost_analysis()["flops"] <= 1.1 * x.size
    assert program.memory_analysis().temp_size_in_bytes <= x.nbytes / 8
