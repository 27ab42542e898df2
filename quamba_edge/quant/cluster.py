"""Sort-and-cluster: give the channels of the SSM input x a few shared 8-bit scales.

Channels that are large stay large whatever the text (Quamba2, section 4.3), so heads are sorted and cut into groups, and so are
the sorted channels of a head group; everything in one (head group, channel group) shares a scale.  Both cuts are
found by dynamic programming on the raw magnitudes, minimising sum(size * max^2), which is the expected squared rounding error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grouping:
    """How one layer's E = H * P channels are permuted and cut.

    heads      (H) new order of heads; a head never leaves its SSD group
    channels   (E) new order of channels: head heads[i] lies at i, its channels sorted by magnitude
    head_ends  (g, m) cumulative end of each head group within its SSD group
    chan_ends  (g, m, n) cumulative end of each channel group within a head
    scales_of  (E) index of the (SSD group, head group, channel group) that each *new* channel belongs to
    """

    heads: np.ndarray
    channels: np.ndarray
    head_ends: np.ndarray
    chan_ends: np.ndarray
    scales_of: np.ndarray


def cut(costs: np.ndarray, parts: int) -> list[int]:
    """Ends of the cheapest split of 0..n into at most `parts` runs, where costs[i, j] is the price of run [i, j]."""
    n = costs.shape[0]
    best = costs[0].copy()  # best[j]: cheapest split of 0..j into the runs so far
    back: list[np.ndarray] = []
    for _ in range(1, min(parts, n)):
        options = best[:-1, None] + costs[1:, :]  # last run is [i + 1, j]
        options = np.where(np.arange(n - 1)[:, None] < np.arange(n)[None, :], options, np.inf)
        choice = options.argmin(0)
        cheaper = options[choice, np.arange(n)] < best
        best = np.where(cheaper, options[choice, np.arange(n)], best)
        back.append(np.where(cheaper, choice, -1))  # -1: one run fewer is as good
    ends, j = [n], n - 1
    for choices in reversed(back):
        if choices[j] >= 0:
            j = int(choices[j])
            ends.insert(0, j + 1)
    return ends


def run_costs(profile: np.ndarray) -> np.ndarray:
    """costs[..., i, j] = (j - i + 1) * profile[..., j]^2 for ascending profiles (..., n)."""
    n = profile.shape[-1]
    sizes = np.arange(n)[None, :] - np.arange(n)[:, None] + 1
    return np.where(sizes > 0, sizes * (profile[..., None, :] ** 2), np.inf)


def _pad(ends: list[int], parts: int) -> np.ndarray:
    return np.array(ends + [ends[-1]] * (parts - len(ends)), dtype=np.int32)


def cheapest(profile: np.ndarray, parts: int) -> np.ndarray:
    """Price of the best split of each ascending profile (S, n) into `parts` runs; (S)."""
    costs = run_costs(profile)  # (S, n, n)
    best = costs[:, 0, :]
    n = profile.shape[-1]
    below = np.arange(n - 1)[:, None] < np.arange(n)[None, :]
    for _ in range(1, min(parts, n)):
        options = np.where(below, best[:, :-1, None] + costs[:, 1:, :], np.inf)
        best = np.minimum(best, options.min(1))
    return best[:, -1]


def sort_and_cluster(magnitude: np.ndarray, groups: int, head_parts: int = 4, chan_parts: int = 4) -> Grouping:
    """magnitude (H, P): largest |x| of every channel over the calibration text; groups: SSD groups g."""
    n_heads, width = magnitude.shape
    per = n_heads // groups
    order = np.argsort(magnitude, axis=1, kind="stable")  # (H, P) ascending inside each head
    profile = np.take_along_axis(magnitude, order, 1)
    heads = np.empty(n_heads, np.int64)
    head_ends = np.empty((groups, head_parts), np.int32)
    chan_ends = np.empty((groups, head_parts, chan_parts), np.int32)
    scales_of = np.empty((n_heads, width), np.int64)
    for s in range(groups):
        own = np.arange(s * per, (s + 1) * per)
        own = own[np.argsort((profile[own] ** 2).sum(1), kind="stable")]
        heads[s * per : (s + 1) * per] = own
        costs = np.full((per, per), np.inf)
        for i in range(per):  # price of head runs [i, i..]: their joint profile, best channel cuts, times their number
            joint = np.maximum.accumulate(profile[own[i:]], axis=0)
            costs[i, i:] = cheapest(joint, chan_parts) * np.arange(1, per - i + 1)
        ends = cut(costs, head_parts)
        head_ends[s] = _pad(ends, head_parts)
        for j, (a, b) in enumerate(zip([0, *ends], ends, strict=False)):
            cuts = cut(run_costs(profile[own[a:b]].max(0)), chan_parts)
            chan_ends[s, j] = _pad(cuts, chan_parts)
            which = np.searchsorted(np.array(cuts), np.arange(width), side="right")
            scales_of[s * per + a : s * per + b] = (s * head_parts + j) * chan_parts + which
        for j in range(len(ends), head_parts):
            chan_ends[s, j] = chan_ends[s, len(ends) - 1]
    channels = (heads[:, None] * width + order[heads]).reshape(-1)
    return Grouping(heads, channels, head_ends, chan_ends, scales_of.reshape(-1))


def group_max(values: np.ndarray, scales_of: np.ndarray) -> np.ndarray:
    """Each of the E channels gets the largest value of its group."""
    top = np.zeros(scales_of.max() + 1, values.dtype)
    np.maximum.at(top, scales_of, values)
    return top[scales_of]
