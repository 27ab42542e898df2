"""What is said of repeated measurements: the median and the tail, because a mean hides the one slow run.

Two ways to say how sure that is.  `Stats.ci95` is a percentile bootstrap of the median: no shape is assumed.  `change` compares two
runs by Welch's t-test on logarithms: with the five repeats that people wait for, resampling promises more than it holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
LEAST = 3  # values: fewer say nothing about their spread


@dataclass(frozen=True)
class Stats:
    """Of `n` values, in their unit.  p95 interpolates between neighbours; stddev is the sample's (n - 1), None for one value.

    ci95: the median lies there in 95 of 100 resamplings (seeded); None for fewer than three values.  Values that follow each other
    in time, as tokens do, vary together: theirs is narrower than what another run would show.
    """

    median: float
    p95: float
    mean: float
    stddev: float | None
    n: int
    ci95: tuple[float, float] | None = None


def summarize(values: Sequence[float]) -> Stats:
    """The statistics of at least one value."""
    array = np.asarray(values, np.float64)
    assert array.ndim == 1 and array.size, f"statistics of {array.shape} values"
    stddev = float(array.std(ddof=1)) if array.size > 1 else None
    median, p95 = float(np.median(array)), float(np.percentile(array, 95))
    return Stats(median, p95, float(array.mean()), stddev, array.size, _bootstrap(array))


def _bootstrap(array: np.ndarray) -> tuple[float, float] | None:
    if array.size < LEAST:
        return None
    rng = np.random.default_rng(0)
    medians = [np.median(array[rng.integers(0, array.size, array.size)]) for _ in range(RESAMPLES)]
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Change:
    """From a to b as a share of a (0.1: b is 10 % more), with the 95 % interval of Welch's t-test on logarithms."""

    share: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out "no change"."""
        return self.low > 0 or self.high < 0


def change(a: Sequence[float], b: Sequence[float]) -> Change | None:
    """How the geometric means of two sets of positive values differ; None where one has fewer than three."""
    if min(len(a), len(b)) < LEAST or min(*a, *b) <= 0:
        return None
    x, y = np.log(np.asarray(a, np.float64)), np.log(np.asarray(b, np.float64))
    u, v = float(x.var(ddof=1)) / x.size, float(y.var(ddof=1)) / y.size
    middle, half = float(y.mean() - x.mean()), 0.0
    if u + v > 0:
        freedom = (u + v) ** 2 / (u**2 / (x.size - 1) + v**2 / (y.size - 1))
        half = t_quantile(0.975, freedom) * math.sqrt(u + v)
    return Change(math.expm1(middle), math.expm1(middle - half), math.expm1(middle + half))


def t_quantile(p: float, freedom: float) -> float:
    """The value below which Student's t with so many degrees of freedom stays with probability p, 0.5 <= p < 1."""
    low, high = 0.0, 2.0
    while _t_below(high, freedom) < p:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def _t_below(t: float, freedom: float) -> float:
    """P(T < t), t >= 0: Simpson's rule on the density, after t = sqrt(freedom) tan(angle), which makes it cos^(freedom - 1)."""
    angles = np.linspace(0, math.atan(t / math.sqrt(freedom)), 2001)
    height = np.cos(angles) ** (freedom - 1)
    area = float(height[0] + height[-1] + 4 * height[1:-1:2].sum() + 2 * height[2:-1:2].sum()) * float(angles[1]) / 3
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(math.pi)
    return 0.5 + area * math.exp(log_scale)
