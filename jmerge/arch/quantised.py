"""Weights that are codes and not numbers: told from dtypes and from what lies beside them, whatever config.json says.

Every scheme stores a matrix of codes in the place of a weight (FP8, bytes or words that several weights are packed
into) and in the same module what the codes are multiplied by. That is the rule; names of schemes are for messages only.
FP8 without a scale is a plain dtype like others.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from typing import Any

from jmerge.arch.config import Change
from jmerge.arch.infer import NUMBER, Config, KeyPath, config_dicts, is_computed
from jmerge.dtypes import FLOATS, TensorSpec

PLAIN = FLOATS[:4]
# Whole numbers that weights are packed into. Positions, indexes and masks are I64 or BOOL.
WORDS = ("I8", "U8", "I16", "U16", "I32", "U32")
KEYS = ("quantization_config", "compression_config", "quantization")

SCALES = (*PLAIN, "F8_E8M0", "U8")
ADDED = re.compile(r"bias|beta|offset")
# The last word of the name of what codes are multiplied by or looked up in, or moved to ...
SCALE = re.compile(
    r"scale|scaling|absmax|amax|^scb$|zeros?(_?point)?$|^quant_|quant_(map|state)|codebook|centroid"
)
# ... but for scales that models have themselves,
TRAINED = re.compile(r"(logit|layer|skip|residual)_?scale")
# and whole numbers that are none of a weight.
COUNTED = re.compile(r"(index|ids|(?<!bit)mask|bias)$")
# ... and more such names, where no scale tells of codes.
PLACES = re.compile(r"(idx|indices|map|position|bucket|offset|order|perm|type|token)s?$")
# The scales of a model's own that lie beside a matrix have names like these, unless they are of what goes through it.
OWN_SCALE = re.compile(r"(?!(weights?|input|output|act\w*|kv?|[qv]|prob|attn)_)(.*_)?scale")
# Names that only codes have, whatever dtype they are viewed as.
CODED = re.compile(r"w_q|qweight|qidxs|trellis|compressed|\w*weight_packed", re.IGNORECASE)
# Names of what a module multiplies by or looks up in itself, so that whole numbers beside it are no weight.
OWN = re.compile(r"weight$|table|embed|kernel")
# Parts of a name inside a weight.
INSIDE = re.compile(r"_|\w*weight|\w*quant|tensor_impl$|\w*centroids$|meta$")

# What tells the scheme, the first that is found in: dtype and last word of a code | the words beside it | their dtypes.
SCHEMES = (
    (r"bitsandbytes__(?P<kind>\w+)", "bitsandbytes"),
    (r"absmax|quant_map", "bitsandbytes 4-bit"),
    (r"\bscb\b", "bitsandbytes int8"),
    (r"qzeros|g_idx|\bqweight\b", "GPTQ or AWQ"),
    (r"weight_packed", "compressed-tensors"),
    (r"_?blocks\b", "MXFP4"),
    (r"\bw_q\b", "HQQ"),
    (r"qdata|int_data", "torchao"),
    (r"\b_data\b", "quanto"),
    (r"codebook|centroid", "codes of a codebook"),
    (r"^u32 ", "MLX"),
    (r"^\w+ compressed\b", "compressed-tensors"),
    (r"^u8 weight \|.*\|[^|]*\b(u8|f8_e8m0)\b[^|]*$", "MXFP4"),
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
        self._modules: dict[str, list[str]] = {}  # the tensors of each
        self._coded: set[str] = (
            set()
        )  # what has its scale below it, as `weight` has `weight.absmax`
        for name in specs:
            last = name.rpartition(".")[2]
            home = _home(name)
            self._modules.setdefault(home, []).append(name)
            if _is_scale(last):
                if (below := name.rpartition(".")[0]) in specs:
                    self._coded.add(below)
                self._scales.setdefault(home, []).append(name)
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
        plain = not any(self._may_be_code(name, spec) for name, spec in self._specs.items())
        scales = (name for names in self._scales.values() for name in names)
        return plain and not any(map(self._is_of_a_weight, scales))

    def _is_of_a_weight(self, scale: str) -> bool:
        """Whether a scale lies beside a matrix, and not in a module that is scaled as a whole, such as a router."""
        named = (stem for stem, names in self._named.items() if scale in names)
        if any(stem in self._specs for stem in named):
            return True
        if OWN_SCALE.fullmatch(scale.rpartition(".")[2]):  # norms call theirs `scale`
            return False
        beside = self._modules[_home(scale)] if "." in scale else []
        return any(
            len(self._specs[name].shape) > 1 and not _is_scale(name.rpartition(".")[2])
            for name in beside
        )

    def _may_be_code(self, name: str, spec: TensorSpec) -> bool:
        """Whether a tensor, which is none of `_codes`, can be one if config.json says so."""
        last = name.rpartition(".")[2]
        if spec.dtype in (*PLAIN, "I64", "BOOL") or spec.size < 2 or COUNTED.search(last):
            return False
        if spec.dtype not in WORDS:
            return True
        return len(spec.shape) > 1 and not PLACES.search(last) and self._is_alone(_home(name))

    @cached_property
    def _parents(self) -> set[str]:
        """The modules that have others in them."""
        found = set()
        for home in self._modules:
            while home := home.rpartition(".")[0]:
                found.add(home)
        return found

    def _method(self) -> str:
        """The scheme as config.json calls it."""
        parts = self.told.values()
        named = (part.get(key) for part in parts for key in ("quant_method", "quant_algo"))
        return next((str(each) for each in named if each), "an unnamed method")

    @property
    def keys(self) -> str:
        """The keys of config.json that say that weights are quantised, as text."""
        return " and ".join(dict.fromkeys(key[-1] for key in self.told))

    def left_over_text(self) -> str:
        """What to say where the field is left over."""
        message = (
            f"{self.keys} in config.json says that its weights are quantised ({self._method()})"
        )
        return f"{message}, but they are plain numbers and are merged as such"

    def _codes(self) -> Iterator[tuple[str, list[str]]]:
        """Tensors of codes, each with what lies beside it."""
        for name, spec in self._specs.items():
            home, last = _home(name), name.rpartition(".")[2]
            if spec.size < 2 or _is_scale(last):
                continue
            near = self._modules[home] if home else []
            if name in self._coded or (
                CODED.fullmatch(last)
                and any(
                    _is_scale(each.rpartition(".")[2]) or self._specs[each].dtype in WORDS
                    for each in near
                )
            ):
                yield name, self._scales.get(home, [])
                continue
            if spec.dtype in (*PLAIN, "I64", "U64", "BOOL", "C64", "F8_E8M0"):
                continue
            inside = home != name.rpartition(".")[0]
            called = "weight" in last or inside
            if len(spec.shape) < 2 and not called:
                continue
            words = spec.dtype in WORDS
            if words and not inside and (COUNTED.search(last) or is_computed(name, spec)):
                continue
            # what is in no module is beside everything else that is in none
            stem = name.rpartition("_")[0] or name
            beside = [*self._named.get(stem, ()), *self._named.get(home or name, ())]
            if home and (called or not words or self._is_alone(home)):
                beside = [*self._scales.get(home, ()), *beside]
            if not beside and not words and home not in self._parents:
                beside = [each for each in near if self._may_scale(each, name)]
            packed = spec.dtype not in FLOATS and not words  # F4, F6
            numbered = NUMBER.search(name) is not None
            if words and "weight" in last:
                packed = last != "weight" or numbered
            elif words and numbered and not PLACES.search(last):
                packed = self._is_alone(home) and len(near) > 1
            if beside or packed or (words and inside):
                yield name, beside

    def _may_scale(self, name: str, code: str) -> bool:
        """Whether a tensor beside FP8 can be its scale under whatever name: smaller, and nothing that a module adds."""
        spec, last = self._specs[name], name.rpartition(".")[2]
        return (
            spec.dtype in SCALES and spec.size < self._specs[code].size and not ADDED.search(last)
        )

    def _is_alone(self, home: str) -> bool:
        """Whether whole numbers are all that a module can have for a weight: it has no other, and no modules in it."""
        others = (name for name in self._modules[home] if self._specs[name].dtype in FLOATS)
        return home not in self._parents and not any(
            OWN.search(name.rpartition(".")[2]) for name in others if not _is_scale(name)
        )

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


@cache
def _is_scale(word: str) -> bool:
    """Whether the last word of a name is that of a scale. There are few such words, and they are asked for often."""
    word = word.lower()
    return SCALE.search(word) is not None and TRAINED.search(word) is None


def _home(name: str) -> str:
    """The module whose weight a tensor is or belongs to: that of `q_proj.weight.absmax` is `q_proj`."""
    home = name.rpartition(".")[0]
    while _is_inside(home.rpartition(".")[2]):
        home = home.rpartition(".")[0]
    return home


@cache
def _is_inside(word: str) -> bool:
    return INSIDE.match(word) is not None


def _short(scale: str, name: str) -> str:
    """The name of a scale beside `name`, without what is common to both."""
    home = _home(name)
    return scale.removeprefix(f"{home}.") if home else scale
