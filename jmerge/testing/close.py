"""How near two arrays must be, in one place."""

from __future__ import annotations

import ml_dtypes
import numpy as np

TO_ROUNDING = 16  # units in the last place


def distance_ulp(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference in units in the last place (of `found`'s dtype) of the larger of the wanted element and
    the wanted tensor's rms; infinite when NaNs or infinities stand in different places."""
    step = float(ml_dtypes.finfo(found.dtype).eps)  # type: ignore[no-untyped-call]
    a, b = found.astype(np.float64), np.asarray(wanted).astype(np.float64)
    if a.shape != b.shape:
        raise AssertionError(f"shapes differ: found {a.shape}, wanted {b.shape}")
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    finite = np.isfinite(b)
    if not finite.any():
        return 0.0
    rms = np.sqrt(np.mean(b[finite] ** 2))
    unit = step * np.maximum(np.abs(b[finite]), rms)
    gap = np.abs(a[finite] - b[finite])
    return float(np.max(np.where(gap == 0, 0, gap / np.maximum(unit, np.finfo(np.float64).tiny))))


def assert_close(found: np.ndarray, wanted: np.ndarray, ulp: float = TO_ROUNDING) -> None:
    """Fail unless `found` is `wanted` to rounding, or to the given number of units in the last place."""
    distance = distance_ulp(np.asarray(found), np.asarray(wanted))
    assert distance <= ulp, f"{distance:.1f} units in the last place apart, at most {ulp} allowed"


def assert_same_bytes(found: np.ndarray, wanted: np.ndarray) -> None:
    """Fail unless dtype, shape and every bit are equal."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.dtype == wanted.dtype and found.shape == wanted.shape, (
        found.dtype,
        wanted.dtype,
        found.shape,
    )
    assert found.tobytes() == wanted.tobytes(), "bytes differ"
