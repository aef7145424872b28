"""What the numpy reference of a merge takes as right: what float32 may make of the tensors, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from familyreference import COSINE, LINE, METHODS, Merged, slerp, ties

from jmerge import merge_trees

WEIGHTS = [0.7, 0.4]


def made_by_ties(models: list[np.ndarray], base: np.ndarray, density: float) -> np.ndarray:
    """What jmerge makes."""
    merged = merge_trees(models, method="ties", base=base, weight=WEIGHTS, density=density)
    return np.asarray(merged)


def made_by_slerp(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What jmerge makes."""
    return np.asarray(merge_trees([b], method="slerp", base=a, t=0.3))


def made_by_linear(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What jmerge makes."""
    return np.asarray(merge_trees([a, b], method="linear", weight=[0.4, 0.6]))


def right(ways: list[Merged], found: np.ndarray) -> bool:
    """Whether one of the ways has all elements."""
    return any(way.right(found).all() for way in ways)


@pytest.mark.parametrize("method", ["linear", "slerp", "ties"])
def test_each_element_is_seen(method: str) -> None:
    """What jmerge makes is right; an element that differs by a millionth of what it is made of is not."""
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 40, 30)).astype(np.float32)
    made = {
        "linear": lambda: made_by_linear(a, b),
        "slerp": lambda: made_by_slerp(a, b),
        "ties": lambda: made_by_ties([a, b], c, 0.6),
    }
    found = made[method]()
    (way,) = METHODS[method].merge(a, b, c)
    assert way.right(found).all()
    assert way.either() == 0
    off = 4e-6 * (np.abs(a) + np.abs(b) + np.abs(c))
    assert not way.right(found + off).any()


def test_equal_changes_go_by_place() -> None:
    """Of two changes that are one number in float32 the first is kept, though the second is larger by less than that."""
    tiny = 2.0**-27
    base = np.array([tiny, -tiny, 0, 0], np.float32)
    model = np.array([0.75, 0.75, 0.25, 0.125], np.float32)
    exact = model.astype(np.float64) - base
    assert exact[1] > exact[0]
    (way,) = ties([model, base], base, WEIGHTS, 0.25)
    assert way.right(made_by_ties([model, base], base, 0.25)).all()
    assert way.either() == 0
    assert way.right(np.array([base[0], 0.75, 0, 0], np.float32)).tolist() == [
        False,
        False,
        True,
        True,
    ]


def test_a_vote_that_cancels_is_open() -> None:
    """0.7 * 4 and 0.4 * -7 cancel to less than the rounding of their products; those of -7.001 do not."""
    base = np.zeros(2, np.float32)
    models = [np.array([4, 4], np.float32), np.array([-7, -7.001], np.float32)]
    (way,) = ties(models, base, WEIGHTS, 1.0)
    assert way.either() == 1
    assert way.right(made_by_ties(models, base, 1.0)).all()
    assert way.right(models[0]).tolist() == [True, False]
    assert way.right(models[1]).tolist() == [True, True]
    assert not way.right((models[0] + models[1]) / 2).any()


@pytest.mark.parametrize("cosine", [-1, -0.9996, 0.9996, 1])
def test_slerp_goes_straight(cosine: float) -> None:
    """Where two tensors are nearly parallel or nearly opposite; a number alone is one or the other."""
    a, b = pair(cosine)
    (way,) = slerp(a, b, 0.3)
    assert way.right(made_by_slerp(a, b)).all()
    assert np.allclose(way.value, 0.7 * a.astype(np.float64) + 0.3 * b)
    (alone,) = slerp(a[:1], b[:1], 0.3)
    assert alone.right(made_by_slerp(a[:1], b[:1])).all()


@pytest.mark.parametrize("cosine", [-0.9994, -0.999, -0.99, 0.0, 0.9994])
def test_slerp_takes_the_arc(cosine: float) -> None:
    """The nearer to opposite, the more rounding of the cosine moves the result, and no more than that is right."""
    a, b = pair(cosine)
    (way,) = slerp(a, b, 0.3)
    found = made_by_slerp(a, b)
    assert way.right(found).all()
    assert not way.right(found * 1.002).any()
    straight = (0.7 * a + 0.3 * b).astype(np.float32)
    assert cosine > 0.99 or not way.right(straight).any()


def test_arc_or_line_holds_for_the_whole_tensor() -> None:
    """A cosine that is the bound to rounding may fall on either side of it, but not each element on its own."""
    a, b = pair(-LINE)
    ways = slerp(a, b, 0.3)
    assert len(ways) == 2
    assert right(ways, made_by_slerp(a, b))
    whole = [way.value.astype(np.float32) for way in ways]
    assert all(right(ways, each) for each in whole)
    assert not right(ways, np.array([whole[0][0], whole[1][1]]))
    assert len(slerp(*pair(-LINE + 4 * COSINE), 0.3)) == 1


def pair(cosine: float) -> tuple[np.ndarray, np.ndarray]:
    """Two vectors with this cosine."""
    a = np.array([0.6, 0.8])
    b = cosine * a + np.sqrt(1 - cosine * cosine) * np.array([0.8, -0.6])
    return a.astype(np.float32), (2 * b).astype(np.float32)
