"""The dtypes of safetensors files: their names, widths and numpy types, and the names recipes use for them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jmerge.errors import InvalidValueError
from jmerge.names import did_you_mean

# Safetensors name -> numpy type. Sub-byte floats (F4, F6_*) have no numpy view: they are copied as bytes.
NUMPY: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
    "C64": np.dtype(np.complex64),
}
SAFETENSORS: dict[np.dtype[Any], str] = {dtype: name for name, dtype in NUMPY.items()}
BITS: dict[str, int] = {name: dtype.itemsize * 8 for name, dtype in NUMPY.items()} | {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}

# Floats a method may read. E8M0 holds scales, never weights, and sub-byte floats come packed: both only copy.
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")

# (bit mask, bits that mean NaN or infinity under that mask), read as unsigned integers of the same width.
NONFINITE_BITS = {
    "F64": (0x7FF0000000000000, 0x7FF0000000000000),
    "F32": (0x7F800000, 0x7F800000),
    "F16": (0x7C00, 0x7C00),
    "BF16": (0x7F80, 0x7F80),
    "F8_E4M3": (0x7F, 0x7F),
    "F8_E5M2": (0x7C, 0x7C),
    "F8_E4M3FNUZ": (0xFF, 0x80),
    "F8_E5M2FNUZ": (0xFF, 0x80),
    "F8_E8M0": (0xFF, 0xFF),
}

# What `dtype:` and `out_dtype:` may say (an optional `torch.` in front is dropped).
RECIPE_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "double": "F64",
    "float": "F32",
    "half": "F16",
    "fp64": "F64",
    "fp32": "F32",
    "fp16": "F16",
    "bf16": "BF16",
}
CONFIG_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class TensorSpec(NamedTuple):
    """What a tensor is, without its values."""

    dtype: str  # safetensors name, a key of BITS
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.size * BITS[self.dtype] // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def parse_dtype(text: str) -> str | None:
    """The safetensors name for a recipe's dtype word; None for an empty one; InvalidValueError when an unknown one."""
    word = text.strip().removeprefix("torch.").removeprefix("jnp.").lower()
    if not word:
        return None
    if word not in RECIPE_NAMES:
        raise InvalidValueError(
            f"'{text}' is not a supported dtype{did_you_mean(word, list(RECIPE_NAMES)[:4])}",
            "JM011",
        )
    return RECIPE_NAMES[word]


def promote(dtypes: list[str]) -> str:
    """The floating dtype that holds every one of `dtypes`: equal ones stay, bf16 with f16 gives f32."""
    kinds = set(dtypes)
    if len(kinds) == 1:
        return dtypes[0]
    if "F64" in kinds:
        return "F64"
    wide = kinds - {name for name in kinds if BITS[name] == 8}
    return next(iter(wide)) if len(wide) == 1 else "F32"


def most_stored(specs: Iterable[TensorSpec]) -> str:
    """The dtype in which most bytes of some tensors are, the first of them where several have as many."""
    sizes: dict[str, int] = {}
    for spec in specs:
        sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype])


def view(raw: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """`raw` bytes as an array of `spec`, without a copy; packed sub-byte dtypes stay a flat array of bytes."""
    if spec.dtype not in NUMPY:
        return raw
    array: np.ndarray = raw.view(NUMPY[spec.dtype]).reshape(spec.shape)
    return array


def count_nonfinite(raw: np.ndarray, dtype: str) -> int:
    """How many elements of the byte buffer `raw` are NaN or infinite."""
    if dtype not in NONFINITE_BITS:
        return 0
    mask, value = NONFINITE_BITS[dtype]
    bits = raw.view(f"u{BITS[dtype] // 8}")
    count = 0
    for start in range(
        0, bits.size, 1 << 16
    ):  # small blocks stay in cache: twice as fast as one pass
        part = bits[start : start + (1 << 16)]
        count += int(
            np.count_nonzero(np.bitwise_and(part, part.dtype.type(mask)) == part.dtype.type(value))
        )
    return count
