"""Opening backends, and what recording refuses."""

import numpy as np
import pytest

from quamba_edge import backends
from quamba_edge.backends import cuda, reference
from quamba_edge.backends.base import Block
from quamba_edge.errors import BadBundle, BadUsage, Missing
from quamba_edge.ops.op import all_ops
from quamba_edge.ops.program import Buffer, Program, Ref, Step
from tests.ops import harness
from tests.runtime.memory import MemoryBundle


def test_auto_takes_the_first_that_can(monkeypatch) -> None:
    opened = backends.open_backend("auto")
    assert opened.name == next(n for n in backends.known() if backends.why_not(n) is None)
    monkeypatch.setattr(backends, "why_not", lambda name: None if name == "reference" else "no such machine")
    assert backends.open_backend().name == "reference"


def test_auto_says_what_it_passes_over(monkeypatch, caplog) -> None:
    """A GPU whose first kernel fails, in one line; nothing of a GPU where there is none."""

    def broken(threads):
        raise Missing("the CUDA driver: no binary: ask the doctor")

    monkeypatch.setattr(backends, "why_not", lambda name: "is not built: build it" if name == "cpu" else None)
    monkeypatch.setattr(cuda, "make", broken)
    monkeypatch.setattr(cuda, "present", lambda: True)
    assert backends.open_backend().name == "reference"
    assert [r.getMessage() for r in caplog.records] == [
        "backend cuda is passed over: the CUDA driver: no binary: ask the doctor; reference runs instead",
        "backend cpu is passed over: is not built: build it; reference runs instead",
    ]
    caplog.clear()
    monkeypatch.setattr(cuda, "present", lambda: False)
    assert backends.open_backend().name == "reference" and len(caplog.records) == 1
    with pytest.raises(Missing, match="no binary"):
        backends.open_backend("cuda")


def test_by_name_never_falls_back(monkeypatch) -> None:
    assert backends.open_backend("reference").name == "reference"
    monkeypatch.setattr(backends, "why_not", lambda name: "its parts are missing: fetch them")
    with pytest.raises(Missing, match="backend reference: its parts are missing: fetch them"):
        backends.open_backend("reference")
    with pytest.raises(BadUsage, match="'tpu' is not a backend.*auto.*reference"):
        backends.open_backend("tpu")
    with pytest.raises(BadUsage, match="no --threads"):
        reference.make(threads=2)


@pytest.mark.parametrize("name", harness.available())
def test_memory(name: str) -> None:
    """Blocks start as zeros, hold what is uploaded, and views share their bytes."""
    backend = harness.open_labelled(name)
    block = backend.alloc((3, 5), "f32")
    assert (backend.download(block) == 0).all()
    values = np.arange(15, dtype=np.float32).reshape(3, 5)
    backend.upload(block, values)
    assert (backend.download(block) == values).all()
    assert (backend.download(block.view((4,), "f32")) == [0, 1, 2, 3]).all()
    with pytest.raises(AssertionError, match="a view of 64 bytes in a block of 60"):
        block.view((16,), "f32")


def test_blocks_are_aligned() -> None:
    for size in (1, 7, 64, 1000):
        block = backends.open_backend("reference").alloc((size,), "i8")
        assert reference.array_of(block).ctypes.data % 64 == 0
        assert block.nbytes == size


def test_slabs_and_gathered_rows_give_what_whole_matrices_give(monkeypatch) -> None:
    """How an 8B bundle runs in little memory: matrices in slabs, embeddings by the row, nothing kept."""
    ops = {n: op for n, op in all_ops().items() if n.startswith(("linear", "embed"))}
    expected = {n: [harness.meaning(op, c, harness.inputs_of(op, c)) for c in op.cases] for n, op in ops.items()}
    monkeypatch.setattr(reference, "SLAB", 16)
    monkeypatch.setattr(reference, "KEEP", 0)

    def refuse(self, name):
        if name in ("codes", "weight"):
            raise AssertionError(f"{name} was decoded whole")
        return whole(self, name)

    whole = MemoryBundle.logical
    monkeypatch.setattr(MemoryBundle, "logical", refuse)
    for name, op in ops.items():
        for case, wanted in zip(op.cases, expected[name], strict=True):
            found = harness.run(reference.make(), op, case, harness.inputs_of(op, case))
            close = 1e-6 * max(1.0, float(np.abs(wanted["y"]).max()))  # f32 sums in another order
            assert np.allclose(found["y"], wanted["y"], rtol=0, atol=close), f"{name} {case}"


def quantize_program(**changed) -> tuple[Program, dict[str, Block]]:
    """quantize_i8 of columns 2..10 of a (3, 12) buffer."""
    op = all_ops()["quantize_i8"]
    refs = {"x": Ref("buffer", "x", cols=(2, 10)), "x_scale": Ref("weight", "s"), "y": Ref("buffer", "y"), **changed}
    buffers = Buffer("x", (3, 12), "f32"), Buffer("y", (3, 8), "i8"), Buffer("z", (3, 8), "f32")
    backend = reference.make()
    step = Step(op, refs, {"M": 3, "K": 8}, {}, "here")
    return Program(1, 1, buffers, (), (step,)), {b.name: backend.alloc(b.shape, b.dtype) for b in buffers}


def test_recording_checks_the_bundle() -> None:
    program, blocks = quantize_program()
    bundle = MemoryBundle()
    backend = reference.make()
    with pytest.raises(BadBundle, match="has no tensor s, which quantize_i8 at here reads"):
        backend.record(program, bundle, blocks, {})
    bundle.put("s", np.ones(2, np.float32))
    with pytest.raises(BadBundle, match=r"tensor s is f32 \(2,\) row, here needs"):
        backend.record(program, bundle, blocks, {})
    bundle.put("s", np.ones(1, np.float32))
    backend.run(backend.record(program, bundle, blocks, {}))
    assert backend.elapsed() > 0


@pytest.mark.parametrize(
    "changed",
    [
        {"x": Ref("buffer", "x", cols=(2, 9))},  # too few columns
        {"x": Ref("buffer", "x", cols=(6, 14))},  # beyond the end
        {"x": Ref("buffer", "x")},  # too many elements
        {"y": Ref("buffer", "z")},  # not int8
        {"y": Ref("buffer", "x", cols=(2, 10))},  # an argument that cannot be strided
    ],
)
def test_recording_checks_the_program(changed: dict[str, Ref]) -> None:
    """Our own mistakes: a kernel would read beyond its buffer."""
    program, blocks = quantize_program(**changed)
    bundle = MemoryBundle()
    bundle.put("s", np.ones(1, np.float32))
    with pytest.raises(AssertionError):
        reference.make().record(program, bundle, blocks, {})
