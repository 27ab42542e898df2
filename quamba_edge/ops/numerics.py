"""The scalar functions that the meanings of all ops share, and how their arguments' shapes follow from their sizes.

Float dtype: an op computes in f32, or in f64 when any float argument is f64; then nothing is rounded to f16 on the way out,
so that f64 inputs give the exact answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quamba_edge.ops.op import Arg

Array = np.ndarray
CODE_MAX = 127  # int8 activations and states use -127..127: negating a code never overflows


def shape_of(arg: Arg, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an argument: every word of `arg.shape` is an expression in the op's sizes, such as "K" or "2*g*N"."""
    return tuple(int(eval(word, {"__builtins__": {}}, dict(sizes))) for word in arg.shape.split())


def cases(names: str, *rows: tuple[float, ...]) -> tuple[dict[str, Any], ...]:
    """Sizes to test, one row a case: cases("M K", (1, 64), (3, 50))."""
    return tuple(dict(zip(names.split(), row, strict=True)) for row in rows)


def float_of(*arrays: Array) -> np.dtype:
    """The dtype to compute in: f32 unless an argument is f64."""
    return np.result_type(np.float32, *(a.dtype for a in arrays if np.issubdtype(a.dtype, np.floating)))


def silu(v: Array) -> Array:
    """v * sigmoid(v), without overflow."""
    e = np.exp(-np.abs(v))
    return v * np.where(v >= 0, 1 / (1 + e), e / (1 + e))


def softplus(v: Array) -> Array:
    """log(1 + exp(v)), without overflow."""
    return np.maximum(v, 0) + np.log1p(np.exp(-np.abs(v)))


def rms(x: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) over the last axis."""
    return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + x.dtype.type(eps))


def to_i8(v: Array, scale: Array) -> Array:
    """int8 codes of v: clip(rint(v * (1 / scale)), -127, 127); the reciprocal is an f32, ties go to even."""
    reciprocal = np.float32(1) / np.asarray(scale, np.float32)
    return np.clip(np.rint(v * reciprocal.astype(v.dtype)), -CODE_MAX, CODE_MAX).astype(np.int8)


def to_f16(v: Array) -> Array:
    """Round to f16, but leave the exact answer (f64) as it is."""
    return v.astype(np.float16) if v.dtype == np.float32 else v


def load_state(state: Array, scale: Array, dtype: np.dtype) -> Array:
    """A state array as floats: int8 codes times `scale` (f32, broadcastable), f16 and floats as they are."""
    value = state.astype(dtype)
    return value * scale.astype(dtype) if state.dtype == np.int8 else value


def store_state(value: Array, like: Array, scale: Array, dt: Array) -> Array:
    """The inverse of `load_state`: rounded once to the dtype of the array `like`, with `dither` where that is int8.

    dt  (S, rows): of the call's last token, raw, of every row of the state value (S, ..., N)
    """
    if like.dtype != np.int8:
        return value.astype(like.dtype)
    reciprocal = (np.float32(1) / np.asarray(scale, np.float32)).astype(value.dtype)
    codes = np.rint(value * reciprocal + dither(dt, value.shape[-1]).reshape(value.shape))
    return np.clip(codes, -CODE_MAX, CODE_MAX).astype(np.int8)


def dither(dt: Array, N: int) -> Array:
    """What is added to a state in units of its scale before it is rounded to int8: -1/2..1/2, f32 (S, rows, N), from dt (S, rows).

    An element that changes by less than half a step a token would stay for ever where it is; so it moves a whole step in the
    right share of tokens.  The numbers come from the bits of dt, which differ from token to token, so that every backend
    has the same and a text read twice gives the same state.  Along a row they are a Weyl sequence: whatever the row's
    seed, its elements' roundings nearly cancel in a sum over n.  All u32, wrapping around:

        seed = mix(bits of dt as f32 + row * 0x9E3779B1)       mix: *= 0x85EBCA6B, ^= >> 15, *= 0xC2B2AE35, ^= >> 13
        u[n] = (seed + n * 0x9E3779B9 as i32) / 2^32
    """
    seed = np.ascontiguousarray(dt, np.float32).view(np.uint32)
    seed = (seed + np.arange(dt.shape[1], dtype=np.uint32) * np.uint32(0x9E3779B1)) * np.uint32(0x85EBCA6B)
    seed = (seed ^ (seed >> np.uint32(15))) * np.uint32(0xC2B2AE35)
    seed ^= seed >> np.uint32(13)
    steps = seed[..., None] + np.arange(N, dtype=np.uint32) * np.uint32(0x9E3779B9)
    return steps.view(np.int32).astype(np.float32) * np.float32(2**-32)
