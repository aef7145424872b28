"""What differs between two models, as JSON: every tensor, with keys that stay."""

from __future__ import annotations

import json
import math
from typing import Any

from jmerge.diff.compare import Compared, Difference
from jmerge.diff.groups import by_layer, parts, stacks
from jmerge.diff.pairs import Pair
from jmerge.diff.sums import Sums, add_up, index_of
from jmerge.dtypes import TensorSpec


def diff_json(found: Difference) -> str:
    """Everything that was found, every tensor, as one JSON object: `a`, `b` (the models), `identical_weights`,
    `problems`, `total`, `parts`, `layers` (by stack), `tensors`, `not_compared`, `only_in_a`, `only_in_b`, `config`,
    `files` and `tokens`. The keys of numbers are those of `numbers`."""
    tensors = found.tensors
    content = {
        "a": str(found.a.path),
        "b": str(found.b.path),
        "identical_weights": found.same_weights,
        "problems": [str(problem) for problem in found.problems],
        "total": numbers(found.total),
        "parts": {part: numbers(add_up(sums)) for part, sums in parts(tensors).items()},
        "layers": {
            stack: [
                {
                    "layer": layer,
                    **numbers(sums),
                    "parts": {p: numbers(s) for p, s in inner.items()},
                }
                for layer, sums, inner in by_layer(group)
            ]
            for stack, group in stacks(found).items()
        },
        "tensors": [_tensor(each) for each in tensors],
        "not_compared": [
            {
                **_names(pair),
                "a": _spec(pair.a.spec),
                "b": _spec(pair.b.spec),
                "reason": pair.why_not,
            }
            for pair in found.unlike
        ],
        "only_in_a": [{"name": each.name, **_spec(each.spec)} for each in found.only_a],
        "only_in_b": [{"name": each.name, **_spec(each.spec)} for each in found.only_b],
        "config": {
            change.key: {side: _plain(value) for side, value in change.values.items()}
            for change in found.beside.config
        },
        "files": dict(found.beside.files),
        "tokens": found.beside.tokens and found.beside.tokens._asdict(),
    }
    return json.dumps(content, indent=1, allow_nan=False)


def numbers(sums: Sums, shape: tuple[int, ...] | None = None) -> dict[str, Any]:
    """The numbers of a tensor, or with no `shape` of a group of them, as plain data for JSON; None where there is none.

    elements, changed: how many, and how many of them differ; identical: whether every byte is the same.
    norm_a, norm_b, norm_change: roots of the sums of squares of A, B and B - A, relative_change: the last over the
    first; cosine: of the angle between A and B; sign_agreement: the share of elements with one sign in both, of those
    that are zero in neither; nonfinite_a, nonfinite_b: NaN and infinities, which all other numbers leave out.
    largest_change, of a tensor: the element that changed most, its index, change and values; None where nothing did.
    """
    found: dict[str, Any] = {
        "elements": sums.elements,
        "changed": sums.changed,
        "identical": sums.identical,
        "norm_a": sums.norm_a,
        "norm_b": sums.norm_b,
        "norm_change": sums.norm_change,
        "relative_change": sums.relative,
        "cosine": sums.cosine,
        "sign_agreement": sums.sign_agreement,
        "nonfinite_a": sums.nonfinite_a,
        "nonfinite_b": sums.nonfinite_b,
    }
    if shape is not None:
        found["largest_change"] = sums.largest and {
            "index": index_of(sums.largest.element, shape),
            "change": sums.largest.change if math.isfinite(sums.largest.change) else None,
            "a": sums.largest.a,
            "b": sums.largest.b,
        }
    return found


def _names(pair: Pair) -> dict[str, str]:
    return {"name": pair.name, "name_a": pair.name_a, "name_b": pair.name_b}


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"dtype": spec.dtype, "shape": list(spec.shape)}


def _tensor(each: Compared) -> dict[str, Any]:
    pair, place = each.pair, each.pair.place
    return {
        **_names(pair),
        "stack": place.stack,
        "layer": place.layer,
        "module": place.module,
        "part": place.part,
        "shape": list(pair.a.spec.shape),
        "dtype_a": pair.a.spec.dtype,
        "dtype_b": pair.b.spec.dtype,
        **numbers(each.sums, pair.a.spec.shape),
    }


def _plain(value: Any) -> Any:
    """A value of config.json for strict JSON, which has no infinity."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
