"""Layers that have no keys and values of their own and use those of an earlier layer (Gemma 3n, Gemma 4)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from jmerge.arch.infer import Config

KEY = "num_kv_shared_layers"
KINDS = "layer_types"


def lenders(part: Config, depth: int) -> dict[int, int]:
    """The layers that use keys and values of another, with that one: the last of their kind that has its own.

    part: the map of config.json that describes these `depth` layers.
    """
    count, kinds = part.get(KEY), part.get(KINDS)
    if type(count) is not int or not 0 < count < depth:
        return {}
    of: Sequence[Hashable] = [""] * depth
    if isinstance(kinds, list) and len(kinds) >= depth:
        of = [str(kind) for kind in kinds[:depth]]
    first = depth - count
    last = {kind: layer for layer, kind in enumerate(of[:first])}
    return {layer: last[of[layer]] for layer in range(first, depth) if of[layer] in last}
