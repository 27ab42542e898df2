"""Every op of ops/, on every backend that this machine has, against its numpy meaning in f64."""

import numpy as np
import pytest

from quamba_edge.layouts import DTYPES
from quamba_edge.ops.numerics import shape_of
from quamba_edge.ops.op import Arg, all_ops
from tests.ops import harness

OPS = all_ops()


def variants(op):
    """Cases, times the state's dtypes where there is a state of that kind."""
    states = ("f32", "f16", "i8") if any(a.dtype == "state" for a in op.arrays) else ("f32",)
    return [(case, state) for case in op.cases for state in states]


EVERY = [pytest.param(name, i, id=f"{name}-{i}") for name, op in OPS.items() for i in range(len(variants(op)))]


def test_the_contract_has_all_its_ops() -> None:
    """docs/architecture.md, section 3."""
    expected = {f"embed_w{b}" for b in (4, 8, 16)} | {"gated_norm", "part_norm"}
    expected |= {f"linear_{m}" for m in ("w4a8", "w8a8", "w4a16", "w8a16", "w16a16")}
    expected |= {f"{n}_{k}" for n in ("rmsnorm", "tied_norm", "hadamard", "quantize") for k in ("i8", "f16")}
    expected |= {f"{n}_{k}" for n in ("conv_silu", "ssd", "scan") for k in ("i8", "f32")}
    assert set(OPS) == expected


@pytest.mark.parametrize(("name", "index"), EVERY)
def test_meaning(name: str, index: int) -> None:
    """f32 inputs give results of the declared dtype and shape, close to what f64 gives; inputs stay as they are."""
    op = OPS[name]
    case, state = variants(op)[index]
    inputs = harness.inputs_of(op, case, state)
    kept = {n: a.copy() for n, a in inputs.items()}
    found, exact = harness.meaning(op, case, inputs), harness.meaning(op, case, harness.wide(inputs))
    before = harness.unrounded(op, case, inputs)
    sizes, _ = harness.sizes_of(op, case)
    for arg in op.results:
        value = found[arg.name]
        dtype = state if arg.dtype == "state" else arg.dtype
        assert value.dtype == DTYPES[dtype] and value.shape == shape_of(arg, sizes)
        if arg.name in before:
            harness.assert_codes(value, exact[arg.name], before[arg.name], name)
            assert np.abs(value.astype(int)).max() <= 127
        else:
            assert exact[arg.name].dtype == np.float64
            bound = {"f32": 1e-5, "f16": 1e-3}[dtype] * max(1.0, float(np.abs(exact[arg.name]).max()))
            assert harness.worst(value, exact[arg.name]) <= bound
    assert all((inputs[n] == kept[n]).all() for n in inputs)


@pytest.mark.parametrize("backend", harness.available())
@pytest.mark.parametrize(("name", "index"), EVERY)
def test_backend(name: str, index: int, backend: str) -> None:
    op = OPS[name]
    case, state = variants(op)[index]
    inputs = harness.inputs_of(op, case, state, seed=1)
    harness.assert_right(op, case, inputs, harness.run(harness.open_labelled(backend), op, case, inputs))


@pytest.mark.parametrize("name", OPS)
def test_examples_exercise_the_op(name: str) -> None:
    """Results vary and are finite, and int8 results are neither all zero nor all saturated."""
    op = OPS[name]
    for case in op.cases[1:]:
        for arg, value in harness.meaning(op, case, harness.inputs_of(op, case, "i8")).items():
            assert np.isfinite(value.astype(np.float64)).all()
            if value.size > 8:
                assert len(np.unique(value)) > 4, f"{name}.{arg} {case}"
            if value.dtype == np.int8 and value.size > 100:
                assert (np.abs(value.astype(int)) == 127).mean() < 0.5, f"{name}.{arg} {case}"


def test_the_bounds_notice_small_errors() -> None:
    """A harness that passes everything proves nothing: a sum off by 1e-4, and a code off by one, are caught."""
    op, case = OPS["linear_w4a16"], OPS["linear_w4a16"].cases[0]
    inputs = harness.inputs_of(op, case)
    value = harness.meaning(op, case, inputs)["y"]
    harness.assert_right(op, case, inputs, {"y": value})
    with pytest.raises(AssertionError, match="errs by"):
        harness.assert_right(op, case, inputs, {"y": value * np.float32(1 + 1e-4)})
    op, case = OPS["quantize_i8"], OPS["quantize_i8"].cases[0]
    inputs = harness.inputs_of(op, case)
    value = harness.meaning(op, case, inputs)["y"]
    with pytest.raises(AssertionError, match="codes differ"):
        harness.assert_right(op, case, inputs, {"y": np.where(value < 100, value + 1, value).astype(np.int8)})


def test_arguments_come_in_kernel_order() -> None:
    """Arrays, then sizes, then scalars: what native kernels and the launcher rely on."""
    for op in OPS.values():
        kinds = ["Arg" if isinstance(a, Arg) else type(a).__name__ for a in op.args]
        assert kinds == sorted(kinds, key=["Arg", "Size", "Scalar"].index), op.name
        assert len({a.name for a in op.args}) == len(op.args), op.name
