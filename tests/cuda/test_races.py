"""No two threads of a launch touch the same byte, one of them writing, without a barrier between them (csrc/emu/races.cpp).

It is what compute-sanitizer's racecheck looks for on a GPU, and more: global memory too, and warps' lanes.
"""

import shutil

import numpy as np
import pytest

from quamba_edge.ops.op import all_ops
from quamba_edge.runtime.sampling import Sampler, Sampling
from tests.cuda.emulator import CUDA, EmulatedBackend, Emulator, EmulatorError, build
from tests.cuda.test_sample import choose
from tests.native.build import why_not
from tests.ops import harness
from tests.ops.test_every_op import EVERY, variants

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
OPS = all_ops()


@pytest.fixture(scope="module")
def watched():
    running = Emulator(build(target="races"))
    yield running
    running.close()


@pytest.mark.parametrize(("name", "index"), EVERY)
def test_no_op_races(name, index, watched):
    run(watched, name, *variants(OPS[name])[index])


def test_choosing_does_not_race(watched):
    for settings in SETTINGS:
        draw(watched, settings)


SETTINGS = [
    Sampling(repetition_penalty=1.7, logit_bias={3: 4.0}),
    Sampling(temperature=0.7, min_p=0.02),
    Sampling(temperature=1.1, top_k=200, top_p=0.9, min_p=0.001, frequency_penalty=0.4),
]


def run(emulator, name, case, state="f32"):
    inputs = harness.inputs_of(OPS[name], case, state, seed=1)
    harness.assert_right(OPS[name], case, inputs, harness.run(EmulatedBackend(emulator), OPS[name], case, inputs))


def draw(emulator, settings):
    """Noise, and logits that rise: then every step of a search for the largest writes."""
    noise = np.random.default_rng(1).normal(0, 2, 5003).astype(np.float32)
    for logits in (noise, np.sort(noise)):
        choose(emulator, logits, Sampler(settings).request([3, 5, 7], 3))


SHARED, BUFFER, COPY = "of shared memory", "of a buffer", "asynchronous copy is on its way"
# Kernel file: the file with the fault, what is right there, what stands there instead, an op and its case (or settings), what is said.
FAULTS = {
    "linear": ("cuda/linear.cu", "    __syncthreads();\n", "", ("linear_w4a16", 3), SHARED),
    "linear_chunk": (
        "cuda/linear_chunk.cu",
        "copies_wait<STAGES - 2>()",
        "copies_wait<STAGES - 1>()",
        ("linear_w4a8", 7),
        COPY,
    ),
    "ssd": ("cuda/ssd.cu", "    __syncthreads();\n", "", ("ssd_i8", 0), SHARED),
    "ssd_chunk": ("cuda/ssd_chunk.cu", "        __syncthreads();  // nobody reads", "//", ("ssd_f32", 6), SHARED),
    "rmsnorm": ("common/device.cuh", "    __syncthreads();\n", "    __syncwarp();\n", ("rmsnorm_f16", 0), SHARED),
    "hadamard": ("common/rotate.cuh", "    __syncthreads();\n", "", ("hadamard_f16", 1), SHARED),
    "scan": ("cuda/scan.cu", "held = used ? N : 0", "held = N", ("scan_f32", 2), BUFFER),
    "sample": (
        "common/sampling.cuh",
        "*room = 0;\n    __syncthreads();\n    if (yes)",
        "*room = 0;\n    if (yes)",
        SETTINGS[1],
        SHARED,
    ),
    "conv_silu": ("cuda/conv_silu.cu", "if (c >= C) return;", "if (c > C) return;", ("conv_silu_f32", 0), BUFFER),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """One program of all the copies, each with its own headers."""
    folder = tmp_path_factory.mktemp("races")
    for stem, (file, right, wrong, *_) in FAULTS.items():
        for part in ("cuda", "common", "emu", "cpu"):
            shutil.copytree(CUDA.parent / part, folder / "copies" / stem / part)
        copy = folder / "copies" / stem / file
        text = copy.read_text()
        assert right in text, f"{file} no longer has {right!r}"
        copy.write_text(text.replace(right, wrong))
    running = Emulator(build(folder, [folder / "copies" / s / "cuda" / f"{s}.cu" for s in FAULTS], target="races"))
    yield running
    running.close()


@pytest.mark.parametrize("stem", FAULTS)
def test_a_race_is_seen(stem, faulty):
    """The same kernels as they are pass, above."""
    *_, what, said = FAULTS[stem]
    with pytest.raises(EmulatorError, match=f"race at byte .*{said}"):
        if isinstance(what, Sampling):
            draw(faulty, what)
        else:
            run(faulty, what[0], OPS[what[0]].cases[what[1]])
