"""What random methods do on the average, against the statistics that MergeKit's own draws gave."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import CONFORMANCE

from jmerge.methods import REGISTRY, apply
from jmerge.methods.random import make_key
from jmerge.methods.streams import stream_of
from jmerge.testing.examples import draw
from jmerge.testing.ways import by_hand

FACTS: dict[str, Any] = json.loads((CONFORMANCE / "methods_f32.json").read_text())
INDEX = np.arange(4096)
# as the file describes it: every magnitude once, with signs in turn
DELTA = ((-1.0) ** INDEX * ((INDEX * 2503) % 4096 + 1) / 4096).astype(np.float32).reshape(64, 64)


def drawn(fact: dict[str, Any]) -> np.ndarray:
    """What the method makes of the change of one model [draws, 64, 64], with its weight 1."""
    method = REGISTRY[fact["method"]]
    own: dict[str, Any] = {"weight": (1.0,), "density": (fact["density"],), "lambda": 1.0}
    if "epsilon" in fact:
        own["epsilon"] = (fact["epsilon"],)
    own["normalize"] = bool(method.parameters["normalize"].default)
    own["rescale"] = fact["rescale"]
    merge = partial(apply, method, (jnp.asarray(DELTA)[None],), own)
    keys = np.asarray(
        [[make_key(seed, stream_of("delta"), 0)] for seed in range(fact["draws"])], np.uint32
    )
    return np.asarray(jax.jit(jax.vmap(lambda key: merge(keys=key)))(keys))


@pytest.mark.parametrize("fact", FACTS["random_cases"], ids=lambda fact: fact["id"])
def test_random_facts(fact: dict[str, Any]) -> None:
    """Means of as many draws as the file's are as near to them as chance allows (five standard errors of both)."""
    merged = drawn(fact).astype(np.float64)
    kept = merged != 0
    shares = kept.mean(axis=(1, 2))
    error = np.sqrt(2 * fact["kept_fraction_sd"] ** 2 / fact["draws"])
    assert abs(shares.mean() - fact["kept_fraction_mean"]) < 5 * error
    assert shares.std() == pytest.approx(fact["kept_fraction_sd"], rel=0.25)
    factors = np.array(
        [(each[on] / DELTA[on]).mean() for each, on in zip(merged, kept, strict=True)]
    )
    error = np.sqrt(2 * fact["factor_sd"] ** 2 / fact["draws"])
    assert abs(factors.mean() - fact["factor_mean"]) <= 5 * error + 1e-5
    ratios = np.abs(merged).sum(axis=(1, 2)) / np.abs(DELTA).sum()
    if fact["rescale"]:
        np.testing.assert_allclose(ratios, 1, rtol=1e-5)
    else:
        middle = (fact["l1_ratio_min"] + fact["l1_ratio_max"]) / 2
        width = fact["l1_ratio_max"] - fact["l1_ratio_min"]
        assert (np.abs(ratios - middle) < width).all()
    slope = (merged.mean(axis=0) * DELTA).sum() / (DELTA.astype(np.float64) ** 2).sum()
    assert slope == pytest.approx(fact["expectation_slope"], abs=0.02)
    if "keep_frequency_by_rank_quarter" in fact:
        ranks = np.argsort(np.argsort(np.abs(DELTA), axis=1), axis=1)
        for quarter, wanted in enumerate(fact["keep_frequency_by_rank_quarter"]):
            chosen = ranks // 16 == quarter
            assert kept[:, chosen].mean() == pytest.approx(wanted, abs=0.006)


def test_fusion_takes_the_share_that_sampled_quantiles_take() -> None:
    """MergeKit draws a million of more elements for its quantiles, we take all; the share taken over is the same."""
    shares = FACTS["fusion_sampling_fact"]["selected_fraction"]
    inputs = draw((1100, 1000), 1, True, 0.1)
    assert inputs.base is not None
    merged = by_hand(REGISTRY["arcee_fusion"], inputs, {})
    taken = (merged != inputs.base).mean()
    assert min(shares) - 0.002 < taken < max(shares) + 0.002
