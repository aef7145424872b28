"""Weights that are codes and not numbers: told from dtypes and from what lies beside them, whatever config.json says.

Every scheme stores a matrix of codes in the place of a weight (FP8, bytes or words that several weights are packed
into) and in the same module what the codes are multiplied by. That is the rule; names of schemes are for messages only.
FP8 without a scale is a plain dtype like others.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from jmerge.arch.config import Change
from jmerge.arch.infer import NUMBER, Config, KeyPath, config_dicts, is_computed
from jmerge.ckpt.dtypes import FLOATS, TensorSpec

PLAIN = FLOATS[:4]
# Whole numbers that weights are packed into. Positions, indexes and masks are I64 or BOOL.
WORDS = ("I8", "U8", "I16", "U16", "I32", "U32")
KEYS = ("quantization_config", "compression_config", "quantization")

# The last word of the name of what codes are multiplied by or looked up in, or moved to ...
SCALE = re.compile(
    r"scale|scaling|absmax|amax|^scb$|zeros?(_?point)?$|^quant_|quant_(map|state)|codebook|centroid"
)
# ... but for scales that models have themselves,
TRAINED = re.compile(r"(logit|layer|skip|residual)_?scale")
# and whole numbers that are none of a weight.
COUNTED = re.compile(r"(index|ids|mask|bias)$")
# Parts of a name inside a weight.
INSIDE = re.compile(r"_|\w*weight|\w*quant|tensor_impl$")

# What tells the scheme, the first that is found in: dtype and last word of a code | the words beside it | their dtypes.
SCHEMES = (
    (r"bitsandbytes__(?P<kind>\w+)", "bitsandbytes"),
    (r"absmax|quant_map", "bitsandbytes 4-bit"),
    (r"\bscb\b", "bitsandbytes int8"),
    (r"qzeros|g_idx|\bqweight\b", "GPTQ or AWQ"),
    (r"weight_packed", "compressed-tensors"),
    (r"_blocks\b", "MXFP4"),
    (r"\bw_q\b", "HQQ"),
    (r"qdata|int_data", "torchao"),
    (r"\b_data\b", "quanto"),
    (r"codebook|centroid", "codes of a codebook"),
    (r"^u32 .*\bbiases\b", "MLX"),
    (r"^f8.*\|[^|]*\b(u8|f8_e8m0)\b[^|]*$", "MXFP8"),
    (r"^f8", "FP8"),
    (r"^u8.*\|[^|]*\bf8_[^|]*$", "NVFP4"),
    (r"^i8", "int8"),
)


class Quantised:
    """What there is to say of one checkpoint.

    Attributes:
      told: what config.json says of it, by key.
    """

    def __init__(self, specs: Mapping[str, TensorSpec], config: Config) -> None:
        self._specs = specs
        self.told = dict(_told(config))
        self._scales: dict[str, list[str]] = {}  # by module
        self._named: dict[
            str, list[str]
        ] = {}  # by what they are called after, as `q_proj_scale` is
        for name in specs:
            last = name.rpartition(".")[2]
            if _is_scale(last):
                self._scales.setdefault(_home(name), []).append(name)
                word = SCALE.search(last.lower())
                stem = name[: len(name) - len(last) + (word.start() if word else 0)].rstrip("_")
                self._named.setdefault(stem.removesuffix("_weight"), []).append(name)

    @cached_property
    def reason(self) -> str | None:
        """Why the weights are no plain numbers; None when they are."""
        found = next(self._codes(), None)
        if self.told and not self.left_over:
            return f"config.json says that its weights are quantised ({self._method()})"
        if found is None:
            return None
        name, scales = found
        beside = f" with {_short(scales[0], name)} beside it" if scales else ""
        dtype = self._specs[name].dtype
        return (
            f"its weights are quantised ({self._scheme(name, scales)}): {name} is {dtype}{beside}"
        )

    @cached_property
    def left_over(self) -> bool:
        """Whether config.json says that weights are quantised, and all of them are plain numbers."""
        if not self.told or next(self._codes(), None) is not None:
            return False
        plain = all(
            spec.dtype in (*PLAIN, "I64", "BOOL") or spec.size <= 1 or COUNTED.search(name)
            for name, spec in self._specs.items()
        )
        scales = (name.rpartition(".")[2] for names in self._scales.values() for name in names)
        return plain and all(last == "scale" for last in scales)  # as some norms call theirs

    def _method(self) -> str:
        """The scheme as config.json calls it."""
        parts = self.told.values()
        named = (part.get(key) for part in parts for key in ("quant_method", "quant_algo"))
        return next((str(each) for each in named if each), "an unnamed method")

    def left_over_text(self) -> str:
        """What to say where the field is left over."""
        keys = " and ".join(dict.fromkeys(key[-1] for key in self.told))
        message = f"{keys} in config.json says that its weights are quantised ({self._method()})"
        return f"{message}, but they are plain numbers and merged as such"

    def _codes(self) -> Iterator[tuple[str, list[str]]]:
        """Tensors of codes, each with what lies beside it."""
        for name, spec in self._specs.items():
            home, last = _home(name), name.rpartition(".")[2]
            weight = "weight" in last or last.startswith("_")
            if spec.dtype in (*PLAIN, "I64", "U64", "BOOL", "C64", "F8_E8M0") or spec.size < 2:
                continue
            if _is_scale(last) or (len(spec.shape) < 2 and not weight):
                continue
            words = spec.dtype in WORDS
            inside = home != name.rpartition(".")[0]
            if words and not inside and (COUNTED.search(last) or is_computed(name, spec)):
                continue
            # what is in no module is beside everything else that is in none
            stem = last.rpartition("_")[0] or last
            near = self._scales.get(home, ()) if home else self._named.get(stem, ())
            beside = [*near, *self._named.get(home or last, ())]
            packed = spec.dtype not in FLOATS and not words  # F4, F6
            called = words and "weight" in last and (last != "weight" or NUMBER.search(name))
            if beside or packed or called or (words and inside):
                yield name, beside

    def _scheme(self, name: str, scales: list[str]) -> str:
        """A name for the scheme, as far as tensors tell."""
        home, last = _home(name), name.rpartition(".")[2]
        near = [other for other in self._specs if home and other.startswith(f"{home}.")]
        words = " ".join(other.rpartition(".")[2] for other in (*near, *scales))
        dtypes = " ".join(self._specs[scale].dtype for scale in scales)
        text = f"{self._specs[name].dtype} {last} | {words} | {dtypes}".lower()
        for pattern, label in SCHEMES:
            if found := re.search(pattern, text):
                return f"{label} {found['kind']}" if "kind" in found.groupdict() else label
        return f"codes in {self._specs[name].dtype}"


def without_quantisation(config: dict[str, Any]) -> tuple[dict[str, Any], list[Change]]:
    """`config` that says nothing of quantised weights, and what changed."""
    edited = copy.deepcopy(config)
    parts: dict[KeyPath, Any] = dict(config_dicts(edited))
    changes = []
    for path, told in _told(config):
        del parts[path[:-1]][path[-1]]
        changes.append(Change(".".join(path), told, None, "the weights are plain numbers"))
    return edited, changes


def _told(config: Config) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    """Where config.json says that weights are quantised, and how."""
    for path, part in config_dicts(config):
        if path and path[-1] in KEYS:
            continue
        for key in KEYS:
            told = part.get(key)
            if isinstance(told, dict) and (key != KEYS[2] or "bits" in told):
                yield (*path, key), told


def _is_scale(word: str) -> bool:
    word = word.lower()
    return SCALE.search(word) is not None and TRAINED.search(word) is None


def _home(name: str) -> str:
    """The module whose weight a tensor is or belongs to: that of `q_proj.weight.absmax` is `q_proj`."""
    home = name.rpartition(".")[0]
    while INSIDE.match(home.rpartition(".")[2]):
        home = home.rpartition(".")[0]
    return home


def _short(scale: str, name: str) -> str:
    """The name of a scale beside `name`, without what is common to both."""
    home = _home(name)
    return scale.removeprefix(f"{home}.") if home else scale
