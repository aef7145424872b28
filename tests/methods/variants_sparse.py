"""Methods made wrong on purpose: those that choose among the elements."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from variants import Change, alone, both, default, function, inside, negative, statistic, sums

from jmerge.methods.arcee_fusion import arcee_fusion, score, score_keys
from jmerge.methods.breadcrumbs import breadcrumbs, breadcrumbs_ties
from jmerge.methods.cabs import cabs, largest_of_blocks
from jmerge.methods.combine import sum_models, weighted_sum
from jmerge.methods.dare import dare_linear, dare_ties
from jmerge.methods.della import della, della_linear, della_sums, rank_keys
from jmerge.methods.localize_stitch import localize_stitch
from jmerge.methods.pcb import level_counts, pcb
from jmerge.methods.pcb import scores as pcb_scores
from jmerge.methods.sce import sce, select
from jmerge.methods.spec import REGISTRY
from jmerge.methods.statistics.counts import plus
from jmerge.methods.statistics.rows import sort_rows
from jmerge.methods.statistics.thresholds import Threshold, change_keys, ordered_keys
from jmerge.methods.statistics.topk import TopK
from jmerge.methods.task_arithmetic import task_arithmetic
from jmerge.methods.ties import drop as drop_small
from jmerge.methods.ties import ties


def keeping_all(threshold: Threshold) -> Threshold:
    """Thresholds that keep everything."""
    most = jnp.full_like(threshold.last_low, 2**32 - 1)
    return Threshold(jnp.zeros_like(threshold.bits), most, most)


def keeping_none(threshold: Threshold) -> Threshold:
    """Thresholds that keep nothing."""
    none = jnp.zeros_like(threshold.last_low)
    return Threshold(~jnp.zeros_like(threshold.bits), none, none)


def without_outliers(bands: Threshold) -> Threshold:
    """Of each two thresholds the second alone."""
    first = jnp.arange(bands.bits.size) % 2 == 0
    pairs = zip(keeping_none(bands), bands, strict=True)
    return Threshold(*(jnp.where(first, none, some) for none, some in pairs))


def one_more(method: str, keyword: str) -> Change:
    """One more selected than the method wants, of all but the last of each term's selections."""
    (declared,) = (each for each in REGISTRY[method].statistics if each.keyword == keyword)
    assert isinstance(declared, TopK)

    def counts(hyperparameters: Any, size: int, found: Any) -> Any:
        rows = declared.counts(hyperparameters, size, found)
        return [[plus(row[0], 1), *row[1:]] for row in rows]

    return statistic(keyword, counts=counts)


TIES: dict[str, Change] = {
    "sign flipped": function(lambda d, **rest: ties(-d, **rest)),
    "weights dropped": function(
        lambda d, *, weight, **rest: ties(d, weight=jnp.ones_like(weight), **rest)
    ),
    "lambda ignored": function(lambda d, *, scale, **rest: ties(d, scale=scale / scale, **rest)),
    "never normalised": function(lambda d, *, normalize, **rest: ties(d, normalize=False, **rest)),
    "never rescaled": function(lambda d, *, rescale, **rest: ties(d, rescale=False, **rest)),
    "everything kept": function(lambda d, *, keep, **rest: ties(d, keep=keeping_all(keep), **rest)),
    "place of the piece forgotten": function(lambda d, *, start=None, **rest: ties(d, **rest)),
    "sums of the piece alone": alone(),
    "no vote on the sign": function(
        lambda d, *, weight, keep, scale, normalize, rescale, start=None, sums=None: (
            task_arithmetic(
                drop_small(d, keep, start),
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

    def drawn(d: jax.Array, *, masks: object, **rest: Any) -> jax.Array:
        return dare(d, **rest)  # which draws itself, by the keywords it gets

    return {
        "sign flipped": function(lambda d, **rest: dare(-d, **rest)),
        "weights dropped": function(
            lambda d, *, weight, **rest: dare(d, weight=jnp.ones_like(weight), **rest)
        ),
        "lambda ignored": function(
            lambda d, *, scale, **rest: dare(d, scale=scale / scale, **rest)
        ),
        "nothing dropped": function(
            lambda d, *, density, **rest: drawn(d, density=jnp.ones_like(density), **rest)
        ),
        "density is the share that is dropped": function(
            lambda d, *, density, **rest: drawn(d, density=1 - density, **rest)
        ),
        "one key for all models": function(
            lambda d, *, keys, **rest: drawn(d, keys=jnp.broadcast_to(keys[:1], keys.shape), **rest)
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
        "place of the piece forgotten": function(lambda d, *, start=None, **rest: drawn(d, **rest)),
        "sums of the piece alone": alone(),
        "rescale off unless asked for": default("rescale", False),
        "normalize on unless asked for": default("normalize", True),
    }


def breadcrumbs_variants(method: Callable[..., jax.Array]) -> dict[str, Change]:
    """What can go wrong in both methods that drop outliers."""
    return {
        "sign flipped": negative(method),
        "weights dropped": function(
            lambda d, *, weight, **rest: method(d, weight=jnp.ones_like(weight), **rest)
        ),
        "no outliers": function(
            lambda d, *, bands, **rest: method(d, bands=without_outliers(bands), **rest)
        ),
        "place of the piece forgotten": function(
            lambda d, *, start=None, **rest: method(d, **rest)
        ),
        "never rescaled": function(lambda d, *, rescale, **rest: method(d, rescale=False, **rest)),
        "gamma is 0.1 unless set": default("gamma", 0.1),
        "normalize on unless asked for": default("normalize", True),
    }


def della_variants(della: Callable[..., jax.Array], normalize: bool) -> dict[str, Change]:
    """What can go wrong in both methods that drop the small at random; normalize: what it is unless set."""

    def drawn(d: jax.Array, *, masks: object, **rest: Any) -> jax.Array:
        return della(d, **rest)  # which draws itself, by the keywords it gets

    return {
        "sign flipped": negative(della),
        "weights dropped": function(
            lambda d, *, weight, **rest: della(d, weight=jnp.ones_like(weight), **rest)
        ),
        "lambda ignored": function(
            lambda d, *, scale, **rest: della(d, scale=scale / scale, **rest)
        ),
        "nothing dropped": function(
            lambda d, *, density, **rest: drawn(d, density=jnp.ones_like(density), **rest)
        ),
        "epsilon ignored": function(
            lambda d, *, epsilon, **rest: drawn(d, epsilon=0 * epsilon, **rest)
        ),
        "small ones kept for large": function(
            lambda d, *, epsilon, **rest: drawn(d, epsilon=-epsilon, **rest)
        ),
        "ranks from 1": function(
            lambda d, *, ordered, **rest: drawn(
                d, ordered=[jnp.roll(each, 1, 1) for each in ordered], **rest
            )
        ),
        "rows along the last axis": function(
            lambda d, *, ordered, **rest: drawn(
                d,
                ordered=[sort_rows(each, each.ndim - 1) for each in rank_keys(d)],
                **rest,
            )
        ),
        "ranks of values": statistic(
            "ordered",
            terms=lambda d, **_: [ordered_keys(x if x.ndim > 1 else x.reshape(1, -1)) for x in d],
        ),
        "one key for all models": function(
            lambda d, *, keys, **rest: drawn(d, keys=jnp.broadcast_to(keys[:1], keys.shape), **rest)
        ),
        "never rescaled": function(lambda d, *, rescale, **rest: della(d, rescale=False, **rest)),
        "before and after swapped": sums(
            lambda d, **rest: (
                *(terms := della_sums(d, **rest))[d.shape[0] :],
                *terms[: d.shape[0]],
            )
        ),
        "place of the piece forgotten": function(lambda d, *, start=None, **rest: drawn(d, **rest)),
        "sums of the piece alone": alone(),
        "another normalize unless asked for": default("normalize", not normalize),
        "rescale off unless asked for": default("rescale", False),
        "epsilon is 0.1 unless set": default("epsilon", 0.1),
    }


ARCEE_FUSION: dict[str, Change] = {
    "base and model swapped": both(
        statistic("quartiles", terms=lambda b, x, **_: score_keys(x[0], b[None])),
        function(lambda b, x, **rest: arcee_fusion(x[0], b[None], **rest)),
    ),
    "the others taken": function(lambda b, x, **rest: b + x[0] - arcee_fusion(b, x, **rest)),
    "an element at the bound left": function(
        lambda b, x, **rest: jnp.where(score(b, x[0]) > 0, arcee_fusion(b, x, **rest), b)
    ),
    "one spread above the median": inside("arcee_fusion.SPREADS", 1.0),
    "quartiles off by one": statistic(
        "quartiles",
        counts=lambda hyperparameters, size, found: [
            [max(size - 1, 0) - int(part * (size - 1)) for part in (0.25, 0.5, 0.75)]
        ],
    ),
    "deciles for quartiles": statistic(
        "quartiles",
        counts=lambda hyperparameters, size, found: [
            [size - int(part * (size - 1)) for part in (0.1, 0.5, 0.9)]
        ],
    ),
    "the change alone": inside("arcee_fusion.score", lambda b, x: jnp.abs(x - b)),
    "the divergence alone": inside(
        "arcee_fusion.score", lambda b, x: score(b, x) / jnp.maximum(jnp.abs(x - b), 1e-30)
    ),
    "the divergence the other way": inside("arcee_fusion.score", lambda b, x: score(x, b)),
    "one softmax of the whole tensor": inside(
        "arcee_fusion.score", lambda b, x: score(b.reshape(-1), x.reshape(-1)).reshape(b.shape)
    ),
    "quartiles of the piece alone": alone("quartiles"),
    "quartiles of the changes": statistic(
        "quartiles", terms=lambda b, x, **_: [ordered_keys(jnp.abs(x[0] - b))]
    ),
}


def unerased(
    delta: jax.Array,
    *,
    sums: jax.Array,
    chosen: Threshold | None = None,
    start: jax.Array | None = None,
    **_: Any,
) -> jax.Array:
    """SCE without its last step: the weighted mean of what is selected."""
    selected = select(delta, chosen, start)
    return weighted_sum(sums / jnp.maximum(sum_models(sums), 1e-30), selected)


SCE: dict[str, Change] = {
    "sign flipped": negative(sce),
    "equal weights": function(
        lambda d, *, sums, size, **rest: sce(
            d, sums=jnp.ones_like(sums), size=jnp.ones_like(size), **rest
        )
    ),
    "weighed by the norms": function(
        lambda d, *, sums, **rest: sce(d, sums=jnp.sqrt(sums), **rest)
    ),
    "weighed by the rest": sums(lambda d, **_: [x * x for x in d]),
    "nothing erased": function(lambda d, **rest: unerased(d, **rest)),
    "nothing selected": function(lambda d, *, chosen=None, **rest: sce(d, **rest)),
    "one more selected": one_more("sce", "chosen"),
    "selected by the range": inside(
        "sce.variance", lambda d: jnp.max(d, axis=0) - jnp.min(d, axis=0)
    ),
    "selected by the mean square": inside("sce.variance", lambda d: sum_models(d * d)),
    "place of the piece forgotten": function(lambda d, *, start=None, **rest: sce(d, **rest)),
    "sums of the piece alone": alone(),
    "select_topk is 0.9 unless set": default("select_topk", 0.9),
}

CABS: dict[str, Change] = {
    "sign flipped": negative(cabs),
    "weights dropped": function(
        lambda d, *, weight, **rest: cabs(d, weight=jnp.ones_like(weight), **rest)
    ),
    "lambda ignored": function(lambda d, *, scale, **rest: cabs(d, scale=scale / scale, **rest)),
    "one more kept": function(lambda d, *, n, **rest: cabs(d, n=n + 1, **rest)),
    "no turns": function(
        lambda d, *, weight, **rest: sum_models(
            [cabs(d[i : i + 1], weight=weight[i : i + 1], **rest) for i in range(d.shape[0])]
        )
    ),
    "the last model first": function(
        lambda d, *, weight, **rest: cabs(d[::-1], weight=weight[::-1], **rest)
    ),
    "blocks twice as long": function(lambda d, *, m, **rest: cabs(d, m=2 * m, **rest)),
    "blocks of each row": inside(
        "cabs.largest_of_blocks",
        lambda change, n, m: jax.vmap(lambda row: largest_of_blocks(row, n, m))(
            change.reshape(-1, change.shape[-1])
        ).reshape(change.shape),
    ),
    "the last of equals": inside(
        "cabs.largest_of_blocks",
        lambda change, n, m: largest_of_blocks(
            jnp.pad(change.reshape(-1), (0, -change.size % m))[::-1], n, m
        )[::-1][: change.size].reshape(change.shape),
    ),
    "weight is 2 unless set": default("weight", 2.0),
    "n is 32 unless set": default("n", 32.0),
    "m is 128 unless set": default("m", 128),
}

PCB: dict[str, Change] = {
    "sign flipped": negative(pcb),
    "weights dropped": function(
        lambda d, *, weight, **rest: pcb(d, weight=jnp.ones_like(weight), **rest)
    ),
    "lambda ignored": function(lambda d, *, scale, **rest: pcb(d, scale=scale / scale, **rest)),
    "rho drops out": statistic(
        "levels",
        counts=lambda hyperparameters, size, found: level_counts(
            {**hyperparameters, "rho": 1 - hyperparameters["rho"]}, size, found
        ),
    ),
    "tails ignored": inside("pcb.TAIL", 0.0),
    "tails off by one": statistic(
        "spans",
        counts=lambda hyperparameters, size, found: (
            [[max(size - 1 - int(part * (size - 1)), 0) for part in (1e-4, 1 - 1e-4)]]
            * len(hyperparameters["weight"])
        ),
    ),
    "one more competes": one_more("pcb", "levels"),
    "agreement ignored": inside(
        "pcb.scores",
        lambda d, spans: [
            jnp.abs(s / jnp.tanh(x * sum_models(d)))
            for s, x in zip(pcb_scores(d, spans), d, strict=True)
        ],
    ),
    "size ignored": inside("pcb.scores", lambda d, spans: [jnp.tanh(x * sum_models(d)) for x in d]),
    "not to the power of the models": inside(
        "pcb.scores",
        lambda d, spans: [
            jnp.tanh(t) * jnp.abs(s / jnp.tanh(t)) ** (1 / d.shape[0])
            for s, t in zip(pcb_scores(d, spans), d * sum_models(d)[None], strict=True)
        ],
    ),
    "divided by the models": function(
        lambda d, *, weight, **rest: pcb(d, weight=weight / weight.size, **rest)
    ),
    "all compete": statistic(
        "levels",
        counts=lambda hyperparameters, size, found: [[size, 1]] * len(hyperparameters["weight"]),
    ),
    "bounds of the piece alone": alone("spans", "levels"),
    "levels of the piece alone": alone("levels"),
    "levels of magnitudes": statistic("levels", terms=lambda d, **_: change_keys(d)),
    "lambda is 1 unless set": default("lambda", 1.0),
    "weight is 2 unless set": default("weight", 2.0),
    "rho is 0.2 unless set": default("rho", 0.2),
}

LOCALIZE_STITCH: dict[str, Change] = {
    "sign flipped": negative(localize_stitch),
    "everything kept": function(
        lambda d, *, keep, **rest: localize_stitch(d, keep=keeping_all(keep), **rest)
    ),
    "one more kept": one_more("localize_stitch", "keep"),
    "claims added up": function(
        lambda d, *, keep, start=None: sum_models(drop_small(d, keep, start))
    ),
    "averaged over all models": function(
        lambda d, *, keep, start=None: sum_models(drop_small(d, keep, start)) / d.shape[0]
    ),
    "the last claim holds": function(
        lambda d, *, keep, start=None: reduce(
            lambda found, kept: jnp.where(kept != 0, kept, found),
            drop_small(d, keep, start),
        )
    ),
    "place of the piece forgotten": function(
        lambda d, *, start=None, **rest: localize_stitch(d, **rest)
    ),
    "density is 0.1 unless set": default("density", 0.1),
}

SPARSE = {
    "ties": TIES,
    "dare_linear": dare_variants(dare_linear),
    "dare_ties": dare_variants(dare_ties),
    "breadcrumbs": breadcrumbs_variants(breadcrumbs),
    "breadcrumbs_ties": breadcrumbs_variants(breadcrumbs_ties),
    "della": della_variants(della, normalize=True),
    "della_linear": della_variants(della_linear, normalize=False),
    "arcee_fusion": ARCEE_FUSION,
    "sce": SCE,
    "cabs": CABS,
    "pcb": PCB,
    "localize_stitch": LOCALIZE_STITCH,
}
