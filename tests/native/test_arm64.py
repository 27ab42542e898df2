"""The native library compiled for aarch64 and run in an emulator: NEON and plain, as a board would run them.

`make test-arm64`.  Correctness only: an emulator's speed says nothing of a board's.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from quamba_edge.apps.verify import verify
from quamba_edge.bundle.reader import Bundle
from quamba_edge.runtime.session import Engine, Session
from tests.conftest import REPO
from tests.golden.make import GOLDEN, HERE
from tests.native import build
from tests.native.remote import Process, RemoteBackend
from tests.ops import harness
from tests.ops.test_every_op import EVERY, OPS, variants

OUT = REPO / "build" / "arm64"
EMULATE = [build.EMULATOR, "-cpu", "max", "-L", build.SYSROOT]
SETS = build.SETS["aarch64"]

pytestmark = [
    pytest.mark.arm64,
    pytest.mark.skipif(build.why_not_arm64() is not None, reason=str(build.why_not_arm64())),
]


@pytest.fixture(scope="module")
def programs() -> Path:
    for target in ("simd-tests", "serve"):
        build.make(target, OUT, build.CROSS)
    return OUT


@pytest.fixture(scope="module")
def process(programs: Path) -> Iterator[Process]:
    running = Process([*EMULATE, str(programs / "serve")])
    yield running
    running.close()


@pytest.fixture(params=[(name, threads) for name in SETS for threads in (1, 2)], ids=lambda p: f"{p[0]}-{p[1]}")
def backend(request, process: Process) -> Iterator[RemoteBackend]:
    opened = RemoteBackend(process, request.param[1], request.param[0])
    yield opened
    opened.done()


@pytest.mark.parametrize("instruction_set", SETS)
def test_every_function(instruction_set: str, programs: Path) -> None:
    command = [*EMULATE, programs / f"simd_test_{instruction_set}"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, f"{instruction_set}: 0 wrong\n"), ran.stdout + ran.stderr


def test_the_board_has_neon(process: Process) -> None:
    assert process.quamba_instruction_sets().decode().split() == SETS


def test_an_older_board_has_plain_only(programs: Path) -> None:
    """Cortex-A57, of the first Jetson Nano: no dot products, and none of the NEON kernels is run."""
    old = Process([build.EMULATOR, "-cpu", "cortex-a57", "-L", build.SYSROOT, str(programs / "serve")])
    assert old.quamba_instruction_sets() == b"plain"
    old.close()


@pytest.mark.parametrize(("name", "index"), EVERY)
def test_op(name: str, index: int, backend: RemoteBackend) -> None:
    op = OPS[name]
    case, state = variants(op)[index]
    inputs = harness.inputs_of(op, case, state, seed=2)
    harness.assert_right(op, case, inputs, harness.run(backend, op, case, inputs))


@pytest.mark.parametrize("name", [n for n in OPS if n.startswith("linear")])
def test_linears_of_any_size(name: str, backend: RemoteBackend) -> None:
    """Numbers of tokens around the tiles', odd rows and columns, groups that end within a step."""
    rng = np.random.default_rng(3)
    for M in [*range(1, 15), 29]:
        case = {"M": M, "N": int(rng.integers(1, 70)), "K": int(rng.integers(1, 300)), "add": M % 2}
        case |= {"G": 8 << M % 4} if "_w4" in name else {}
        inputs = harness.inputs_of(OPS[name], case, seed=M)
        harness.assert_right(OPS[name], case, inputs, harness.run(backend, OPS[name], case, inputs))


@pytest.mark.parametrize("family", GOLDEN)
def test_golden_bundle(family: str, backend: RemoteBackend) -> None:
    """`quamba-edge verify`: the recorded logits and tokens, and every op of the program against the reference."""
    result = verify(HERE / f"{family}.qedge", backend)
    assert result.ok and result.ops and result.tokens, result.differences


@pytest.mark.parametrize("family", GOLDEN)
def test_threads_do_not_change_a_bit(family: str, process: Process) -> None:
    tokens = np.random.default_rng(0).integers(0, 4096, 150)
    found = []
    for threads in (1, 2):
        opened = RemoteBackend(process, threads, SETS[0])
        session = Session(Engine(Bundle.open(HERE / f"{family}.qedge"), opened))
        found.append(np.stack([session.prefill(tokens[:146]), *(session.decode(int(t)) for t in tokens[146:])]))
        opened.done()
    assert (found[0] == found[1]).all()
