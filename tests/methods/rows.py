"""The table of laws: a row for every method of jmerge, and for some in wrappers."""

from __future__ import annotations

from functools import partial

import numpy as np
import references

from jmerge.testing.examples import Row

NO_DELTA = "it takes whole models, not changes from a base"
ONE_MODEL = "it takes one model (besides the base), so there is nothing to reorder"
RANDOM = "its random numbers go by the place of a model"

ROWS = {
    row.method: row
    for row in (
        Row(
            method="linear",
            reference=references.linear,
            hyperparameters=(
                {"weight": (0.3, 0.5, 0.33)},
                {"weight": (0.3, 0.5, 0.33), "normalize": False},
                {"weight": (1.2, -0.3, 0.1), "normalize": True},
                {"weight": (0.7,)},
                {"weight": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), "normalize": False},
            ),
            identity=(
                {"weight": (0.3, 0.5, 0.33)},
                {"weight": (0.3, 0.6, 0.1), "normalize": False},
                {"weight": (1.5, -0.5), "normalize": False},
            ),
            opt_out={"shift": NO_DELTA},
        ),
        Row(
            method="slerp",
            reference=references.slerp,
            hyperparameters=({"t": 0.3}, {"t": 0.0}, {"t": 1.0}, {"t": -0.25}, {"t": 1.4}),
            identity=({"t": 0.3}, {"t": 1.4}),
            opt_out={"shift": NO_DELTA, "order": ONE_MODEL},
        ),
        Row(
            method="task_arithmetic",
            reference=references.task_arithmetic,
            hyperparameters=(
                {"weight": (0.3, 0.5, 0.33)},
                {"weight": (0.3, 0.5, 0.33), "lambda": 0.7},
                {"weight": (0.3, 0.5, 0.33), "normalize": True},
                {"weight": (1.0, -0.4), "lambda": 1.8, "normalize": True},
                {"weight": (1.0, -1.0), "normalize": True},
                {"weight": (0.7,), "lambda": -0.5, "normalize": False},
            ),
            identity=(
                {"weight": (0.3, 0.6, 0.1)},
                {"weight": (0.3, 0.5, 0.33), "lambda": 1.0, "normalize": True},
            ),
        ),
        Row(
            method="passthrough",
            reference=references.passthrough,
            hyperparameters=({}, {"scale": (0.3,)}, {"scale": (-1.5,)}, {"scale": (0.0,)}),
            identity=({}, {"scale": (1.0,)}),
            opt_out={"shift": NO_DELTA, "order": ONE_MODEL},
        ),
        Row(
            method="ties",
            chooses=True,
            reference=references.ties,
            hyperparameters=(
                {"weight": (0.3, 0.5, 0.33), "density": (0.4, 0.5, 0.01)},
                {"weight": (0.3, 0.5), "density": (0.4, 0.0), "rescale": True, "lambda": 0.7},
                {"weight": (1.0, -0.4), "density": (0.5, 1.0), "normalize": False},
            ),
            identity=(
                {"weight": (0.3, 0.6, 0.1)},
                {"weight": (0.3, 0.6, 0.1), "normalize": False, "rescale": True},
            ),
        ),
        *(
            Row(
                method=method,
                reference=reference,
                hyperparameters=(
                    {"weight": (0.3, 0.5, 0.33), "density": (0.4, 0.5, 0.01)},
                    {"weight": (0.3, 0.5), "density": (0.4, 0.0), "rescale": False, "lambda": 0.7},
                    {"weight": (1.0, -0.4), "density": (0.5, 1.0), "normalize": True},
                ),
                identity=(
                    {"weight": (0.3, 0.6, 0.1)},
                    {"weight": (0.3, 0.5, 0.33), "normalize": True, "rescale": False},
                ),
                opt_out={"order": RANDOM},
            )
            for method, reference in (
                ("dare_linear", references.dare_linear),
                ("dare_ties", references.dare_ties),
            )
        ),
        *(
            Row(
                method=method,
                reference=reference,
                hyperparameters=(
                    {
                        "weight": (0.3, 0.5, 0.33),
                        "density": (0.4, 0.7, 0.01),
                        "gamma": (0.1, 0.2, 0.5),
                    },
                    {"weight": (0.3, 0.5), "density": (0.4, 0.0), "rescale": True, "lambda": 0.7},
                    {"weight": (1.0, -0.4), "density": (0.5, 1.0), "normalize": True},
                ),
                identity=({"weight": (0.3, 0.6, 0.1)},),
                chooses=True,
            )
            for method, reference in (
                ("breadcrumbs", references.breadcrumbs),
                ("breadcrumbs_ties", references.breadcrumbs_ties),
            )
        ),
        Row(
            method="nearswap",
            reference=references.nearswap,
            hyperparameters=({"t": 0.3}, {"t": 1e-5}, {"t": -0.2}),
            identity=({"t": 0.3},),
            opt_out={"shift": NO_DELTA, "order": ONE_MODEL},
        ),
        Row(
            method="ram",
            reference=references.ram,
            hyperparameters=({}, {"epsilon": 0.5}),
            identity=({},),
        ),
        Row(
            method="ramplus_tl",
            reference=references.ramplus_tl,
            hyperparameters=({"epsilon": 0.5}, {}, {"r": 0.7, "alpha": 50.0, "epsilon": 1.0}),
            identity=({},),
        ),
        Row(
            method="magmax",
            chooses=True,
            reference=references.magmax,
            hyperparameters=({}, {"lambda": 0.3}),
            identity=({"lambda": 1.0},),
            opt_out={
                "order": "of equally large changes the last is taken, so only ties depend on it"
            },
        ),
        Row(
            method="negmerge",
            reference=references.negmerge,
            hyperparameters=({}, {"lambda": -0.7}),
            identity=({"lambda": -1.0},),
        ),
        Row(
            method="multislerp",
            reference=references.multislerp,
            hyperparameters=(
                {"weight": (0.3, 0.5, 0.33)},
                {"weight": (0.3, 0.5), "normalize_weights": False},
                {"weight": (0.7,)},
                {"weight": (0.3, 0.5, -0.2), "eps": 0.01},
            ),
            identity=({"weight": (0.3, 0.6, 0.1)}, {"weight": (0.7,)}),
            opt_out={"shift": "without a base it takes whole models"},
        ),
        Row(
            method="karcher",
            reference=references.karcher,
            hyperparameters=({}, {"max_iter": 1.0}, {"tol": 0.01}),
            identity=({},),
            opt_out={"shift": NO_DELTA},
        ),
        Row(
            method="model_stock",
            reference=references.model_stock,
            hyperparameters=({}, {"filter_wise": True}),
            identity=({},),
            opt_out={"compiles": "it has no numbers"},
        ),
        Row(
            method="nuslerp",
            reference=references.nuslerp,
            hyperparameters=(
                {"weight": (0.3, 0.5)},
                {"weight": (0.3, 0.5), "nuslerp_flatten": False},
                {"weight": (1.0, -1.0)},
                {"weight": (1.5, -0.5), "nuslerp_flatten": True},
            ),
            identity=({"weight": (0.3, 0.5)}, {"weight": (0.3, 0.5), "nuslerp_flatten": False}),
            opt_out={
                "shift": "without a base it takes whole models",
                "order": "its two models have parts of their own",
            },
        ),
        *(
            Row(
                method=method,
                reference=reference,
                hyperparameters=(
                    {
                        "weight": (0.3, 0.5, 0.33),
                        "density": (0.4, 0.5, 0.7),
                        "epsilon": (0.1, 0.3, 0.05),
                    },
                    {"weight": (0.3, 0.5), "density": (0.4, 0.0), "rescale": False, "lambda": 0.7},
                    {"weight": (1.0, -0.4), "density": (0.5, 1.0), "normalize": not usual},
                ),
                identity=(
                    {"weight": (0.3, 0.6, 0.1)},
                    {"weight": (0.3, 0.5, 0.33), "normalize": True, "rescale": False},
                ),
                opt_out={"order": RANDOM},
            )
            for method, reference, usual in (
                ("della", references.della, True),
                ("della_linear", references.della_linear, False),
            )
        ),
        Row(
            method="arcee_fusion",
            reference=references.arcee_fusion,
            hyperparameters=({},),
            identity=({},),
            opt_out={"shift": NO_DELTA, "order": ONE_MODEL, "compiles": "it has no numbers"},
        ),
        Row(
            method="sce",
            reference=references.sce,
            hyperparameters=({"select_topk": 0.4}, {}, {"select_topk": 0.0}),
            identity=({},),
        ),
        Row(
            method="consensus",
            reference=references.consensus,
            hyperparameters=(
                {"lambda": 0.3},
                {"mask": (0.8, 3.0, 1.5), "k": 1.0},
                {"mask": (0.6, 0.6), "k": 7.0},
            ),
            identity=({"lambda": 1 / 3},),
        ),
        Row(
            method="cabs",
            chooses=True,
            reference=references.cabs,
            hyperparameters=(
                {"weight": (0.3, 0.5, 0.33), "n": 4.0, "m": 16, "lambda": 0.7},
                {},
            ),
            identity=({"weight": (1.0, 0.5, 0.2), "n": 256.0},),
            opt_out={"order": "its models take turns"},
        ),
        Row(
            method="pcb",
            reference=references.pcb,
            # at other shares two models have scores so near the least that counts that float32 blurs their ratio
            hyperparameters=(
                {"weight": (0.3, 0.5, 0.33), "rho": 0.05},
                {"weight": (0.7, 1.2), "rho": 0.5, "lambda": 0.7},
                {},
            ),
            opt_out={"equal_inputs": "the least of the changes never counts"},
        ),
        Row(
            method="localize_stitch",
            chooses=True,
            reference=references.localize_stitch,
            hyperparameters=({"density": (0.4, 0.3, 0.01)}, {}, {"density": (0.0, 1.0)}),
            identity=({"density": 1.0},),
        ),
        Row(
            method="emr",
            reference=lambda *words: np.stack(references.emr(*words)),
            hyperparameters=({},),
            identity=({},),
            opt_out={
                "order": "its results are one for each model, in their order",
                "compiles": "it has no numbers",
            },
        ),
        *(
            Row(
                method=f"{condition}(task_arithmetic)",
                reference=partial(
                    references.conditioned, inner=references.task_arithmetic, kind=condition
                ),
                hyperparameters=({"weight": (0.3, 0.5, 0.33)},),
                identity=({"weight": weights},),
            )
            for condition, weights in (
                ("equalize_mean", (0.3, 0.6, 0.1)),
                ("metagpt", (1.0, 1.0, 1.0)),
                ("inverse_norm", (1.0, 1.0, 1.0)),
            )
        ),
        Row(
            method="equalize(ties)",
            reference=partial(references.conditioned, inner=references.ties, kind="equalize"),
            hyperparameters=(
                {"weight": (0.3, 0.5, 0.33), "density": (0.4, 0.5, 0.2)},
                {"weight": (0.3, 0.5), "density": (0.4, 0.0), "rescale": True},
            ),
            identity=({"weight": (0.3, 0.6, 0.1)},),
        ),
        Row(
            method="equalize(lines(ties))",
            reference=partial(
                references.conditioned,
                inner=partial(references.at_the_first_block, inner=references.ties),
                kind="equalize",
            ),
            hyperparameters=(
                {"weight": (0.3, 0.5, 0.33), "density": (0.4, 0.5, 0.2)},
                {"weight": (0.3, 0.5), "lines.alpha": 0.3, "lines.beta": 0.5},
            ),
            identity=({"weight": (0.3, 0.6, 0.1), "lines.alpha": 1.0},),
        ),
    )
}
