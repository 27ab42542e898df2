"""The numpy meanings against the formulas written as loops over single numbers, in f64."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge import rotation
from quamba_edge.ops.op import all_ops
from tests.ops.harness import inputs_of, meaning, wide

OPS = all_ops()


def silu(v: float) -> float:
    return v / (1 + math.exp(-v))


def softplus(v: float) -> float:
    return math.log(1 + math.exp(v))


def sizes(op: str, *values: float) -> dict:
    names = [a.name for a in OPS[op].args if not hasattr(a, "dtype")]
    return dict(zip(names, values, strict=True))


def exact(op: str, case: dict, **changed: np.ndarray) -> tuple[dict, dict]:
    """(f64 inputs, f64 results)."""
    inputs = wide({**inputs_of(OPS[op], case), **changed})
    return inputs, meaning(OPS[op], case, inputs)


@pytest.mark.parametrize("kind", ["f32", "i8"])
@pytest.mark.parametrize("limits", [(0.0, math.inf), (0.02, 0.08)])
def test_ssd(kind: str, limits: tuple[float, float]) -> None:
    S, T, H, P, N, g = 2, 3, 4, 3, 5, 2
    case = sizes(f"ssd_{kind}", S, T, H, P, N, g, *limits)
    given, found = exact(f"ssd_{kind}", case)
    xbc = given["xbc"] * given.get("xbc_scale", 1.0)
    state, y = given["state"].copy(), np.zeros((S, T, H * P))
    for s, t, h, p in product(range(S), range(T), range(H), range(P)):
        group = h // (H // g)
        d = min(max(softplus(given["dt"][s, t, h] + given["dt_bias"][h]), limits[0]), limits[1])
        x = xbc[s, t, h * P + p]
        total = given["D"][h] * x
        for n in range(N):
            B, C = xbc[s, t, H * P + group * N + n], xbc[s, t, H * P + g * N + group * N + n]
            state[s, h, p, n] = math.exp(d * given["A"][h]) * state[s, h, p, n] + d * x * B
            total += C * state[s, h, p, n]
        y[s, t, h * P + p] = total
    assert np.allclose(found["y"], y, rtol=1e-12, atol=1e-12)
    assert np.allclose(found["state"], state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["f32", "i8"])
def test_scan(kind: str) -> None:
    S, T, E, N = 2, 4, 5, 3
    case = sizes(f"scan_{kind}", S, T, E, N)
    given, found = exact(f"scan_{kind}", case)
    xs = given["x"] * given.get("x_scale", 1.0)
    state, y = given["state"].copy(), np.zeros((S, T, E))
    for s, t, e in product(range(S), range(T), range(E)):
        d, x = softplus(given["dt"][s, t, e] + given["dt_bias"][e]), xs[s, t, e]
        total = given["D"][e] * x
        for n in range(N):
            state[s, e, n] = math.exp(d * given["A"][e, n]) * state[s, e, n] + d * given["B"][s, t, n] * x
            total += given["C"][s, t, n] * state[s, e, n]
        y[s, t, e] = total * silu(given["z"][s, t, e])
    assert np.allclose(found["y"], y, rtol=1e-12, atol=1e-12)
    assert np.allclose(found["state"], state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("T", [1, 2, 7])
def test_conv_silu(T: int) -> None:
    S, C, W = 2, 3, 4
    case = sizes("conv_silu_f32", S, T, C, W)
    given, found = exact("conv_silu_f32", case)
    y, state = np.zeros((S, T, C)), np.zeros((S, W - 1, C))
    for s, c in product(range(S), range(C)):
        past = [*given["state"][s, :, c], *given["x"][s, :, c]]  # past[W - 1 + t] is x[t]
        for t in range(T):
            y[s, t, c] = silu(given["bias"][c] + sum(given["weight"][c, w] * past[t + w] for w in range(W)))
        state[s, :, c] = past[-(W - 1) :]
    assert np.allclose(found["y"], y, rtol=1e-12)
    assert (found["state"] == state).all()
    scale = np.full(C, 0.02, np.float32)
    codes = meaning(OPS["conv_silu_i8"], case, {**given, "y_scale": scale})["y"]
    assert (codes == np.clip(np.rint(y * (np.float32(1) / scale)), -127, 127)).all()


@pytest.mark.parametrize(("bits", "act"), [(4, 8), (8, 8), (4, 16), (8, 16), (16, 16)])
@pytest.mark.parametrize("add", [0, 1])
def test_linear(bits: int, act: int, add: int) -> None:
    M, N, K, G = 3, 5, 21, 8  # the last group is shorter
    name = f"linear_w{bits}a{act}"
    case = sizes(name, M, N, K, *((G,) if bits == 4 else ()), add)
    given, found = exact(name, case)
    y = given["y"].copy() if add else np.zeros((M, N))
    for m, n, k in product(range(M), range(N), range(K)):
        x = given["x"][m, k] * (given["x_scale"][0] if act == 8 else 1.0)
        if bits == 16:
            w = given["weight"][n, k]
        elif bits == 8:
            w = given["codes"][n, k] * given["scales"][n]
        else:
            w = (int(given["codes"][n, k]) - 8) * given["scales"][n, k // G]
        y[m, n] += x * w
    assert np.allclose(found["y"], y, rtol=1e-12, atol=1e-12)


def test_w8a8_sums_are_exact_at_any_width() -> None:
    """The largest products of all: 127 * 127 * K is beyond f32's integers from K = 1041 on."""
    case = sizes("linear_w8a8", 1, 2, 5000, 0)
    x, codes = np.full((1, 5000), 127, np.int8), np.full((2, 5000), 127, np.int8)
    codes[1, 0] = 126
    one = np.ones(1, np.float64)
    given = {"x": x, "codes": codes, "x_scale": one, "scales": np.ones(2), "y": np.zeros((1, 2))}
    assert meaning(OPS["linear_w8a8"], case, given)["y"].tolist() == [[127 * 127 * 5000.0, 127 * 127 * 5000.0 - 127]]


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_embed(bits: int) -> None:
    M, N, K, G = 4, 6, 21, 8
    case = sizes(f"embed_w{bits}", M, N, K, *((G,) if bits == 4 else ()))
    given, found = exact(f"embed_w{bits}", case)
    for m, k in product(range(M), range(K)):
        row = given["tokens"][m]
        if bits == 16:
            w = given["weight"][row, k]
        elif bits == 8:
            w = given["codes"][row, k] * given["scales"][row]
        else:
            w = (int(given["codes"][row, k]) - 8) * given["scales"][row, k // G]
        assert found["y"][m, k] == w


def test_gated_norm_gates_first_and_normalizes_within_groups() -> None:
    M, E, groups, eps = 2, 12, 3, 1e-3
    given, found = exact("gated_norm", sizes("gated_norm", M, E, groups, eps))
    width = E // groups
    for m, group in product(range(M), range(groups)):
        v = [given["y"][m, e] * silu(given["z"][m, e]) for e in range(group * width, (group + 1) * width)]
        root = math.sqrt(sum(a * a for a in v) / width + eps)
        assert np.allclose(found["y"][m, group * width : (group + 1) * width], [a / root for a in v], rtol=1e-13)


@pytest.mark.parametrize("K", [16, 20, 12])
@pytest.mark.parametrize("rotate", [0, 1])
def test_tied_norm(K: int, rotate: int) -> None:
    """With a rotated stream the result is the rotation of what the plain model computes; 12 and 20 are not symmetric."""
    case = sizes("tied_norm_f16", 2, K, rotate, 1e-4)
    given = wide(inputs_of(OPS["tied_norm_f16"], case))
    x = given["x"]
    plain = given["weight"] * x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-4)
    m = rotation.matrix(K)
    stream = x @ m if rotate else x
    found = meaning(OPS["tied_norm_f16"], case, {**given, "x": stream})["y"]
    assert np.allclose(found, plain @ m if rotate else plain, atol=1e-12)


def test_codes_round_ties_to_even_and_saturate() -> None:
    x = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.4, 400.0, -400.0, 0.0]], np.float32)
    found = meaning(OPS["quantize_i8"], sizes("quantize_i8", 1, 10), {"x": x, "x_scale": np.ones(1, np.float32)})["y"]
    assert found.tolist() == [[0, 2, 2, 0, -2, 126, 127, 127, -127, 0]]


def test_large_arguments_do_not_overflow() -> None:
    case = sizes("ssd_f32", 1, 1, 2, 1, 2, 1, 0.0, math.inf)
    given = inputs_of(OPS["ssd_f32"], case)
    given["dt"][...] = [500.0, -500.0]
    with np.errstate(over="raise", invalid="raise"):
        found = meaning(OPS["ssd_f32"], case, given)
        silent = meaning(
            OPS["gated_norm"],
            sizes("gated_norm", 1, 2, 1, 1e-5),
            {"y": np.ones((1, 2), "f4"), "z": np.full((1, 2), -300, "f4")},
        )
    assert np.isfinite(found["state"]).all()
    assert np.allclose(found["state"][0, 1], given["state"][0, 1])  # softplus(-500) = 0: nothing decays, nothing enters
    assert np.isfinite(silent["y"]).all()


SPLIT = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(parts=SPLIT, kind=st.sampled_from(["f32", "i8"]), seed=st.integers(0, 3))
def test_any_split_of_time_gives_the_same(parts: list[int], kind: str, seed: int) -> None:
    """conv, ssd and scan over pieces with carried state, against the whole; f64, so equal but for the last bits."""
    T = sum(parts)
    for name, case, over_time in (
        (f"conv_silu_{kind}", sizes(f"conv_silu_{kind}", 2, T, 5, 4), ("x",)),
        (f"ssd_{kind}", sizes(f"ssd_{kind}", 2, T, 4, 3, 5, 2, 0.0, math.inf), ("xbc", "dt")),
        (f"scan_{kind}", sizes(f"scan_{kind}", 2, T, 5, 3), ("x", "dt", "B", "C", "z")),
    ):
        inputs = wide(inputs_of(OPS[name], case, seed=seed))
        whole = meaning(OPS[name], case, inputs)
        state, pieces, start = inputs["state"], [], 0
        for part in parts:
            cut = {n: a[:, start : start + part] if n in over_time else a for n, a in inputs.items()}
            piece = meaning(OPS[name], {**case, "T": part}, {**cut, "state": state})
            state, start = piece["state"], start + part
            pieces.append(piece["y"])
        assert np.allclose(np.concatenate(pieces, 1), whole["y"], rtol=1e-12, atol=1e-13)
        assert np.allclose(state, whole["state"], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["ssd_f32", "scan_f32"])
def test_state_is_rounded_once_at_the_end(name: str) -> None:
    """y does not depend on how the new state will be stored, and an int8 state is the f32 one, rounded by row and column scales
    with the dither of the last token's dt."""
    case = next(c for c in OPS[name].cases if c["T"] == 16)
    inputs = inputs_of(OPS[name], case, "f32")
    inputs["state"][...] = 0  # exactly representable in every dtype
    full = meaning(OPS[name], case, inputs)
    half = meaning(OPS[name], case, {**inputs, "state": inputs["state"].astype(np.float16)})
    codes = meaning(OPS[name], case, {**inputs, "state": inputs["state"].astype(np.int8)})
    assert (half["y"] == full["y"]).all() and (codes["y"] == full["y"]).all()
    assert (half["state"] == full["state"].astype(np.float16)).all()
    rows, cols = inputs["state_rows"], inputs["state_cols"]
    for index in np.ndindex(*full["state"].shape[1:]):
        if name == "ssd_f32":
            h, p, n = index
            row, scale = h * case["P"] + p, cols[h // (case["H"] // case["g"]) * case["N"] + n]
        else:
            (h, n), row = index, index[0]
            scale = cols[n]
        value = full["state"][(0, *index)] * (np.float32(1) / (rows[row] * scale))
        moved = np.rint(value + dither(inputs["dt"][0, -1, h], row, n))
        assert codes["state"][(0, *index)] == np.clip(moved, -127, 127)


def dither(dt: np.float32, row: int, n: int) -> np.float32:
    """The definition in quamba_edge/ops/numerics.py, one number at a time."""
    x = (int(dt.view(np.uint32)) + row * 0x9E3779B1) * 0x85EBCA6B % 2**32
    x = (x ^ x >> 15) * 0xC2B2AE35 % 2**32
    x = ((x ^ x >> 13) + n * 0x9E3779B9) % 2**32
    return np.float32(x - 2**32 if x >= 2**31 else x) / np.float32(2**32)
