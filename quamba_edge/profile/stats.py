"""What is said of repeated measurements: the median and the tail, because a mean hides the one slow run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stats:
    """Of `n` values, in their unit.  p95 interpolates between neighbours; stddev is the sample's (n - 1), None for one value."""

    median: float
    p95: float
    mean: float
    stddev: float | None
    n: int


def summarize(values: Sequence[float]) -> Stats:
    """The statistics of at least one value."""
    array = np.asarray(values, np.float64)
    assert array.ndim == 1 and array.size, f"statistics of {array.shape} values"
    stddev = float(array.std(ddof=1)) if array.size > 1 else None
    return Stats(float(np.median(array)), float(np.percentile(array, 95)), float(array.mean()), stddev, array.size)
