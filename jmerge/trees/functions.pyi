"""The types of `functions.py`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, TypeVar, Unpack

import jax
import numpy as np

from jmerge.trees.by_path import ByPath, OverLayers
from jmerge.trees.by_path import by_path as by_path
from jmerge.trees.by_path import over_layers as over_layers
from jmerge.trees.merge import merge_trees as merge_trees

T = TypeVar("T")
# a plain or traced number, by path, over layers, or a tree that goes as far as it has to
Number = float | jax.Array | np.ndarray | ByPath | OverLayers | Mapping[str, Any]
Each = Number | Sequence[Number]  # for all models, or one for each
Key = int | jax.Array
Norm = bool | Literal["norm"]
Chance = bool | Literal["norm", "chance"]

class Common(TypedDict, total=False):
    """What all functions take; see `jmerge.merge_trees`."""

    layers: Any
    where: Any
    otherwise: Literal["base", "first", "error"]
    nonfinite: Literal["propagate", "ignore"]
    exact: bool
    donate: bool

def arcee_fusion(models: Sequence[T], *, base: Any, **common: Unpack[Common]) -> T: ...
def task_arithmetic(
    models: Sequence[T],
    *,
    base: Any,
    weight: Each = 1.0,
    scale: Number = 1.0,
    normalize: bool = False,
    **common: Unpack[Common],
) -> T: ...
def breadcrumbs(
    models: Sequence[T],
    *,
    base: Any,
    weight: Each = 1.0,
    density: Each = 1.0,
    gamma: Each = 0.01,
    scale: Number = 1.0,
    normalize: bool = False,
    rescale: Norm = False,
    **common: Unpack[Common],
) -> T: ...
def breadcrumbs_ties(
    models: Sequence[T],
    *,
    base: Any,
    weight: Each = 1.0,
    density: Each = 1.0,
    gamma: Each = 0.01,
    scale: Number = 1.0,
    normalize: bool = False,
    rescale: Norm = False,
    **common: Unpack[Common],
) -> T: ...
def cabs(
    models: Sequence[T],
    *,
    base: Any,
    weight: Each = 1.0,
    n: Number = 64.0,
    m: int = 256,
    scale: Number = 1.0,
    **common: Unpack[Common],
) -> T: ...
def consensus(
    models: Sequence[T],
    *,
    base: Any,
    mask: Each = 0.4,
    k: Number = 2.0,
    scale: Number = 1.0,
    **common: Unpack[Common],
) -> T: ...
def dare_linear(
    models: Sequence[T],
    *,
    base: Any,
    weight: Each = 1.0,
    density: Each = 1.0,
    scale: Number = 1.0,
    normalize: bool = False,
    rescale: Chance = "norm",
    key: Key = 0,
    **common: Unpack[Common],
) -> T: ...
def dare_ties(
    models: Sequence[T],
    *,
    base: Any,
    weight: Each = 1.0,
    density: Each = 1.0,
    scale: Number = 1.0,
    normalize: bool = False,
    rescale: Chance = "norm",
    key: Key = 0,
    **common: Unpack[Common],
) -> T: ...
def della(
    models: Sequence[T],
    *,
    base: Any,
    weight: Each = 1.0,
    density: Each = 1.0,
    epsilon: Each = 0.15,
    scale: Number = 1.0,
    normalize: bool = True,
    rescale: Chance = "norm",
    key: Key = 0,
    **common: Unpack[Common],
) -> T: ...
def della_linear(
    models: Sequence[T],
    *,
    base: Any,
    weight: Each = 1.0,
    density: Each = 1.0,
    epsilon: Each = 0.15,
    scale: Number = 1.0,
    normalize: bool = False,
    rescale: Chance = "norm",
    key: Key = 0,
    **common: Unpack[Common],
) -> T: ...
def emr(models: Sequence[T], *, base: Any, **common: Unpack[Common]) -> list[T]: ...
def karcher(
    models: Sequence[T], *, max_iter: int = 10, tol: Number = 1e-05, **common: Unpack[Common]
) -> T: ...
def linear(
    models: Sequence[T], *, weight: Each = 1.0, normalize: bool = True, **common: Unpack[Common]
) -> T: ...
def ties(
    models: Sequence[T],
    *,
    base: Any,
    weight: Each = 1.0,
    density: Each = 1.0,
    scale: Number = 1.0,
    normalize: bool = True,
    rescale: Norm = False,
    **common: Unpack[Common],
) -> T: ...
def localize_stitch(
    models: Sequence[T], *, base: Any, density: Each = 0.05, **common: Unpack[Common]
) -> T: ...
def magmax(
    models: Sequence[T], *, base: Any, scale: Number = 0.5, **common: Unpack[Common]
) -> T: ...
def model_stock(
    models: Sequence[T], *, base: Any, filter_wise: bool = False, **common: Unpack[Common]
) -> T: ...
def multislerp(
    models: Sequence[T],
    *,
    base: Any = None,
    weight: Each = 1.0,
    normalize_weights: bool = True,
    eps: Number = 1e-08,
    **common: Unpack[Common],
) -> T: ...
def nearswap(models: Sequence[T], *, base: Any, t: Number, **common: Unpack[Common]) -> T: ...
def negmerge(
    models: Sequence[T], *, base: Any, scale: Number = 1.0, **common: Unpack[Common]
) -> T: ...
def nuslerp(
    models: Sequence[T],
    *,
    base: Any = None,
    weight: Each = 1.0,
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
    **common: Unpack[Common],
) -> T: ...
def passthrough(
    models: Sequence[T], *, scale: Each | None = None, **common: Unpack[Common]
) -> T: ...
def pcb(
    models: Sequence[T],
    *,
    base: Any,
    weight: Each = 1.0,
    rho: Number = 0.1,
    scale: Number = 1.2,
    **common: Unpack[Common],
) -> T: ...
def ram(
    models: Sequence[T], *, base: Any, epsilon: Number = 1e-05, **common: Unpack[Common]
) -> T: ...
def ramplus_tl(
    models: Sequence[T],
    *,
    base: Any,
    r: Number = 0.1,
    alpha: Number = 0.2,
    epsilon: Number = 1e-05,
    **common: Unpack[Common],
) -> T: ...
def sce(
    models: Sequence[T], *, base: Any, select_topk: Number = 1.0, **common: Unpack[Common]
) -> T: ...
def slerp(models: Sequence[T], *, base: Any, t: Number, **common: Unpack[Common]) -> T: ...
