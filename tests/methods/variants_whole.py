"""Methods made wrong on purpose: those that use every element."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from variants import (
    Change,
    alone,
    both,
    coarse,
    default,
    function,
    inside,
    negative,
    replaced,
    statistic,
    sums,
)

from jmerge.methods.combine import sum_models, weighted_sum
from jmerge.methods.consensus import consensus
from jmerge.methods.emr import emr, emr_sums, masked_changes
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
    "t and 1 - t swapped": function(lambda b, x, *, t, sums: slerp(b, x, t=1 - t, sums=sums)),
    "base and model swapped": function(
        lambda b, x, *, t, sums: slerp(
            x[0], b[None], t=t, sums=jnp.stack([sums[1], sums[0], sums[2]])
        )
    ),
    "base ignored": function(lambda b, x, *, t, sums=None: t * x[0]),
    "model ignored": function(lambda b, x, *, t, sums=None: b),
    "a straight line": function(lambda b, x, *, t, sums=None: (1 - t) * b + t * x[0]),
    "t kept within 0 and 1": function(
        lambda b, x, *, t, sums: slerp(b, x, t=jnp.clip(t, 0, 1), sums=sums)
    ),
    "sign of the angle lost": function(
        lambda b, x, *, t, sums: slerp(b, x, t=t, sums=-jnp.abs(sums))
    ),
    "sums of the piece alone": alone(),
    "wrong terms": sums(lambda b, x, **_: (b * b, b * b, b * x[0])),
    "terms in another order": sums(lambda b, x, **_: slerp_sums(b, x)[::-1]),
    "in bfloat16": function(lambda b, x, *, t, sums: coarse(slerp(b, x, t=t, sums=sums))),
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
    "copied whatever the scale": replaced(
        lambda method: dataclasses.replace(method, copies=lambda hyperparameters: True)
    ),
}

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
    "sums of the piece alone": alone(),
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
    "sums of the piece alone": alone(),
    "weights as they are unless asked for": default("normalize_weights", False),
}

KARCHER: dict[str, Change] = {
    "sign flipped": negative(karcher),
    "the plain mean": function(lambda x, **_: sum_models(list(x)) / len(x)),
    "no steps": function(lambda x, *, max_iter, **rest: karcher(x, max_iter=0 * max_iter, **rest)),
    "first model only": function(lambda x, **_: x[0]),
    "sums of the piece alone": alone(),
}

MODEL_STOCK: dict[str, Change] = {
    "sign flipped": negative(model_stock),
    "the plain mean": function(lambda d, **_: sum_models(list(d)) / len(d)),
    "the base": function(lambda d, **_: jnp.zeros_like(d[0])),
    "first two models only": function(
        lambda d, *, sums=None, **rest: model_stock(
            d[:2],
            sums=None if sums is None else jnp.stack([sums[0], sums[1], sums[len(d)]]),
            **rest,
        )
    ),
    "sums of the piece alone": alone(),
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
    "always flattened": both(
        statistic("sums", when=lambda hyperparameters: True),
        replaced(
            lambda method: dataclasses.replace(method, unit=lambda hyperparameters: "element")
        ),
        function(lambda v, *, nuslerp_flatten, **rest: nuslerp(v, nuslerp_flatten=True, **rest)),
    ),
    "sums of the piece alone": alone(),
    "rows unless asked not to": default("nuslerp_flatten", False),
}


CONSENSUS: dict[str, Change] = {
    "sign flipped": negative(consensus),
    "lambda ignored": function(
        lambda d, *, scale, **rest: consensus(d, scale=scale / scale, **rest)
    ),
    "masks ignored": function(lambda d, *, mask, **rest: consensus(d, mask=0 * mask, **rest)),
    "masks reversed": function(lambda d, *, mask, **rest: consensus(d, mask=mask[::-1], **rest)),
    "more than k models": function(lambda d, *, k, **rest: consensus(d, k=k + 1, **rest)),
    "nothing where k is beyond the models": function(
        lambda d, *, k, **rest: consensus(d, k=k, **rest) * (k <= d.shape[0]).astype(d.dtype)
    ),
    "compared with the sum of all": function(
        lambda d, *, mask, k, scale: (
            scale
            * jnp.where(
                sum_models(
                    [
                        (jnp.abs(x) > m * jnp.abs(sum_models(d))).astype(d.dtype)
                        for x, m in zip(d, mask, strict=True)
                    ]
                )
                >= jnp.minimum(k, d.shape[0]),
                sum_models(d),
                0,
            )
        )
    ),
    "the mean for the sum": function(lambda d, **rest: consensus(d, **rest) / d.shape[0]),
    "k is 3 unless set": default("k", 3.0),
    "mask is 0.5 unless set": default("mask", 0.5),
}

EMR: dict[str, Change] = {
    "sign flipped": negative(emr),
    "no factors": function(
        lambda d, *, sums, **rest: emr(d, sums=jnp.ones(2 * d.shape[0], d.dtype), **rest)
    ),
    "all models' factor": function(
        lambda d, *, task=None, sums: emr(
            d, sums=jnp.repeat(jnp.sum(sums.reshape(2, -1), 1), d.shape[0]), task=task
        )
    ),
    "the mean is elected": inside(
        "emr.masked_changes",
        lambda d: [jnp.where(x * sum_models(d) > 0, sum_models(d) / d.shape[0], 0) for x in d],
    ),
    "the largest of either sign is elected": inside(
        "emr.masked_changes",
        lambda d: [
            jnp.where(
                x * sum_models(d) > 0, jnp.sign(sum_models(d)) * jnp.max(jnp.abs(d), axis=0), 0
            )
            for x in d
        ],
    ),
    "no masks": inside(
        "emr.masked_changes",
        lambda d, masked=masked_changes: [sum_models(masked(d))] * d.shape[0],
    ),
    "L2 norms": both(
        sums(lambda d, **_: [x * x for x in emr_sums(d)]),
        function(lambda d, *, task=None, sums: emr(d, sums=jnp.sqrt(sums), task=task)),
    ),
    "the first model's for all": function(
        lambda d, *, task, sums: emr(d, task=0 * task, sums=sums)
    ),
    "before and after swapped": sums(
        lambda d, **_: (*(terms := emr_sums(d))[d.shape[0] :], *terms[: d.shape[0]])
    ),
    "sums of the piece alone": alone(),
}

WHOLE = {
    "linear": LINEAR,
    "slerp": SLERP,
    "task_arithmetic": TASK_ARITHMETIC,
    "passthrough": PASSTHROUGH,
    "nearswap": NEARSWAP,
    "ram": RAM,
    "ramplus_tl": RAMPLUS,
    "magmax": MAGMAX,
    "negmerge": NEGMERGE,
    "multislerp": MULTISLERP,
    "karcher": KARCHER,
    "model_stock": MODEL_STOCK,
    "nuslerp": NUSLERP,
    "consensus": CONSENSUS,
    "emr": EMR,
}
