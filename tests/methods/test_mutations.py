"""Methods made wrong on purpose: the laws must notice. And each law, alone, must notice what it is there for."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
from rows import ROWS
from variants import Change, function
from variants_sparse import SPARSE
from variants_whole import WHOLE
from variants_wrapped import WRAPPED

from jmerge.engine import compute, kernel
from jmerge.errors import JmergeError
from jmerge.methods.linear import linear
from jmerge.methods.wrap import conditioned, lines
from jmerge.testing import laws
from jmerge.testing.examples import FEW, Setting
from jmerge.testing.laws import LAWS, cases
from jmerge.testing.ways import forget_kernels

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No compiled program outlives the function it was made of; a few shapes are enough here, and what has to hold
    to rounding is compiled quickly, for no other law needs these programs."""
    monkeypatch.setattr(Setting, "way", lambda self, shape: "quick")
    monkeypatch.setattr(laws, "SHAPES", (*FEW, (1,)))
    monkeypatch.setattr(laws, "SHORT", ())
    monkeypatch.setattr(laws, "LONGEST", ())
    monkeypatch.setattr(laws, "PIECES", laws.PIECES[-1:])
    forget()
    yield
    forget()


def forget() -> None:
    """Drop programs and wrapped methods: both keep the functions that they are made of."""
    forget_kernels()
    conditioned.cache_clear()
    lines.cache_clear()


VARIANTS = {**WHOLE, **SPARSE, **WRAPPED}
# Where to look first, to save time: the reference sees most variants, but not those that only pieces or recipes show.
SEEN_BY = {
    "sums of the piece alone": "chunks",
    "place of the piece forgotten": "chunks",
    "copied whatever the scale": "recipe",
    "density is 0.9 unless set": "equal_inputs",
    "bounds of the piece alone": "chunks",
    "levels of the piece alone": "chunks",
    "quartiles of the piece alone": "chunks",
    "lengths of the piece alone": "chunks",
    "norms of the piece alone": "chunks",
}


def test_every_method_has_variants() -> None:
    assert set(VARIANTS) == set(ROWS)
    assert min(map(len, VARIANTS.values())) >= 3


@pytest.mark.parametrize(
    ("method", "name", "change"),
    [
        pytest.param(method, name, change, id=f"{method}: {name}")
        for method, variants in VARIANTS.items()
        for name, change in variants.items()
    ],
)
def test_a_law_notices(
    method: str, name: str, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch, method)
    first = SEEN_BY.get(name, "reference")
    others = [law for _, law in cases([ROWS[method]]) if law != first]
    assert breaks(first, method) or any(breaks(law, method) for law in others)


def breaks(law: str, method: str) -> bool:
    """Whether the method breaks the law; any error that a law does not mean to find is passed on."""
    try:
        LAWS[law](ROWS[method])
    except (AssertionError, JmergeError):
        return True
    return False


# Each law alone


def mean(x: jax.Array, *, weight: jax.Array, normalize: bool) -> jax.Array:
    """Linear in short, for variants that obey most laws."""
    return linear(x, weight=weight, normalize=normalize)


# law -> (method, what makes it break this law)
BREAKS: dict[str, tuple[str, Change]] = {
    "equal_inputs": (
        "linear",
        function(lambda x, **rest: mean(x, **rest) * jnp.float32(1.00001)),
    ),
    "order": ("linear", function(lambda x, **rest: mean(x, **rest) + x[0])),
    "shift": (
        "task_arithmetic",
        lambda patch, _: patch.setattr(
            kernel,
            "_arrays",
            lambda key, inputs: (jnp.stack([m for i, m in enumerate(inputs) if i != key.base]),),
        ),
    ),
    "reference": ("slerp", function(lambda b, x, *, t, sums: b + t * (x[0] - b))),
    "jit": (
        "linear",
        function(
            lambda x, **rest: mean(x, **rest) * (2 if isinstance(x, jax.core.Tracer) else 1),
        ),
    ),
    "chunks": ("linear", function(lambda x, **rest: mean(x, **rest) + jnp.mean(x))),
    "bundles": ("linear", function(lambda x, **rest: mean(x, **rest) + jnp.mean(x))),
    "compiles": (
        "linear",
        lambda patch, _: patch.setattr(
            compute, "combine_kernel", kernel.combine_kernel.__wrapped__
        ),
    ),
    "finite": ("linear", function(lambda x, **rest: mean(x, **rest) / x[0] * x[0])),
    "nonfinite": (
        "linear",
        function(lambda x, **rest: mean(jnp.nan_to_num(x, posinf=0, neginf=0), **rest)),
    ),
    "recipe": (
        "linear",
        function(lambda x, **rest: mean(x, **rest) + (1e-7 if x.ndim == 2 else 0)),
    ),
}


def test_every_law_can_be_broken() -> None:
    assert set(BREAKS) == set(LAWS)


@pytest.mark.parametrize("law", LAWS)
def test_the_law_itself_notices(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, make_wrong = BREAKS[law]
    make_wrong(monkeypatch, method)
    assert breaks(law, method)
