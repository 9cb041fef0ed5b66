"""Figures from samples: the report's six, and what may be claimed of a ratio on a noisy machine.

Knows: numbers. Must not know: where they come from.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NOISE = 0.10  # differences below this are ties: the virtual cores drift by more than that between two runs


SIX = ("mean", "median", "min", "P99", "max", "stddev")


@dataclass(frozen=True, slots=True)
class Summary:
    """The report's six figures of a row of samples, in the samples' unit."""

    count: int
    mean: float
    median: float
    minimum: float
    p99: float
    maximum: float
    stddev: float
    p999: float

    def six(self, unit: float) -> tuple[float, ...]:
        """Mean, median, minimum, P99, maximum and standard deviation, in another unit."""
        figures = (self.mean, self.median, self.minimum, self.p99, self.maximum, self.stddev)
        return tuple(figure / unit for figure in figures)


def summarize(samples: Sequence[float]) -> Summary:
    """The six figures of at least one sample. Raises ValueError for none."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    mean = math.fsum(ordered) / len(ordered)
    spread = math.fsum((sample - mean) ** 2 for sample in ordered)
    return Summary(
        count=len(ordered),
        mean=mean,
        median=statistics.median(ordered),
        minimum=ordered[0],
        p99=percentile(ordered, 99),
        maximum=ordered[-1],
        stddev=math.sqrt(spread / max(1, len(ordered) - 1)),
        p999=percentile(ordered, 99.9),
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of sorted samples: the smallest that `percent` % of them do not exceed."""
    if not 0 < percent <= 100:
        raise ValueError(f"a percentile is above 0 and at most 100, not {percent}")
    return ordered[math.ceil(percent * len(ordered) / 100) - 1]


def upper_bound(samples: Sequence[float], confidence: float = 0.95) -> float:
    """What the median does not exceed, with this confidence, whatever the distribution.

    The k-th smallest of n independent samples lies below the median only when at least k of them do, and each does
    with probability 1/2: so the smallest k with P(Binomial(n, 1/2) < k) >= confidence will do. 11 samples: the 9th.
    Raises ValueError when n samples cannot give it (fewer than 5 for 95 %).
    """
    return sorted(samples)[_rank(len(samples), confidence) - 1]


def lower_bound(samples: Sequence[float], confidence: float = 0.95) -> float:
    """What the median is at least, with this confidence, whatever the distribution; see `upper_bound`."""
    return sorted(samples, reverse=True)[_rank(len(samples), confidence) - 1]


def _rank(count: int, confidence: float) -> int:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, not {confidence}")
    below = 0
    for rank in range(1, count + 1):
        below += math.comb(count, rank - 1)
        if below >= confidence * 2**count:
            return rank
    raise ValueError(f"{count} samples are too few for a bound at {confidence:.0%}")


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of the ratios of interleaved pairs, and its one-sided bounds, each at 95 %."""

    median: float
    lower: float
    upper: float
    pairs: int

    def at_most(self, limit: float) -> str:
        """`held` when the upper bound is within `limit`, `noise` when less than NOISE beyond it, else `missed`."""
        return "held" if self.upper <= limit else "noise" if self.upper <= limit * (1 + NOISE) else "missed"

    def at_least(self, limit: float) -> str:
        """`held` when the lower bound reaches `limit`, `noise` when less than NOISE below it, else `missed`."""
        return "held" if self.lower >= limit else "noise" if self.lower >= limit * (1 - NOISE) else "missed"


def ratio(ours: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Compare two rows that were measured in turn: the i-th of each belong together."""
    quotients = [mine / theirs for mine, theirs in zip(ours, reference, strict=True)]
    return spread_of(quotients)


def spread_of(values: Sequence[float]) -> Ratio:
    """The median of values that are compared with a fixed number, and its bounds."""
    return Ratio(statistics.median(values), lower_bound(values), upper_bound(values), len(values))
