"""The emulator sees what it is there to see: copies of kernels with one fault each, and what the launch table could get wrong."""

from dataclasses import replace

import pytest

from quamba_edge.backends import launch
from quamba_edge.backends.launch import Launch
from quamba_edge.errors import Missing
from quamba_edge.ops.op import all_ops
from tests.cuda.emulator import CUDA, EmulatedBackend, Emulator, EmulatorError, build
from tests.native.build import why_not
from tests.ops import harness

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
OPS = all_ops()

# Kernel file: (what is right, what stands there instead), an op and its case, what is said of it.
FAULTS = {
    "quantize": ("if (k < K)", "if (k <= K)", "quantize_i8", 1, "heap-buffer-overflow"),
    "embed": ("if (line >= lines) return;", "if (line + 1 >= lines) return;", "embed_w4", 1, "results unwritten"),
    "linear": ("2 * at.t + i % 2", "2 * at.t + 1 - i % 2", "linear_w4a8", 2, "errs by"),
    "linear_chunk": ("copies_wait<STAGES - 2>()", "copies_wait<STAGES - 1>()", "linear_w4a8", 7, "errs by|depends"),
    "rmsnorm": ("size_t(blockIdx.x) * x_stride", "size_t(blockIdx.x) * K", "rmsnorm_f16", 2, "errs by"),
    "scan": (
        "const int e = used ? i / SHARE : 0, held",
        "if (!used) return; const int e = i / SHARE, held",
        "scan_f32",
        1,
        "wait for",
    ),
    "gated_norm": ("v[i] * v[i];", "v[i] * v[i]; __syncwarp();", "gated_norm", 4, "wait for"),
    "hadamard": ("v[k] = x[k];", "v[k + 1] = x[k];", "hadamard_f16", 1, "heap-buffer-overflow"),
    "conv_silu": ("size_t(s) * steps * C + c", "size_t(s) * steps * C + c / 2 * 2", "conv_silu_f32", 0, "unwritten"),
    "ssd_chunk": (
        "        __syncthreads();  // nobody reads",
        "        // nobody reads",
        "ssd_f32",
        6,
        "errs by|depends",
    ),
    "ssd": ("    __syncthreads();\n", "", "ssd_i8", 0, "errs by|codes differ|depends"),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """One emulator of all the copies."""
    folder = tmp_path_factory.mktemp("faulty")
    sources = []
    for stem, (right, wrong, *_) in FAULTS.items():
        text = (CUDA / f"{stem}.cu").read_text()
        assert right in text, f"{stem}.cu no longer has {right!r}"
        sources.append(folder / f"{stem}.cu")
        text = text.replace("../common/", f"{CUDA.parent}/common/")
        sources[-1].write_text(text.replace(right, wrong))
    running = Emulator(build(folder, sources))
    yield running
    running.close()


@pytest.mark.parametrize("stem", FAULTS)
def test_a_fault_is_seen(stem, faulty, emulator):
    """And the same case of the kernel as it is passes."""
    _, _, name, index, said = FAULTS[stem]
    op, case = OPS[name], OPS[name].cases[index]
    inputs = harness.inputs_of(op, case, seed=1)

    def check(which):
        found = harness.run(EmulatedBackend(which), op, case, inputs)
        harness.assert_right(op, case, inputs, found)
        again = harness.run(EmulatedBackend(which, backwards=True), op, case, inputs)
        assert all((found[r] == again[r]).all() for r in found), "depends on the order of threads"

    check(emulator)
    with pytest.raises(AssertionError, match=said):
        check(faulty)


@pytest.mark.parametrize(
    "name, changes, said",
    [
        ("hadamard_i8", {"shared": 4 * 128 - 4}, "heap-buffer-overflow"),
        ("quantize_f16", {"block": 16}, "unwritten"),
        ("linear_w8a8", {"grid": (1, 2, 1)}, "unwritten|errs by"),
        ("conv_silu_f32", {"kernel": "conv_silu_i8"}, "another number of arguments"),
        ("rmsnorm_i8", {"kernel": "rmsnorm_u4"}, "no kernel rmsnorm_u4"),
        ("quantize_i8", {"block": 2048}, "1 to 1024 threads"),
    ],
)
def test_a_wrong_launch_is_seen(name, changes, said, emulator, monkeypatch):
    op, case = OPS[name], OPS[name].cases[0]
    inputs = harness.inputs_of(op, case, seed=1)
    right = launch.launch
    monkeypatch.setattr(launch, "launch", lambda *given: replace(right(*given), **changes))
    with pytest.raises(AssertionError, match=said):
        harness.assert_right(op, case, inputs, harness.run(EmulatedBackend(emulator), op, case, inputs))


def test_it_goes_on_after_an_error(emulator):
    with pytest.raises(EmulatorError):
        emulator.run(Launch("nothing", (1, 1, 1), 32), [])
    op, case = OPS["quantize_i8"], OPS["quantize_i8"].cases[0]
    inputs = harness.inputs_of(op, case, seed=1)
    harness.assert_right(op, case, inputs, harness.run(EmulatedBackend(emulator), op, case, inputs))


@pytest.mark.parametrize(
    "name, changes, said",
    [
        ("scan_f32", {"N": 17}, "at most 16"),
        ("ssd_i8", {"N": 256}, "at most 128"),
        ("conv_silu_i8", {"W": 5}, "at most 4"),
        ("linear_w4a8", {"K": 4096, "G": 48}, "multiple of 32"),
        ("hadamard_f16", {"K": 1 << 16}, "bytes of shared memory"),
    ],
)
def test_sizes_beyond_a_kernel_are_refused_in_words(name, changes, said):
    op = OPS[name]
    sizes, _ = harness.sizes_of(op, op.cases[0])
    with pytest.raises(Missing, match=f"{said}.*--backend cpu"):
        launch.launch(op, sizes | changes)


def test_every_source_is_in_the_table_and_the_other_way_round():
    stems = {p.stem for p in CUDA.glob("*.cu")}
    names = {n for stem in stems for n in launch.kernels(stem)}
    for op in OPS.values():
        for case in op.cases:
            for state in launch.STATES:
                assert launch.launch(op, harness.sizes_of(op, case)[0], state).kernel in names
    for name in names:
        assert any(name.startswith(stem) for stem in stems)
