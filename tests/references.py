"""The merge methods in plain float64 numpy, written from papers and formulas; nothing of jmerge is used here.

Each takes models [models, *shape], the base [*shape] or None, and the numbers that a recipe sets, by their names
there; defaults are those of MergeKit 0.1.5. It gives the merged tensor, base and all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np


def each(values: tuple[float, ...], models: np.ndarray) -> np.ndarray:
    """One number a model, shaped to multiply models [models, *shape]."""
    return np.reshape(np.asarray(values, np.float64), (-1, *[1] * (models.ndim - 1)))


def linear(models: np.ndarray, base: None, hyperparameters: Mapping[str, Any]) -> np.ndarray:
    """sum w_m X_m, divided by sum w_m under `normalize` (default true)."""
    result = (each(hyperparameters["weight"], models) * models).sum(axis=0)
    return (
        result / sum(hyperparameters["weight"])
        if hyperparameters.get("normalize", True)
        else result
    )


def slerp(models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]) -> np.ndarray:
    """[sin((1-t) a) B + sin(t a) C] / sin a for the angle a between B and C; a straight line where |cos a| > 0.9995.

    A norm up to 1e-8 counts as 1.
    """
    (model,), t = models, hyperparameters["t"]
    norms = [np.sqrt((tensor**2).sum()) for tensor in (base, model)]
    first, second = (norm if norm > 1e-8 else 1.0 for norm in norms)
    cosine = np.clip((base / first * (model / second)).sum(), -1, 1)
    if abs(cosine) > 0.9995:
        return (1 - t) * base + t * model
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * base + np.sin(t * angle) * model) / np.sin(angle)


def task_arithmetic(
    models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]
) -> np.ndarray:
    """B + lambda sum w_m (X_m - B); the sum is divided by sum w_m under `normalize` (default false), unless that is
    nearer to zero than 1e-8."""
    change = (each(hyperparameters["weight"], models) * (models - base)).sum(axis=0)
    share = sum(hyperparameters["weight"])
    if hyperparameters.get("normalize", False) and abs(share) >= 1e-8:
        change = change / share
    return base + hyperparameters.get("lambda", 1.0) * change


def passthrough(models: np.ndarray, base: None, hyperparameters: Mapping[str, Any]) -> np.ndarray:
    """The only model X, or scale X where `scale` is set."""
    (model,), scale = models, hyperparameters.get("scale")
    return model if scale is None else scale[0] * model


def largest(change: np.ndarray, density: tuple[float, ...]) -> np.ndarray:
    """The trunc(density n) largest of each model's changes, one at least of a positive share; equal ones by place."""
    kept = np.zeros_like(change)
    flat, out = change.reshape(len(change), -1), kept.reshape(len(change), -1)
    for i, share in enumerate(density):
        count = 0 if share <= 0 else min(flat.shape[1], max(1, int(share * flat.shape[1])))
        chosen = np.argsort(-np.abs(flat[i]), kind="stable")[:count]
        out[i][chosen] = flat[i][chosen]
    return kept


def restored(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """What is left of each model's changes, times what gives it the L1 norm it had; norms below 1e-7 stay."""
    axes = tuple(range(1, before.ndim))
    norms = [np.abs(changes).sum(axis=axes, keepdims=True) for changes in (before, after)]
    usable = np.minimum(*norms) >= 1e-7
    return after * np.where(usable, norms[0] / np.where(usable, norms[1], 1), 1)


def agreed(change: np.ndarray, weight: tuple[float, ...], normalize: bool) -> np.ndarray:
    """sum of the w_m D_m that have the sign of sum w_m D_m (zero counts as positive); divided by their sum of w_m."""
    votes = each(weight, change) * change
    agree = np.sign(votes) == np.where(votes.sum(axis=0) >= 0, 1, -1)
    merged, share = ((agree * values).sum(axis=0) for values in (votes, each(weight, change)))
    return merged / np.where(share == 0, 1, share) if normalize else merged


def ties(models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]) -> np.ndarray:
    """B + lambda times what agrees of the largest changes; normalize defaults to true, rescale to false."""
    weight, change = hyperparameters["weight"], models - base
    kept = largest(change, hyperparameters.get("density", (1.0,) * len(weight)))
    kept = restored(change, kept) if hyperparameters.get("rescale", False) else kept
    return base + hyperparameters.get("lambda", 1.0) * agreed(
        kept, weight, hyperparameters.get("normalize", True)
    )


def bits(key: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """mix(mix(i ^ k0) + k1), for every flat index i below 2^32 of a tensor."""

    def mix(x: np.ndarray) -> np.ndarray:
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
        return x ^ (x >> np.uint32(16))

    index = np.arange(np.prod(shape, dtype=int), dtype=np.uint32)
    return mix(mix(index ^ key[0]) + key[1]).reshape(shape)


def uniform(key: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The upper 24 bits as a number in [0, 1)."""
    return (bits(key, shape) >> np.uint32(8)) * 2.0**-24


def dropped(change: np.ndarray, hyperparameters: Mapping[str, Any], keys: np.ndarray) -> np.ndarray:
    """DARE: each change kept with chance `density`, and the norms restored unless `rescale` is false."""
    chance = each(hyperparameters.get("density", (1.0,) * len(change)), change)
    drawn = np.stack([uniform(key, change.shape[1:]) for key in keys])
    kept = np.where(drawn < chance, change, 0)
    return restored(change, kept) if hyperparameters.get("rescale", True) else kept


def dare_linear(
    models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any], keys: np.ndarray
) -> np.ndarray:
    """Task arithmetic of what is left of the changes."""
    return task_arithmetic(
        base + dropped(models - base, hyperparameters, keys), base, hyperparameters
    )


def dare_ties(
    models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any], keys: np.ndarray
) -> np.ndarray:
    """B + lambda times what agrees of what is left of the changes; normalize defaults to false."""
    kept = dropped(models - base, hyperparameters, keys)
    merged = agreed(kept, hyperparameters["weight"], hyperparameters.get("normalize", False))
    return base + hyperparameters.get("lambda", 1.0) * merged


# The other methods of MergeKit


def given(
    hyperparameters: Mapping[str, Any], name: str, default: float, models: np.ndarray
) -> tuple[float, ...]:
    """One number for each model; a single number is everybody's."""
    value = hyperparameters.get(name, default)
    return tuple(value) if isinstance(value, tuple | list) else (value,) * len(models)


def nuslerp(
    models: np.ndarray, base: np.ndarray | None, hyperparameters: Mapping[str, Any]
) -> np.ndarray:
    """Slerp of two models, or of their changes, along the whole tensor, its last axis or (`nuslerp_row_wise`) its first.

    MergeKit's NuSLERP; the cosine is of vectors divided by max(norm, 1e-7). Parallel vectors, and opposite ones up to
    sin^2 = 1e-6, are interpolated linearly. The share of the second is w2 / (w1 + w2), a half where |w1 + w2| < 1e-6.
    """
    first, second = given(hyperparameters, "weight", 1.0, models)
    share = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
    shape = models.shape[1:]
    vectors = models if base is None else models - base
    if hyperparameters.get("nuslerp_flatten", True) or not shape:
        vectors, axis = vectors.reshape(2, vectors[0].size), -1
    else:
        axis = 0 if hyperparameters.get("nuslerp_row_wise", False) else -1
    a, b = vectors

    def dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x * y).sum(axis=axis, keepdims=True)

    cosine = dot(*(v / np.maximum(np.sqrt(dot(v, v)), 1e-7) for v in (a, b))).clip(-1, 1)
    arc = 1 - cosine**2 > np.where(cosine < 0, 1e-6, 1e-16)
    angle = np.arccos(np.where(arc, cosine, 0))
    start = np.where(arc, np.sin((1 - share) * angle) / np.sin(angle), 1 - share)
    end = np.where(arc, np.sin(share * angle) / np.sin(angle), share)
    merged = (start * a + end * b).reshape(shape)
    return merged if base is None else base + merged


def multislerp(
    models: np.ndarray, base: np.ndarray | None, hyperparameters: Mapping[str, Any]
) -> np.ndarray:
    """Step from the direction of sum w_m U_m along the mean of the parts of U_m orthogonal to it, times sum w_m |X_m|.

    Goddard, the Multi-SLERP post at goddard.blog. With a base, of the changes. One model comes back as it
    is. Where the units cancel: two models, or no base, the weighted sum; else the base. Weights whose sum is nearer to
    zero than 1e-8 stay as they are.
    """
    if len(models) == 1:
        return models[0]
    origin = np.zeros(models.shape[1:]) if base is None else base
    vectors = (models - origin).reshape(len(models), origin.size)
    weight, eps = (
        np.array(given(hyperparameters, "weight", 1.0, models)),
        hyperparameters.get("eps", 1e-8),
    )
    if hyperparameters.get("normalize_weights", True) and abs(weight.sum()) >= 1e-8:
        weight = weight / weight.sum()
    norms = np.sqrt((vectors**2).sum(axis=1))
    divisors = norms + eps
    units = vectors / np.where(divisors == 0, 1, divisors)[:, None]
    mean = weight @ units
    length = np.sqrt((mean**2).sum())
    if length < eps or length == 0:
        fallback = weight @ vectors if len(models) == 2 or base is None else np.zeros(origin.size)
        return origin + fallback.reshape(origin.shape)
    mean = mean / length
    tangent = weight @ (units - (units @ mean)[:, None] * mean)
    step = np.sqrt((tangent**2).sum()) + eps
    direction = np.cos(step) * mean + np.sinc(step / np.pi) * tangent
    return origin + (weight @ norms * direction).reshape(origin.shape)


def karcher(models: np.ndarray, base: None, hyperparameters: Mapping[str, Any]) -> np.ndarray:
    """Riemannian centre of mass of the directions, times the mean norm (https://en.wikipedia.org/wiki/Karcher_mean).

    Norms up to `tol` have no direction but count in the mean norm. A direction opposite to the centre, up to
    sin^2 = 1e-6, says nothing on where to go and is left out of that step.
    """
    if len(models) == 1:
        return models[0]
    rounds, tol = hyperparameters.get("max_iter", 10), hyperparameters.get("tol", 1e-5)
    vectors = models.reshape(len(models), models[0].size)
    norms = np.sqrt((vectors**2).sum(axis=1))
    units = [vector / norm for vector, norm in zip(vectors, norms, strict=True) if norm > tol]
    if not units:
        return np.zeros(models.shape[1:])
    centre = sum(units) / len(units)
    length = np.sqrt((centre**2).sum())
    centre = units[0] if length < tol or length == 0 else centre / length
    for _ in range(int(rounds)):
        tangent = np.zeros_like(centre)
        for unit in units:
            cosine = np.clip((centre * unit).sum(), -1, 1)
            angle = np.arccos(cosine)
            if angle < tol or angle == 0 or (cosine < 0 and 1 - cosine**2 <= 1e-6):
                continue
            tangent += angle / np.sin(angle) * (unit - cosine * centre) / len(units)
        step = np.sqrt((tangent**2).sum())
        if step < tol or step == 0:
            break
        centre = np.cos(step) * centre + np.sin(step) * tangent / step
        length = np.sqrt((centre**2).sum())
        centre = centre / length if length > tol else centre
    return (norms.mean() * centre).reshape(models.shape[1:])


def merged_changes(
    base: np.ndarray,
    change: np.ndarray,
    kept: np.ndarray,
    hyperparameters: Mapping[str, Any],
    *,
    vote: bool,
    normalize: bool,
    rescale: bool,
) -> np.ndarray:
    """B + lambda times the sum of what is kept of the changes, or of what agrees of it; with these defaults."""
    kept = restored(change, kept) if hyperparameters.get("rescale", rescale) else kept
    hyperparameters = {**hyperparameters, "normalize": hyperparameters.get("normalize", normalize)}
    hyperparameters["weight"] = given(hyperparameters, "weight", 1.0, change)
    if not vote:
        return task_arithmetic(base + kept, base, hyperparameters)
    merged = agreed(kept, hyperparameters["weight"], hyperparameters["normalize"])
    return base + hyperparameters.get("lambda", 1.0) * merged


def below(rows: np.ndarray, side: Literal["left", "right"]) -> np.ndarray:
    """How many elements of its row, along axis 1, each is larger than; right: or equal to, itself included."""
    lines = np.moveaxis(rows, 1, -1)
    counts = np.empty(lines.shape, np.int64)
    for place in np.ndindex(lines.shape[:-1]):
        counts[place] = np.searchsorted(np.sort(lines[place]), lines[place], side)
    return np.moveaxis(counts, -1, 1)


def thinned(
    change: np.ndarray, hyperparameters: Mapping[str, Any], uniforms: np.ndarray, tossed: np.ndarray
) -> np.ndarray:
    """DELLA's MagPrune: each change kept where its uniform number is below a chance that grows with its rank.

    Ranks r = 0..n-1 of the magnitudes along axis 1 (a vector is one row), of equal ones the highest where 1 was tossed
    and else the lowest; chance density - epsilon + 2 epsilon r / (n-1), and density where n = 1. Density 1 keeps all,
    density 0 nothing.
    """
    kept = np.zeros_like(change)
    density, epsilon = (
        given(hyperparameters, "density", 1.0, change),
        given(hyperparameters, "epsilon", 0.15, change),
    )
    for i, model in enumerate(change):
        rows = np.abs(model if model.ndim > 1 else model.reshape(1, model.size))
        last = rows.shape[1] - 1
        rank = np.where(
            tossed[i].reshape(rows.shape), below(rows, "right") - 1, below(rows, "left")
        )
        rank = rank.reshape(model.shape)
        chance: Any = density[i] - epsilon[i] + 2 * epsilon[i] * (rank / last if last > 0 else 0.5)
        chance = chance if 0 < density[i] < 1 else np.full(model.shape, density[i])
        kept[i] = np.where(uniforms[i] < chance, model, 0)
    return kept


def drawn(keys: np.ndarray, change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of `uniform` for each model [models, *shape], and the lowest bits that it leaves."""
    shape = change.shape[1:]
    uniforms = np.array([uniform(key, shape) for key in keys]).reshape(change.shape)
    return uniforms, np.array([bits(key, shape) & 1 for key in keys]).reshape(change.shape)


def della(
    models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any], keys: np.ndarray
) -> np.ndarray:
    """What agrees of the changes that are left (https://arxiv.org/abs/2406.11617); normalize and rescale default to
    true."""
    change = models - base
    kept = thinned(change, hyperparameters, *drawn(keys, change))
    return merged_changes(
        base, change, kept, hyperparameters, vote=True, normalize=True, rescale=True
    )


def della_linear(
    models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any], keys: np.ndarray
) -> np.ndarray:
    """The sum of the changes that DELLA leaves; rescale defaults to true."""
    change = models - base
    kept = thinned(change, hyperparameters, *drawn(keys, change))
    return merged_changes(
        base, change, kept, hyperparameters, vote=False, normalize=False, rescale=True
    )


def middling(change: np.ndarray, hyperparameters: Mapping[str, Any]) -> np.ndarray:
    """Model Breadcrumbs (https://arxiv.org/abs/2312.06795): without the trunc(gamma n) largest of each model's changes,
    the next trunc(density n), equal ones by place.

    Fewer are dropped where not enough would be left; density 1 keeps all.
    """
    kept = np.zeros_like(change)
    density, gamma = (
        given(hyperparameters, "density", 1.0, change),
        given(hyperparameters, "gamma", 0.01, change),
    )
    for i, model in enumerate(change):
        flat, out = model.reshape(-1), np.zeros(model.size)
        target = max(0, min(flat.size, int(density[i] * flat.size)))
        top = max(0, min(int(gamma[i] * flat.size), flat.size - target))
        chosen = np.argsort(-np.abs(flat), kind="stable")[top : top + target]
        out[chosen] = flat[chosen]
        kept[i] = out.reshape(model.shape)
    return kept


def breadcrumbs(
    models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]
) -> np.ndarray:
    """The sum of the middling changes."""
    change = models - base
    kept = middling(change, hyperparameters)
    return merged_changes(
        base, change, kept, hyperparameters, vote=False, normalize=False, rescale=False
    )


def breadcrumbs_ties(
    models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]
) -> np.ndarray:
    """What agrees of the middling changes; normalize defaults to false."""
    change = models - base
    kept = middling(change, hyperparameters)
    return merged_changes(
        base, change, kept, hyperparameters, vote=True, normalize=False, rescale=False
    )


def model_stock(
    models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]
) -> np.ndarray:
    """t mean(X) + (1-t) B, t = N c / (1 + (N-1) c), c the mean cosine of two changes (https://arxiv.org/abs/2403.19522).

    Of the whole tensor, or of each vector along the last axis under `filter_wise`; a product of norms counts as 1e-6
    at least, and t = 0 where |1 + (N-1) c| < 1e-6.
    """
    count, shape = len(models), base.shape
    if count < 2:
        return base
    wide = shape[-1] if hyperparameters.get("filter_wise", False) and base.ndim > 1 else base.size
    rows = base.size // wide if wide else 0
    change = (models - base).reshape(count, rows, wide)
    cosines = []
    for i in range(count):
        for j in range(i + 1, count):
            norms = [np.sqrt((change[k] ** 2).sum(axis=-1)) for k in (i, j)]
            dots = (change[i] * change[j]).sum(axis=-1)
            cosines.append((dots / np.maximum(norms[0] * norms[1], 1e-6)).clip(-1, 1))
    cosine = np.mean(cosines, axis=0)[:, None]
    below = 1 + (count - 1) * cosine
    usable = np.abs(below) >= 1e-6
    t = np.where(usable, count * cosine / np.where(usable, below, 1), 0)
    origin = base.reshape(rows, wide)
    return (t * (origin + change.mean(axis=0)) + (1 - t) * origin).reshape(shape)


def nearswap(
    models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]
) -> np.ndarray:
    """g X + (1-g) B with g = t / max(|X - B|, 1e-6), cut to [0, 1]: near elements go over
    (https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001)."""
    (model,) = models
    near = np.clip(hyperparameters["t"] / np.maximum(np.abs(model - base), 1e-6), 0, 1)
    return near * model + (1 - near) * base


def quantile(values: np.ndarray, share: float) -> float:
    """The value at place trunc(share (n-1)) of all in ascending order, without interpolation."""
    return float(np.sort(values, axis=None)[int(share * (values.size - 1))])


def arcee_fusion(
    models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]
) -> np.ndarray:
    """The other model's element where its score is an outlier, else the base's: score |X - B| KL(softmax X, softmax B)
    of the row, at least median + 1.5 (third - first quartile). Arcee's mergekit blog; quartiles always exact."""
    (model,) = models
    if not base.size:
        return base
    rows = [
        tensor.reshape(-1, *tensor.shape[-1:]) if base.ndim else tensor.reshape(1, 1)
        for tensor in (model, base)
    ]
    lifted = [np.exp(row - row.max(axis=-1, keepdims=True)) for row in rows]
    p, q = (row / row.sum(axis=-1, keepdims=True) + 1e-8 for row in lifted)
    score = np.abs(rows[0] - rows[1]) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    low, middle, high = (quantile(score, share) for share in (0.25, 0.5, 0.75))
    taken = (score >= middle + 1.5 * (high - low)).reshape(base.shape)
    return np.where(taken, model, base)


def sce(models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]) -> np.ndarray:
    """Select, calculate, erase (https://arxiv.org/abs/2408.07990): keep the share `select_topk` of the elements that
    vary between models, weigh each model by its mean squared change, leave out what is against the sign of the sum.

    Elements that do not vary are never selected, so one model alone loses its change unless select_topk >= 1. Mean
    squares that sum to less than 1e-6 give equal weights.
    """
    share, change = hyperparameters.get("select_topk", 1.0), models - base
    if not change.size:
        return base
    if share < 1:
        varied = np.where(change.max(axis=0) == change.min(axis=0), 0, change.var(axis=0))
        count = max(0, int(np.count_nonzero(varied) * share))
        chosen = np.zeros(varied.size, bool)
        chosen[np.argsort(-varied, axis=None, kind="stable")[:count]] = True
        change = change * chosen.reshape(base.shape)
    squares = np.array([(model**2).mean() for model in change])
    even = abs(squares.sum()) < 1e-6
    weight = each(
        tuple(np.full(len(models), 1 / len(models)) if even else squares / squares.sum()), change
    )
    agree = np.sign(change) == np.where(change.sum(axis=0) >= 0, 1, -1)
    merged = (change * weight * agree).sum(axis=0)
    return base + merged / np.maximum((weight * agree).sum(axis=0), 1e-6)


def ram(models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]) -> np.ndarray:
    """Reinforced Agent Merging (https://arxiv.org/abs/2601.13572): a change above `epsilon` that is one model's alone
    is added in full, one of several models as their mean."""
    change = models - base
    active = np.abs(change) > hyperparameters.get("epsilon", 1e-5)
    return base + (change * active).sum(axis=0) / np.maximum(active.sum(axis=0), 1)


def ramplus_tl(
    models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]
) -> np.ndarray:
    """As `ram`, a model's own changes times 1 + r min(shared / own, alpha), the counts of its changes in this tensor."""
    epsilon, change = hyperparameters.get("epsilon", 1e-5), models - base
    r, alpha = hyperparameters.get("r", 0.1), hyperparameters.get("alpha", 0.2)
    active = np.abs(change) > epsilon
    claims = active.sum(axis=0)
    merged = np.zeros(base.shape)
    for model, mine in zip(change, active, strict=True):
        shared, own = (mine & (claims > 1)).sum(), (mine & (claims == 1)).sum()
        below = max(own, epsilon)
        ratio = shared / below if below > 0 else (np.inf if shared else 0.0)
        factor = 1 + r * np.clip(ratio, 0, alpha)
        merged = merged + np.where(mine, model, 0) * np.where(
            claims == 1, factor, 1 / np.maximum(claims, 1)
        )
    return base + merged


# Methods beyond MergeKit's


def magmax(models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]) -> np.ndarray:
    """B + lambda times the change of largest magnitude, the last of equal ones (https://arxiv.org/abs/2407.06322)."""
    change = models - base
    largest_yet = np.zeros(base.shape)
    for model in change:
        largest_yet = np.where(np.abs(model) >= np.abs(largest_yet), model, largest_yet)
    return base + hyperparameters.get("lambda", 0.5) * largest_yet


def negmerge(
    models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]
) -> np.ndarray:
    """B - lambda times the mean of the changes where they all have one sign (https://arxiv.org/abs/2410.05583)."""
    change = models - base
    if not len(change):
        return base
    one_sign = (change > 0).all(axis=0) | (change < 0).all(axis=0)
    return base - hyperparameters.get("lambda", 1.0) * np.where(one_sign, change.mean(axis=0), 0)


def emr(
    models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]
) -> list[np.ndarray]:
    """One result for each model: B plus what has its change's sign of one elected change, times what gives that the L1
    norm of its change (https://arxiv.org/abs/2405.17461).

    Elected: the largest magnitude among the changes of the sign of their sum, zero counting as negative. Whole models.
    """
    change = models - base
    sign = np.where(change.sum(axis=0) > 0, 1, -1)
    elected = np.max(np.where(np.sign(change) == sign, np.abs(change), 0), axis=0, initial=0) * sign
    results = []
    for model in change:
        masked = np.where(model * sign > 0, elected, 0)
        before, after = np.abs(model).sum(), np.abs(masked).sum()
        results.append(base + (before / after if after > 0 else 1.0) * masked)
    return results


def consensus(
    models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]
) -> np.ndarray:
    """B + lambda times those elements of S = sum D_m that `k` models claim, by |D_m| > mask_m |S - D_m|; all of them
    where there are fewer than k (TALL masks, https://arxiv.org/abs/2405.07813)."""
    change = models - base
    total = change.sum(axis=0)
    bound = each(given(hyperparameters, "mask", 0.4, change), change)
    claims = (np.abs(change) > bound * np.abs(total - change)).sum(axis=0)
    keep = claims >= min(hyperparameters.get("k", 2), len(models))
    return base + hyperparameters.get("lambda", 1.0) * np.where(keep, total, 0)


def lines_alpha(change: np.ndarray, merged: np.ndarray) -> float:
    """LiNeS' own alpha (https://arxiv.org/abs/2410.17146): |sum D_m| / (T |merged change|), L2 norms of whole models;
    1 where nothing is merged."""
    norms = [np.sqrt((tensor**2).sum()) for tensor in (change.sum(axis=0), merged)]
    return float(norms[0] / norms[1] / len(change)) if norms[1] > 0 else 1.0


def lines_scale(layer: int | None, layers: int, alpha: float, beta: float) -> float:
    """LiNeS' factor of a merged change in block `layer`: alpha + beta layer / (layers-1); alpha outside the blocks, and
    in an only one."""
    return alpha if layer is None or layers < 2 else alpha + beta * layer / (layers - 1)


def norm_factors(change: np.ndarray, kind: str, goal: str = "min") -> np.ndarray:
    """A factor for each model's change from its L2 norm n_m, over whole models; unchanged models take no part.

    none: 1. equalize: the smallest norm, or the mean norm, divided by n_m (DisTaC).
    metagpt: n_m^2 / sum n^2 (https://arxiv.org/abs/2406.11385). inverse_norm: 1/n_m / sum 1/n
    (https://arxiv.org/abs/2505.16148).
    """
    norms = np.array([np.sqrt((model**2).sum()) for model in change])
    factors, moved = np.ones(len(norms)), norms > 0
    if kind == "none" or not moved.any():
        return factors
    if kind == "equalize":
        factors[moved] = (np.min if goal == "min" else np.mean)(norms[moved]) / norms[moved]
        return factors
    powers = {"metagpt": norms[moved] ** 2, "inverse_norm": 1 / norms[moved]}[kind]
    factors[moved] = powers / powers.sum()
    return factors


def conditioned(
    models: np.ndarray,
    base: np.ndarray,
    hyperparameters: Mapping[str, Any],
    *,
    inner: Callable[..., np.ndarray],
    kind: str,
) -> np.ndarray:
    """A merge of changes scaled by `norm_factors`, of models of one tensor."""
    goal = "mean" if kind == "equalize_mean" else "min"
    change = models - base
    factors = norm_factors(change, kind.removesuffix("_mean"), goal)
    return inner(base + each(tuple(factors), change) * change, base, hyperparameters)


def at_the_first_block(
    models: np.ndarray,
    base: np.ndarray,
    hyperparameters: Mapping[str, Any],
    *,
    inner: Callable[..., np.ndarray],
) -> np.ndarray:
    """LiNeS around a merge where the depth is 0, of models of one tensor: the merged change times alpha."""
    merged = inner(models, base, hyperparameters) - base
    alpha = hyperparameters.get("lines.alpha")
    return base + (lines_alpha(models - base, merged) if alpha is None else alpha) * merged


def spread(values: np.ndarray) -> np.ndarray:
    """From 0 at the smallest to 1 at the largest; 0 where all are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def pcb(models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]) -> np.ndarray:
    """PCB-Merging (https://arxiv.org/abs/2410.02396): B + lambda sum s_m w_m D_m / sum s_m over whole models.

    Scores s_m in [0, 1] grow with a change's own magnitude and with its agreement with the sum; those outside the
    share `rho` of the highest are 0. Nothing changes where all scores are.
    """
    change = (models - base).reshape(len(models), base.size)
    if not change.size:
        return base
    scores = []
    for model in change:
        magnitude = np.abs(model)
        magnitude = magnitude.clip(quantile(magnitude, 1e-4), quantile(magnitude, 1 - 1e-4))
        score = np.exp(len(change) * spread(magnitude) ** 2) * np.tanh(model * change.sum(axis=0))
        scores.append(
            spread(np.maximum(score, quantile(score, 1 - hyperparameters.get("rho", 0.1))))
        )
    total = np.sum(scores, axis=0)
    weight = each(given(hyperparameters, "weight", 1.0, change), change)
    merged = (np.array(scores) * weight * change).sum(axis=0) / np.where(total > 0, total, 1)
    return base + hyperparameters.get("lambda", 1.2) * merged.reshape(base.shape)


def cabs(models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]) -> np.ndarray:
    """CABS (https://arxiv.org/abs/2503.01874): in turn, each model keeps the `n` largest of every `m` neighbours in
    memory of its changes where no earlier model has kept one; B + lambda sum of w_m times these.

    Equal ones by place; a change of zero is not kept; a last, shorter block keeps up to n as well.
    """
    keep, block = int(hyperparameters.get("n", 64)), hyperparameters.get("m", 256)
    change = (models - base).reshape(len(models), base.size)
    weight = given(hyperparameters, "weight", 1.0, change)
    used, merged = np.zeros(base.size, bool), np.zeros(base.size)
    for i, model in enumerate(change):
        free = np.where(used, 0, model)
        kept = np.zeros(base.size)
        for start in range(0, base.size, block):
            order = np.argsort(-np.abs(free[start : start + block]), kind="stable")[:keep]
            kept[start + order] = free[start + order]
        used |= kept != 0
        merged = merged + weight[i] * kept
    return base + hyperparameters.get("lambda", 1.0) * merged.reshape(base.shape)


def localize_stitch(
    models: np.ndarray, base: np.ndarray, hyperparameters: Mapping[str, Any]
) -> np.ndarray:
    """Localize-and-Stitch without data (https://arxiv.org/abs/2408.13656): B + the mean of the changes of those models
    that have the element among their trunc(density n) largest, over whole models. A change of zero claims nothing."""
    change = models - base
    if not change.size:
        return base
    kept = largest(change, given(hyperparameters, "density", 0.05, change))
    return base + kept.sum(axis=0) / np.maximum((kept != 0).sum(axis=0), 1)


def of_whole_models(
    reference: Callable[..., Any],
    models: Mapping[str, np.ndarray],
    base: Mapping[str, np.ndarray],
    hyperparameters: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """A reference that takes a model as one vector (emr, pcb, localize_stitch), for models of many tensors.

    models {name: [models, *shape]}, in the order of base {name: [*shape]}; for emr {name: [models, *shape]} again.
    """
    count = len(next(iter(models.values())))
    vectors = [models[name].reshape(count, tensor.size) for name, tensor in base.items()]
    origin = np.concatenate([tensor.reshape(-1) for tensor in base.values()])
    merged = np.asarray(reference(np.concatenate(vectors, axis=1), origin, hyperparameters))
    ends = np.cumsum([tensor.size for tensor in base.values()])[:-1]
    parts = np.split(merged, ends, axis=-1)
    return {
        name: part.reshape(part.shape[:-1] + tensor.shape)
        for part, (name, tensor) in zip(parts, base.items(), strict=True)
    }
