"""Methods made wrong on purpose: the laws must notice. And each law, alone, must notice what it is there for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import pytest
from rows import ROWS

from jmerge.engine import compute, kernel
from jmerge.errors import JmergeError
from jmerge.methods import REGISTRY, Method
from jmerge.methods.breadcrumbs import breadcrumbs, breadcrumbs_ties
from jmerge.methods.combine import sum_models, weighted_sum
from jmerge.methods.cuts import find_cut
from jmerge.methods.dare import dare_linear, dare_ties
from jmerge.methods.karcher import karcher
from jmerge.methods.linear import linear
from jmerge.methods.magmax import magmax
from jmerge.methods.model_stock import model_stock
from jmerge.methods.multislerp import multislerp
from jmerge.methods.nearswap import nearswap
from jmerge.methods.negmerge import negmerge
from jmerge.methods.nuslerp import nuslerp
from jmerge.methods.ram import ram, ramplus_sums, ramplus_tl
from jmerge.methods.slerp import slerp, slerp_sums
from jmerge.methods.task_arithmetic import task_arithmetic
from jmerge.methods.ties import drop as drop_small
from jmerge.methods.ties import ties
from jmerge.testing import laws
from jmerge.testing.laws import LAWS, cases
from jmerge.testing.ways import forget_kernels

pytestmark = pytest.mark.slow

Change = Callable[[Method], Method]


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No compiled program outlives the function it was made of; and a few shapes are enough here."""
    monkeypatch.setattr(laws, "SHAPES", laws.FEW)
    monkeypatch.setattr(laws, "SHORT", ())
    monkeypatch.setattr(laws, "LONGEST", ())
    monkeypatch.setattr(laws, "PIECES", laws.PIECES[-1:])
    forget_kernels()
    yield
    forget_kernels()


def function(variant: Callable[..., jax.Array]) -> Change:
    """The method with another function."""
    return lambda method: dataclasses.replace(method, function=variant)


def sums(variant: Callable[..., tuple[jax.Array, ...]]) -> Change:
    """The method for which the engine adds up other terms."""
    return lambda method: dataclasses.replace(method, sums=variant)


def default(name: str, value: float | bool) -> Change:
    """The method with another default of one parameter."""

    def change(method: Method) -> Method:
        declared = dataclasses.replace(method.parameters[name], default=value)
        return dataclasses.replace(method, parameters={**method.parameters, name: declared})

    return change


def coarse(values: jax.Array) -> jax.Array:
    """`values` rounded to bfloat16, as arithmetic in the dtype of the file would do."""
    return values.astype(jnp.bfloat16).astype(values.dtype)


# Called as the method: the weights w, the flag n (normalize), the factor k (lambda), the share t.
LINEAR: dict[str, Change] = {
    "sign flipped": function(
        lambda x, *, weight, normalize: -linear(x, weight=weight, normalize=normalize)
    ),
    "weights dropped": function(
        lambda x, *, weight, normalize: linear(x, weight=jnp.ones_like(weight), normalize=normalize)
    ),
    "weights reversed": function(
        lambda x, *, weight, normalize: linear(x, weight=weight[::-1], normalize=normalize)
    ),
    "weights without sign": function(
        lambda x, *, weight, normalize: linear(x, weight=jnp.abs(weight), normalize=normalize)
    ),
    "never normalised": function(lambda x, *, weight, normalize: weighted_sum(weight, x)),
    "always normalised": function(
        lambda x, *, weight, normalize: linear(x, weight=weight, normalize=True)
    ),
    "divided by the number of models": function(
        lambda x, *, weight, normalize: (
            weighted_sum(weight, x) / weight.size if normalize else weighted_sum(weight, x)
        )
    ),
    "divided by the sum of the sizes": function(
        lambda x, *, weight, normalize: linear(
            x, weight=weight / sum_models(jnp.abs(weight)) if normalize else weight, normalize=False
        )
    ),
    "first model only": function(lambda x, *, weight, normalize: x[0]),
    "last model forgotten": function(
        lambda x, *, weight, normalize: (
            linear(x[:-1], weight=weight[:-1], normalize=normalize) if weight.size > 1 else x[0]
        )
    ),
    "in bfloat16": function(
        lambda x, *, weight, normalize: coarse(linear(x, weight=weight, normalize=normalize))
    ),
    "weights in bfloat16": function(
        lambda x, *, weight, normalize: linear(x, weight=coarse(weight), normalize=normalize)
    ),
    "normalize off unless asked for": default("normalize", False),
}

SLERP: dict[str, Change] = {
    "t and 1 - t swapped": function(lambda b, x, *, t, sums=None: slerp(b, x, t=1 - t, sums=sums)),
    "base and model swapped": function(lambda b, x, *, t, sums=None: slerp(x[0], b[None], t=t)),
    "base ignored": function(lambda b, x, *, t, sums=None: t * x[0]),
    "model ignored": function(lambda b, x, *, t, sums=None: b),
    "a straight line": function(lambda b, x, *, t, sums=None: (1 - t) * b + t * x[0]),
    "t kept within 0 and 1": function(
        lambda b, x, *, t, sums=None: slerp(b, x, t=jnp.clip(t, 0, 1), sums=sums)
    ),
    "sign of the angle lost": function(
        lambda b, x, *, t, sums=None: slerp(
            b, x, t=t, sums=jnp.abs(jnp.stack([jnp.sum(term) for term in slerp_sums(b, -x)])) * -1
        )
    ),
    "sums of the piece alone": function(lambda b, x, *, t, sums=None: slerp(b, x, t=t)),
    "wrong terms in the engine": sums(lambda b, x, **_: (b * b, b * b, b * x[0])),
    "terms of the engine in another order": sums(lambda b, x, **_: slerp_sums(b, x)[::-1]),
    "in bfloat16": function(lambda b, x, *, t, sums=None: coarse(slerp(b, x, t=t, sums=sums))),
}

TASK_ARITHMETIC: dict[str, Change] = {
    "sign flipped": function(
        lambda d, *, weight, scale, normalize: task_arithmetic(
            -d, weight=weight, scale=scale, normalize=normalize
        )
    ),
    "weights dropped": function(
        lambda d, *, weight, scale, normalize: task_arithmetic(
            d, weight=jnp.ones_like(weight), scale=scale, normalize=normalize
        )
    ),
    "lambda ignored": function(
        lambda d, *, weight, scale, normalize: task_arithmetic(
            d, weight=weight, scale=jnp.ones_like(scale), normalize=normalize
        )
    ),
    "lambda divides": function(
        lambda d, *, weight, scale, normalize: task_arithmetic(
            d, weight=weight, scale=1 / scale, normalize=normalize
        )
    ),
    "never normalised": function(
        lambda d, *, weight, scale, normalize: task_arithmetic(
            d, weight=weight, scale=scale, normalize=False
        )
    ),
    "always normalised": function(
        lambda d, *, weight, scale, normalize: task_arithmetic(
            d, weight=weight, scale=scale, normalize=True
        )
    ),
    "the mean of the changes": function(
        lambda d, *, weight, scale, normalize: scale * weighted_sum(weight, d) / weight.size
    ),
    "no guard where the weights cancel": function(
        lambda d, *, weight, scale, normalize: (
            scale * weighted_sum(weight, d) / (sum_models(weight) if normalize else 1)
        )
    ),
    "first change only": function(
        lambda d, *, weight, scale, normalize: task_arithmetic(
            d[:1], weight=weight[:1], scale=scale, normalize=normalize
        )
    ),
    "changes in bfloat16": function(
        lambda d, *, weight, scale, normalize: task_arithmetic(
            coarse(d), weight=weight, scale=scale, normalize=normalize
        )
    ),
    "lambda is 2 unless set": default("lambda", 2.0),
    "normalize on unless set": default("normalize", True),
}

PASSTHROUGH: dict[str, Change] = {
    "scale ignored": function(lambda x, *, scale: x[0]),
    "sign flipped": function(lambda x, *, scale: -x[0] if scale is None else -scale[0] * x[0]),
    "scale squared": function(
        lambda x, *, scale: x[0] if scale is None else scale[0] * scale[0] * x[0]
    ),
    "scale added": function(lambda x, *, scale: x[0] if scale is None else scale[0] + x[0]),
    "zeros where unset": function(
        lambda x, *, scale: jnp.zeros_like(x[0]) if scale is None else scale[0] * x[0]
    ),
    "copied whatever the scale": lambda method: dataclasses.replace(
        method, copies=lambda numbers: True
    ),
}

TIES: dict[str, Change] = {
    "sign flipped": function(lambda d, **rest: ties(-d, **rest)),
    "weights dropped": function(
        lambda d, *, weight, **rest: ties(d, weight=jnp.ones_like(weight), **rest)
    ),
    "lambda ignored": function(lambda d, *, scale, **rest: ties(d, scale=scale / scale, **rest)),
    "never normalised": function(lambda d, *, normalize, **rest: ties(d, normalize=False, **rest)),
    "never rescaled": function(lambda d, *, rescale, **rest: ties(d, rescale=False, **rest)),
    "everything kept": function(lambda d, *, keep, **rest: ties(d, keep=(1.0,) * len(d), **rest)),
    "place of the piece forgotten": function(lambda d, *, start=None, **rest: ties(d, **rest)),
    "sums of the piece alone": function(lambda d, *, sums=None, **rest: ties(d, **rest)),
    "no vote on the sign": function(
        lambda d, *, weight, keep, scale, normalize, rescale, start=None, sums=None: (
            task_arithmetic(
                drop_small(d, find_cut(d, keep), start),
                weight=weight,
                scale=scale,
                normalize=normalize,
            )
        )
    ),
    "normalize off unless asked for": default("normalize", False),
    "rescale on unless asked for": default("rescale", True),
    "density is 0.9 unless set": default("density", 0.9),
}


def dare_variants(dare: Callable[..., jax.Array]) -> dict[str, Change]:
    """What can go wrong in both methods that drop at random."""
    return {
        "sign flipped": function(lambda d, **rest: dare(-d, **rest)),
        "weights dropped": function(
            lambda d, *, weight, **rest: dare(d, weight=jnp.ones_like(weight), **rest)
        ),
        "lambda ignored": function(
            lambda d, *, scale, **rest: dare(d, scale=scale / scale, **rest)
        ),
        "nothing dropped": function(
            lambda d, *, density, **rest: dare(d, density=jnp.ones_like(density), **rest)
        ),
        "density is the share that is dropped": function(
            lambda d, *, density, **rest: dare(d, density=1 - density, **rest)
        ),
        "one key for all models": function(
            lambda d, *, keys, **rest: dare(d, keys=jnp.broadcast_to(keys[:1], keys.shape), **rest)
        ),
        "never rescaled": function(lambda d, *, rescale, **rest: dare(d, rescale=False, **rest)),
        "rescaled by the density": function(
            lambda d, *, rescale, density, **rest: dare(
                d / density.reshape(-1, *[1] * (d.ndim - 1)) if rescale else d,
                rescale=False,
                density=density,
                **rest,
            )
        ),
        "place of the piece forgotten": function(lambda d, *, start=None, **rest: dare(d, **rest)),
        "sums of the piece alone": function(lambda d, *, sums=None, **rest: dare(d, **rest)),
        "rescale off unless asked for": default("rescale", False),
        "normalize on unless asked for": default("normalize", True),
    }


def negative(method: Callable[..., jax.Array]) -> Change:
    """The method's result with the other sign."""
    return function(lambda *arrays, **rest: -method(*arrays, **rest))


def alone(method: Callable[..., jax.Array]) -> Change:
    """The method that takes the sums of a piece for those of the tensor."""
    return function(lambda *arrays, sums=None, **rest: method(*arrays, **rest))


NEARSWAP: dict[str, Change] = {
    "sign flipped": negative(nearswap),
    "base and model swapped": function(lambda b, x, *, t: nearswap(x[0], b[None], t=t)),
    "base ignored": function(lambda b, x, *, t: x[0]),
    "t doubled": function(lambda b, x, *, t: nearswap(b, x, t=2 * t)),
    "t without sign": function(lambda b, x, *, t: nearswap(b, x, t=jnp.abs(t))),
}

RAM: dict[str, Change] = {
    "sign flipped": negative(ram),
    "shared changes added up": function(
        lambda d, *, epsilon: sum_models([jnp.where(jnp.abs(x) > epsilon, x, 0) for x in d])
    ),
    "averaged over all models": function(lambda d, *, epsilon: sum_models(list(d)) / len(d)),
    "everything is a change": function(lambda d, *, epsilon: ram(d, epsilon=0 * epsilon)),
    "epsilon is 0.1 unless set": default("epsilon", 0.1),
}

RAMPLUS: dict[str, Change] = {
    "sign flipped": negative(ramplus_tl),
    "nothing enlarged": function(lambda d, *, epsilon, **_: ram(d, epsilon=epsilon)),
    "no most": function(lambda d, *, alpha, **rest: ramplus_tl(d, alpha=100 * alpha, **rest)),
    "r squared": function(lambda d, *, r, **rest: ramplus_tl(d, r=r * r, **rest)),
    "shared and alone swapped": sums(
        lambda d, **rest: (*(parts := ramplus_sums(d, **rest))[len(d) :], *parts[: len(d)])
    ),
    "sums of the piece alone": alone(ramplus_tl),
}

MAGMAX: dict[str, Change] = {
    "sign flipped": negative(magmax),
    "lambda ignored": function(lambda d, *, scale: magmax(d, scale=scale / scale)),
    "largest value": function(lambda d, *, scale: scale * jnp.max(d, axis=0)),
    "last model only": function(lambda d, *, scale: scale * d[-1]),
    "lambda is 1 unless set": default("lambda", 1.0),
}

NEGMERGE: dict[str, Change] = {
    "added": negative(negmerge),
    "no vote": function(lambda d, *, scale: -scale * sum_models(list(d)) / len(d)),
    "the sum for the mean": function(lambda d, *, scale: len(d) * negmerge(d, scale=scale)),
    "lambda ignored": function(lambda d, *, scale: negmerge(d, scale=scale / scale)),
}

MULTISLERP: dict[str, Change] = {
    "sign flipped": negative(multislerp),
    "weights dropped": function(
        lambda v, *, weight, **rest: multislerp(v, weight=jnp.ones_like(weight), **rest)
    ),
    "the weighted mean": function(
        lambda v, *, weight, **_: weighted_sum(weight / sum_models(weight), v)
    ),
    "weights as they are": function(
        lambda v, *, normalize_weights, **rest: multislerp(v, normalize_weights=False, **rest)
    ),
    "sums of the piece alone": alone(multislerp),
    "weights as they are unless asked for": default("normalize_weights", False),
}

KARCHER: dict[str, Change] = {
    "sign flipped": negative(karcher),
    "the plain mean": function(lambda x, **_: sum_models(list(x)) / len(x)),
    "no steps": function(lambda x, *, max_iter, **rest: karcher(x, max_iter=0 * max_iter, **rest)),
    "first model only": function(lambda x, **_: x[0]),
    "sums of the piece alone": alone(karcher),
}

MODEL_STOCK: dict[str, Change] = {
    "sign flipped": negative(model_stock),
    "the plain mean": function(lambda d, **_: sum_models(list(d)) / len(d)),
    "the base": function(lambda d, **_: jnp.zeros_like(d[0])),
    "first two models only": function(lambda d, *, sums=None, **rest: model_stock(d[:2], **rest)),
    "sums of the piece alone": alone(model_stock),
    "filter_wise unless asked not to": default("filter_wise", True),
}

NUSLERP: dict[str, Change] = {
    "sign flipped": negative(nuslerp),
    "weights swapped": function(
        lambda v, *, weight, **rest: nuslerp(v, weight=weight[::-1], **rest)
    ),
    "a straight line": function(
        lambda v, *, weight, **_: weighted_sum(weight / sum_models(weight), v)
    ),
    "always flattened": function(
        lambda v, *, nuslerp_flatten, sums=None, **rest: nuslerp(v, nuslerp_flatten=True, **rest)
    ),
    "sums of the piece alone": alone(nuslerp),
    "rows unless asked not to": default("nuslerp_flatten", False),
}


def breadcrumbs_variants(method: Callable[..., jax.Array]) -> dict[str, Change]:
    """What can go wrong in both methods that drop outliers."""
    return {
        "sign flipped": negative(method),
        "weights dropped": function(
            lambda d, *, weight, **rest: method(d, weight=jnp.ones_like(weight), **rest)
        ),
        "no outliers": function(
            lambda d, *, keep, outliers, **rest: method(
                d, keep=keep, outliers=(0.0,) * len(d), **rest
            )
        ),
        "place of the piece forgotten": function(
            lambda d, *, start=None, **rest: method(d, **rest)
        ),
        "never rescaled": function(lambda d, *, rescale, **rest: method(d, rescale=False, **rest)),
        "gamma is 0.1 unless set": default("gamma", 0.1),
        "normalize on unless asked for": default("normalize", True),
    }


VARIANTS = {
    "breadcrumbs": breadcrumbs_variants(breadcrumbs),
    "breadcrumbs_ties": breadcrumbs_variants(breadcrumbs_ties),
    "nearswap": NEARSWAP,
    "ram": RAM,
    "ramplus_tl": RAMPLUS,
    "magmax": MAGMAX,
    "negmerge": NEGMERGE,
    "multislerp": MULTISLERP,
    "karcher": KARCHER,
    "model_stock": MODEL_STOCK,
    "nuslerp": NUSLERP,
    "linear": LINEAR,
    "slerp": SLERP,
    "task_arithmetic": TASK_ARITHMETIC,
    "passthrough": PASSTHROUGH,
    "ties": TIES,
    "dare_linear": dare_variants(dare_linear),
    "dare_ties": dare_variants(dare_ties),
}
# Where to look first, to save time: the reference sees most variants, but not those that the engine alone shows.
SEEN_BY = {
    "sums of the piece alone": "chunks",
    "shared and alone swapped": "recipe",
    "place of the piece forgotten": "chunks",
    "wrong terms in the engine": "recipe",
    "terms of the engine in another order": "recipe",
    "copied whatever the scale": "recipe",
    "density is 0.9 unless set": "equal_inputs",
}


def test_every_method_has_variants() -> None:
    assert set(VARIANTS) == set(REGISTRY)
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
    monkeypatch.setitem(REGISTRY, method, change(REGISTRY[method]))
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


def replace(method: str, variant: Callable[..., jax.Array]) -> Callable[[pytest.MonkeyPatch], None]:
    """Give a method another function."""
    return lambda patch: patch.setitem(REGISTRY, method, function(variant)(REGISTRY[method]))


def mean(x: jax.Array, *, weight: jax.Array, normalize: bool) -> jax.Array:
    """Linear in short, for variants that obey most laws."""
    return linear(x, weight=weight, normalize=normalize)


# law -> (method, what makes it break this law)
BREAKS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "equal_inputs": (
        "linear",
        replace("linear", lambda x, **rest: mean(x, **rest) * jnp.float32(1.00001)),
    ),
    "order": ("linear", replace("linear", lambda x, **rest: mean(x, **rest) + x[0])),
    "shift": (
        "task_arithmetic",
        lambda patch: patch.setattr(
            kernel,
            "_arrays",
            lambda key, inputs: (jnp.stack([m for i, m in enumerate(inputs) if i != key.base]),),
        ),
    ),
    "reference": ("slerp", replace("slerp", lambda b, x, *, t, sums=None: b + t * (x[0] - b))),
    "jit": (
        "linear",
        replace(
            "linear",
            lambda x, **rest: mean(x, **rest) * (2 if isinstance(x, jax.core.Tracer) else 1),
        ),
    ),
    "chunks": ("linear", replace("linear", lambda x, **rest: mean(x, **rest) + jnp.mean(x))),
    "compiles": (
        "linear",
        lambda patch: patch.setattr(compute, "combine_kernel", kernel.combine_kernel.__wrapped__),
    ),
    "finite": ("linear", replace("linear", lambda x, **rest: mean(x, **rest) / x[0] * x[0])),
    "nonfinite": (
        "linear",
        replace("linear", lambda x, **rest: mean(jnp.nan_to_num(x, posinf=0, neginf=0), **rest)),
    ),
    "recipe": (
        "linear",
        replace("linear", lambda x, **rest: mean(x, **rest) + (1e-7 if x.ndim == 2 else 0)),
    ),
}


def test_every_law_can_be_broken() -> None:
    assert set(BREAKS) == set(LAWS)


@pytest.mark.parametrize("law", LAWS)
def test_the_law_itself_notices(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, make_wrong = BREAKS[law]
    make_wrong(monkeypatch)
    assert breaks(law, method)
