"""The numbers that the page of a comparison shows in colour, and which colour a value has.

One scale for all cells of a page: logarithmic, since changes differ by orders of magnitude, and as wide as all but
the outermost twentieth of the cells on either side, so that no outlier leaves all others one colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import NamedTuple

from jmerge.diff.sums import Sums
from jmerge.report.diff import percent

OUTER = 0.05  # the share of cells that may lie beyond either end
LEAST_SPAN = 4  # of the last colour's value over the first's: what is nearly alike looks alike
FIRST_TICK, LAST_TICK, TICKS_APART = 0.33, 0.72, 0.19  # so that their texts have room on a phone
SAME, UNKNOWN = "=", "-"  # places of cells without a colour


class Measure(NamedTuple):
    """A number between two tensors."""

    key: str
    title: str
    says: str  # what it is, in a sentence
    value: Callable[[Sums], float | None]
    text: Callable[[float | None], str]  # it for people
    tick: Callable[[Decimal], str]  # the value this far from no change, for people
    falls: bool  # from 1 with more change, rather than rises from 0


class Tick(NamedTuple):
    """A labelled place of a legend."""

    place: str  # per cent of its length
    text: str


class Scale(NamedTuple):
    """Which colour a distance from no change has."""

    low: Decimal  # the distance with the first colour; what is nearer has it too
    high: Decimal  # with the last
    below: bool  # whether a cell lies beyond the first
    above: bool

    def place(self, apart: float | None) -> str:
        """Where on the scale, in per cent: 0 the first colour, 100 the last; or `SAME` or `UNKNOWN`."""
        if apart is None:
            return UNKNOWN
        if apart <= 0:
            return SAME
        if math.isinf(apart):
            return "100"
        low, high = math.log(self.low), math.log(self.high)
        return f"{100 * min(1.0, max(0.0, (math.log(apart) - low) / (high - low))):.0f}"


def near_one(value: float | None) -> str:
    """A number up to 1 with two digits more than its leading nines: 0.512, 0.987, 0.99953; never rounded up to 1."""
    if value is None or value in (0, 1):
        return "-" if value is None else f"{value:.0f}"
    if value < 0.9:
        return f"{value:.3f}"
    digits = min(2 + math.floor(-math.log10(1 - value)), 9)
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


def short(number: str) -> str:
    """What `show.count` or `show.size` say, with three digits."""
    value, _, unit = number.partition(" ")
    return f"{float(value):#.3g}".rstrip(".") + f" {unit}" if unit else value


def _plain(number: Decimal) -> str:
    if 0 < number < Decimal("1e-4"):
        return f"{number:.0e}"
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


MEASURES = (
    Measure(
        "change",
        "Relative change",
        "The norm of B - A over the norm of A.",
        lambda sums: sums.relative,
        percent,
        lambda apart: f"{_plain(100 * apart)} %",
        falls=False,
    ),
    Measure(
        "cosine",
        "Cosine",
        "Of the angle between A and B: 1 where they point the same way, 0 where they have nothing in common.",
        lambda sums: sums.cosine,
        near_one,
        lambda apart: f"{1 - apart}" if apart >= Decimal("1e-6") else f"1 - {apart:.0e}",
        falls=True,
    ),
    Measure(
        "signs",
        "Sign agreement",
        "The share of elements with one sign in A and B, among those that are zero in neither.",
        lambda sums: sums.sign_agreement,
        percent,
        lambda apart: f"{_plain(100 - 100 * apart)} %",
        falls=True,
    ),
)


def distance(measure: Measure, sums: Sums) -> float | None:
    """How far these are from no change; infinite where A is zero and B is not, None where there is no number."""
    if not sums.changed:
        return 0.0 if sums.identical or not (sums.nonfinite_a or sums.nonfinite_b) else None
    value = measure.value(sums)
    if value is not None:
        return 1 - value if measure.falls else value
    return math.inf if not measure.falls and sums.aa == 0 else None


def shown(measure: Measure, sums: Sums) -> str:
    """The number of these sums for people."""
    apart = distance(measure, sums)
    if apart == math.inf:
        return "from zero"
    return measure.text(None if apart is None else measure.value(sums))


def make_scale(distances: Iterable[float | None]) -> Scale:
    """The scale for cells of these distances; where nothing changed, any."""
    known = sorted(d for d in distances if d is not None and d > 0)
    finite = [d for d in known if not math.isinf(d)] or [0.01, 1.0]
    last = len(finite) - 1
    low = _round(finite[math.floor(OUTER * last)], up=False)
    high = _round(finite[math.ceil((1 - OUTER) * last)], up=True)
    while high / low < LEAST_SPAN:
        low = _round(float(low) * 0.99, up=False)
    return Scale(low, high, finite[0] < float(low), any(d > float(high) for d in known))


def ticks(measure: Measure, scale: Scale) -> list[Tick]:
    """Those of the legend, from the first colour to the last."""
    between = []
    number, room = scale.low, FIRST_TICK
    while (number := _round(float(number) * 1.01, up=True)) < scale.high:
        place = float(scale.place(float(number))) / 100
        if room <= place <= LAST_TICK:
            room = place + TICKS_APART
            between.append(Tick(f"{100 * place:.0f}", measure.tick(number)))
    under, over = ("≥ ", "≤ ") if measure.falls else ("≤ ", "≥ ")
    return [
        Tick("0", under * scale.below + measure.tick(scale.low)),
        *between,
        Tick("100", over * scale.above + measure.tick(scale.high)),
    ]


def _round(number: float, *, up: bool) -> Decimal:
    """The next of 1, 2, 5, 10, 20, ..., and of their tenths, hundredths, ..."""
    exponent = math.floor(math.log10(number))
    steps = [Decimal(digit).scaleb(exponent) for digit in (1, 2, 5, 10)]
    exact = Decimal(number)  # which differs from a step that it stands for by rounding
    if up:
        return next((step for step in steps if step >= exact * Decimal("0.999999999")), steps[-1])
    return max((step for step in steps if step <= exact * Decimal("1.000000001")), default=steps[0])
