"""One op on one backend: inputs, a program of a single step around them, and what counts as right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from quamba_edge import backends
from quamba_edge.backends import cpu
from quamba_edge.backends.base import Backend
from quamba_edge.layouts import DTYPES
from quamba_edge.ops.numerics import dither, shape_of
from quamba_edge.ops.op import Arg, Op, Scalar, Size, all_ops
from quamba_edge.ops.program import Buffer, Program, Ref, StateSpec, Step
from tests.runtime.memory import MemoryBundle

# What programs bind to tensors of the bundle; everything else is a buffer, or a state.
WEIGHTS = {
    "codes",
    "scales",
    "weight",
    "bias",
    "A",
    "D",
    "dt_bias",
    "state_rows",
    "state_cols",
    "x_scale",
    "y_scale",
    "xbc_scale",
}
BEFORE, AFTER = 5, 3  # columns around a strided argument: as odd as a program could have them
AROUND = 99  # what these hold

Inputs = dict[str, np.ndarray]


def available() -> list[str]:
    """What this machine can run: backends by name, the native one once for each instruction set ("cpu avx2")."""
    found = []
    for name in backends.known():
        if backends.why_not(name) is None:
            found += [f"cpu {each}" for each in cpu.instruction_sets()] if name == "cpu" else [name]
    return found


def open_labelled(label: str, threads: int = 2) -> Backend:
    """The backend that `available` called so."""
    name, _, instruction_set = label.partition(" ")
    return cpu.CpuBackend(threads, instruction_set) if name == "cpu" else backends.open_backend(name)


def sizes_of(op: Op, case: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, float]]:
    """(sizes, scalars) of a case."""
    return (
        {a.name: int(case[a.name]) for a in op.args if isinstance(a, Size)},
        {a.name: float(case[a.name]) for a in op.args if isinstance(a, Scalar)},
    )


def inputs_of(op: Op, case: Mapping[str, Any], state: str = "f32", seed: int = 0) -> Inputs:
    """The in and inout arrays of a case: noise, and what the op's example says.  `state` is the dtype of a state argument."""
    rng = np.random.default_rng([seed, *op.name.encode()])
    sizes, _ = sizes_of(op, case)
    found = {}
    for arg in op.arrays:
        if arg.role != "out":
            found[arg.name] = _noise(state if arg.dtype == "state" else arg.dtype, shape_of(arg, sizes), rng)
    return found | ({} if op.example is None else {k: v for k, v in op.example(case, rng).items() if k in found})


def _noise(dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if dtype == "u4":
        return rng.integers(0, 16, shape).astype(np.uint8)
    if dtype in ("i8", "i32"):
        return rng.integers(-127, 128, shape).astype(DTYPES[dtype])
    return rng.standard_normal(shape).astype(DTYPES[dtype])


def meaning(op: Op, case: Mapping[str, Any], inputs: Inputs) -> Inputs:
    """What the op's definition returns, by name, in the dtype of the inputs."""
    sizes, scalars = sizes_of(op, case)
    values = op.reference(**inputs, **sizes, **scalars)
    return dict(zip((a.name for a in op.results), values if len(op.results) > 1 else (values,), strict=True))


def wide(inputs: Inputs) -> Inputs:
    """The same inputs with floats as f64."""
    return {n: a.astype(np.float64) if np.issubdtype(a.dtype, np.floating) else a for n, a in inputs.items()}


def unrounded(op: Op, case: Mapping[str, Any], inputs: Inputs) -> Inputs:
    """For every int8 result, its exact value in units of its scale, dithered where that is so: f64, before rounding."""
    exact, found = wide(inputs), {}
    out = op.results[-1]
    if out.dtype == "i8":
        scale = next(n for n in ("y_scale", "x_scale") if n in inputs)
        sibling = all_ops()[op.name[:-2] + ("f32" if op.name.startswith("conv") else "f16")]
        value = meaning(sibling, case, {n: a for n, a in exact.items() if n != scale})[out.name]
        found[out.name] = value / inputs[scale].astype(np.float64)
    if "state" in inputs and inputs["state"].dtype == np.int8:
        rows, cols = exact["state_rows"], exact["state_cols"]
        if "g" in case:
            heads = np.repeat(cols.reshape(case["g"], 1, -1), case["H"] // case["g"], axis=0)
            scale = rows.reshape(case["H"], -1, 1) * heads
        else:
            scale = rows[:, None] * cols
        value = meaning(op, case, {**exact, "state": inputs["state"] * scale})["state"] / scale
        last = np.repeat(inputs["dt"][:, -1], case.get("P", 1), axis=1)
        found["state"] = value + dither(last, case["N"]).reshape(value.shape)
    return found


def assert_right(op: Op, case: Mapping[str, Any], inputs: Inputs, found: Inputs) -> None:
    """Integers are equal but at ties of the float that is rounded; floats err at most twice as much as the plain formula."""
    naive, exact, before = meaning(op, case, inputs), meaning(op, case, wide(inputs)), unrounded(op, case, inputs)
    for name, value in found.items():
        assert value.shape == naive[name].shape and value.dtype == naive[name].dtype, (
            f"{op.name}.{name}: {value.dtype} {value.shape}"
        )
        if name in before:
            assert_codes(value, naive[name], before[name], f"{op.name}.{name} {case}")
        else:
            error, allowed = worst(value, exact[name]), worst(naive[name], exact[name])
            bound = 2 * allowed + 1e-6 * max(1.0, float(np.abs(exact[name]).max()))
            assert error <= bound, f"{op.name}.{name} {case}: errs by {error:.3g}, the plain formula by {allowed:.3g}"


def assert_codes(found: np.ndarray, expected: np.ndarray, before: np.ndarray, what: str) -> None:
    """Equal, but for a code that is one off in at most a thousandth of places, where the exact value is within 1e-3 of a tie."""
    off = np.abs(found.astype(int) - expected)
    tie = np.abs(np.abs(before - np.floor(before)) - 0.5) < 1e-3
    wrong = (off > 1) | ((off == 1) & ~tie)
    assert not wrong.any(), f"{what}: {wrong.sum()} codes differ, first at {tuple(np.argwhere(wrong)[0])}"
    assert off.sum() <= max(1, off.size // 1000), f"{what}: {off.sum()} of {off.size} codes are one off"


def worst(value: np.ndarray, exact: np.ndarray) -> float:
    return float(np.abs(value.astype(np.float64) - exact).max())


def run(backend: Backend, op: Op, case: Mapping[str, Any], inputs: Inputs) -> Inputs:
    """The op on a backend, in a program of one step; strided arguments lie inside wider buffers full of other values."""
    sizes, scalars = sizes_of(op, case)
    bundle, refs, contents = MemoryBundle(), {}, {}
    buffers: list[Buffer] = []
    states: list[StateSpec] = []
    chosen: dict[str, str] = {}
    for arg in op.arrays:
        shape = shape_of(arg, sizes)
        if arg.name in WEIGHTS and arg.role == "in":
            bundle.put(arg.name, inputs[arg.name], arg.layout, arg.dtype)
            refs[arg.name] = Ref("weight", arg.name)
        elif arg.name == "state":
            states.append(StateSpec(arg.name, shape[1:], arg.dtype))
            chosen[arg.name] = next(d for d, t in DTYPES.items() if t == inputs[arg.name].dtype)
            refs[arg.name], contents[arg.name] = Ref("state", arg.name), inputs[arg.name]
        else:
            array = _padded(arg, shape, inputs)
            buffers.append(Buffer(arg.name, array.shape, arg.dtype))
            cols = (BEFORE, BEFORE + shape[-1]) if arg.strided else None
            refs[arg.name], contents[arg.name] = Ref("buffer", arg.name, cols=cols), array
    step = Step(op, refs, sizes, scalars, op.name)
    program = Program(case.get("S", 1), case.get("T", 1), tuple(buffers), tuple(states), (step,))
    blocks = {b.name: backend.alloc(b.shape, b.dtype) for b in buffers}
    held = {s.name: backend.alloc(contents[s.name].shape, chosen[s.name]) for s in states}
    for name, block in {**blocks, **held}.items():
        backend.upload(block, contents[name])
    backend.run(backend.record(program, bundle, blocks, held))
    backend.sync()
    results = {a.name: backend.download({**blocks, **held}[a.name]) for a in op.results}
    for arg in op.arrays:
        if arg.role == "in" and refs[arg.name].kind == "buffer":
            assert (backend.download(blocks[arg.name]) == contents[arg.name]).all(), (
                f"{op.name} changed its input {arg.name}"
            )
    return {a.name: _within(a, results[a.name], op.name).reshape(shape_of(a, sizes)) for a in op.results}


def _within(arg: Arg, found: np.ndarray, op: str) -> np.ndarray:
    """The result itself, of a buffer that may be wider; what lies around it must be as it was."""
    if not arg.strided:
        return found
    around = np.delete(found, slice(BEFORE, found.shape[-1] - AFTER), -1)
    assert (around == AROUND).all(), f"{op}: changed what lies beside {arg.name}"
    return found[..., BEFORE : found.shape[-1] - AFTER]


def _padded(arg: Arg, shape: tuple[int, ...], inputs: Inputs) -> np.ndarray:
    """The buffer that holds an argument: itself, or (rows, before + columns + after) if it is strided; garbage for an output."""
    values = inputs[arg.name] if arg.role != "out" else np.full(shape, 77, DTYPES[arg.dtype])
    if not arg.strided:
        return values
    flat = values.reshape(math.prod(shape[:-1]), shape[-1])
    return np.pad(flat, ((0, 0), (BEFORE, AFTER)), constant_values=AROUND)
