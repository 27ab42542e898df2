"""Taps: what a quantizer looks at while a layer runs, and what it makes of the activations afterwards.

A mixer hands every named activation to its tap (docs/architecture.md, section 1).  `Observer` measures; `FakeQuant` rounds
as the running model will.  Both rotate out_proj's input when the recipe rotates, because both run on rotated weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

LINEARS = ("in_proj", "out_proj", "dt_proj")  # taps on the inputs of linears; x_proj's is "x"
# A channel's scale is at least this share of the largest one's: a channel silent in calibration may yet speak.
MARGIN = 1e-3


# Magnitudes are counted by their logarithm: OCTAVE bins for a factor of two, from 2^LOW to 2^HIGH.
OCTAVE, LOW, HIGH = 32, -30, 34
BINS = (HIGH - LOW) * OCTAVE
PART = 1 << 20  # values counted at once
# Shares of the largest magnitude that a static scale may cover, from which `searched_scale` takes the best.
REACHES = tuple(0.95**k for k in range(48))  # down to 9 %
COVERED = 0.99  # share of the tokens whose largest magnitude `covering_scale` covers


class Observer:
    """Largest magnitudes and Hessians, over everything that passes.  Of x, the `percentile` of each channel's magnitudes,
    averaged over batches, where that is below 100 (Quamba, section 4.2: the SSM's input is what outliers hurt).

    peak[name]     in_proj, out_proj, dt_proj: (1); x: (E); B, C: (g*N) or (N); state: shape of one state
    moments[site]  sum over tokens of v v^T for the inputs of a linear, (K, K), where `wanted` says "gptq", or its
                   diagonal alone, (K), where it says "rtn"
    counts[name]   `count` of the linears' inputs named in `spread`
    tops[name]     `count_tops` of those named in `unnormed`
    """

    def __init__(
        self,
        rotate_out: Callable[[Tensor], Tensor],
        wanted: Mapping[str, str] | None = None,
        percentile: float = 100.0,
        spread: Collection[str] = (),
        unnormed: Collection[str] = (),
    ):
        self.rotate_out = rotate_out
        self.wanted = wanted or {}
        self.percentile, self.spread, self.unnormed = percentile, spread, unnormed
        self.peak: dict[str, Tensor] = {}
        self.moments: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.tops: dict[str, Tensor] = {}
        self.states = 0  # seen
        self._quantiles: list[Tensor] = []  # of x, one per batch

    def __call__(self, name: str, value: Tensor) -> Tensor:
        if name == "out_proj":
            value = self.rotate_out(value)
        if name in LINEARS:
            self._raise(name, value.reshape(-1, 1))
            for names, way, seen in ((self.spread, count, self.counts), (self.unnormed, count_tops, self.tops)):
                if name in names:
                    seen[name] = seen[name].add_(way(value)) if name in seen else way(value)
        elif name == "x" and self.percentile < 100:
            self._average_quantile(value.flatten(0, 1))
        elif name in ("x", "B", "C", "state"):
            self._raise(name, value.flatten(0, 1))
            self.states += value.shape[0] * value.shape[1] if name == "state" else 0
        site = "x_proj" if name == "x" else name
        if site in self.wanted:
            flat = value.reshape(-1, value.shape[-1])
            moment = flat.T @ flat if self.wanted[site] == "gptq" else flat.square().sum(0)
            self.moments[site] = self.moments[site].add_(moment) if site in self.moments else moment
        return value

    def input_scale(self, name: str) -> Tensor:
        """Static int8 scale (1) of the input of a linear, by what was counted of it."""
        if name in self.tops:
            return covering_scale(self.peak[name], self.tops[name])
        return searched_scale(self.peak[name], self.counts[name]) if name in self.counts else scale_of(self.peak[name])

    def _raise(self, name: str, values: Tensor) -> None:
        """values (M, ...): the peak is over the first axis, found without a copy of the values."""
        top = torch.maximum(values.amax(0), -values.amin(0))
        self.peak[name] = torch.maximum(self.peak[name], top) if name in self.peak else top

    def _average_quantile(self, x: Tensor) -> None:
        magnitude = x.abs()  # (M, E)
        k = max(1, min(len(magnitude), round(len(magnitude) * self.percentile / 100)))
        self._quantiles.append(magnitude.kthvalue(k, dim=0).values)
        self.peak["x"] = torch.stack(self._quantiles).mean(0)  # every batch weighs the same


class Lack:
    """How the inputs of some sites differ from the source's, for `gptq.repaired`: each batch runs twice, once as the quantized
    model has it so far (`quantized` is the tap), then as the source has it (`source` is the tap).

    lack[site]  sum over tokens of (source's input - input) input^T, (K, K), for the sites `wanted`
    """

    def __init__(self, observer: Observer, wanted: Collection[str]):
        self.observer, self.wanted = observer, wanted
        self.lack: dict[str, Tensor] = {}
        self._inputs: dict[str, Tensor] = {}  # of this batch

    def quantized(self, name: str, value: Tensor) -> Tensor:
        value = self.observer(name, value)
        if name in self.wanted:
            self._inputs[name] = value.flatten(0, -2)
        return value

    def source(self, name: str, value: Tensor) -> Tensor:
        if name == "out_proj":
            value = self.observer.rotate_out(value)
        if name in self.wanted:
            ours = self._inputs.pop(name)
            lack = (value.flatten(0, -2) - ours).T @ ours
            self.lack[name] = self.lack[name].add_(lack) if name in self.lack else lack
        return value


def scale_of(peak: Tensor) -> Tensor:
    """Static int8 scales, f32: peak / 127, no channel finer than MARGIN of the coarsest."""
    return (peak.clamp_min((peak.max() * MARGIN).clamp_min(1e-8)) / 127).float()


def count(value: Tensor) -> Tensor:
    """How the magnitudes of value (..., K) spread over logarithmic bins: f64 (bins).  Every token weighs the same: its
    magnitudes count by one over their mean square, so that an error matters by its share of the token that it is in."""
    total = torch.zeros(BINS, dtype=torch.float64)
    for tokens in value.reshape(-1, value.shape[-1]).split(max(1, PART // value.shape[-1])):
        weight = tokens.square().mean(1, keepdim=True).clamp_min(1e-12).reciprocal().expand_as(tokens)
        total += torch.bincount(bin_of(tokens.abs()).flatten(), weight.flatten().double(), BINS)
    return total


def count_tops(value: Tensor) -> Tensor:
    """How many tokens of value (..., K) have their largest magnitude in each bin: f64 (bins)."""
    top = torch.maximum(value.amax(-1), -value.amin(-1))
    return torch.bincount(bin_of(top).flatten(), minlength=BINS).double()


def bin_of(magnitudes: Tensor) -> Tensor:
    """The logarithmic bin of each magnitude; changes its argument."""
    return magnitudes.clamp_(2.0**LOW, 2.0**HIGH).log2_().sub_(LOW).mul_(OCTAVE).int().clamp_(max=BINS - 1)


def searched_scale(peak: Tensor, counts: Tensor) -> Tensor:
    """The static int8 scale (1), f32, of least squared error for magnitudes up to `peak` that are spread as `count` says.

    For inputs behind a norm, whose tokens are of one size: a scale that covers the largest value wastes codes where that is rare.
    """
    edges = torch.linspace(LOW, HIGH, len(counts) + 1, dtype=torch.float64)
    middle = ((edges[:-1] + edges[1:]) / 2).exp2()
    scales = scale_of(peak).double() * torch.tensor(REACHES, dtype=torch.float64)[:, None]  # (reaches, 1)
    rounded = torch.minimum(middle.square(), scales.square() / 12)
    errors = torch.where(middle > 127.5 * scales, (middle - 127 * scales).square(), rounded) @ counts
    return scales[errors.argmin()].float()


def covering_scale(peak: Tensor, tops: Tensor) -> Tensor:
    """The static int8 scale (1), f32, that clips nothing of COVERED of the tokens, whose largest magnitudes are up to `peak` and
    spread as `count_tops` says.

    For inputs with no norm before them, as Mamba1's out_proj has.  A few tokens are ten times as large as the others: a scale for
    them starves the others, and the scale of least squared error cuts too many of them, which costs more than the error tells
    (docs/benchmarks.md, "What lowers the loss at the same bytes").
    """
    least = int(torch.searchsorted(tops.cumsum(0), COVERED * tops.sum())) + 1  # bins that hold COVERED of the tokens
    return scale_of(peak.clamp(max=2.0 ** (LOW + least / OCTAVE))).view(1)


def fake_quant(value: Tensor, scale: Tensor) -> Tensor:
    """What is left of value after int8 with the given scale: the runtime's rounding (ties to even, reciprocal in f32)."""
    return (value * scale.reciprocal()).round().clamp(-127, 127) * scale


class FakeQuant:
    """Rounds the activations named in `scales`, and leaves the others; a linear's input without a scale becomes f16."""

    def __init__(self, rotate_out: Callable[[Tensor], Tensor], scales: dict[str, Tensor]):
        self.rotate_out = rotate_out
        self.scales = scales

    def __call__(self, name: str, value: Tensor) -> Tensor:
        if name == "out_proj":
            value = self.rotate_out(value)
        if name in self.scales:
            scale = self.scales[name]
            return fake_quant(value, scale.view(value.shape[2:]) if scale.numel() > 1 else scale)
        return value.half().float() if name in LINEARS else value


# Of the int8 state's scales, by family: they reach to STATE_REACH / ln(states seen) times the largest of these, because the largest
# of n values with an exponential tail grows as ln n.  docs/numerics.md has the sweeps; 1024 states are 128 windows of 512 tokens.
STATE_REACH = {"mamba": 1.0 * math.log(1024), "mamba2": 0.75 * math.log(1024)}


def state_scales(peak: Tensor, seen: int, reach: float) -> tuple[Tensor, Tensor]:
    """rows (E) and cols (g*N) with rows[e] * cols[n] * 127 covering `peak` (g, E/g, N), the largest of `seen` states, times a margin.

    A state's size varies by channel and by state index nearly independently, so two vectors serve for the whole (E, N).
    They cover the row's largest elements and are too wide for the others, whose rounding is what an int8 state loses:
    for Mamba2 cutting the largest peaks by a quarter costs less.
    """
    margin = reach / math.log(max(seen, 4))
    floor = (peak.max() * 1e-4).clamp_min(1e-8)
    logs = peak.clamp_min(floor).log()
    cols = (logs - logs.mean(2, keepdim=True)).mean(1).exp()  # (g, N)
    rows = (peak.clamp_min(floor) / cols[:, None, :]).amax(2) * margin / 127  # (g, E/g)
    return rows.flatten().float(), cols.flatten().float()
