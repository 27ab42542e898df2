"""The native backend as a whole: threads, plans, what it refuses.  Single ops are in tests/ops/test_every_op.py."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quamba_edge.backends import cpu
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadUsage, Missing
from quamba_edge.ops.op import all_ops
from quamba_edge.ops.program import Buffer, Program, Ref, Step
from quamba_edge.runtime.session import Engine, Session
from tests.golden.make import HERE
from tests.ops import harness
from tests.runtime.memory import MemoryBundle

needs_library = pytest.mark.skipif(cpu.why_not() is not None, reason=str(cpu.why_not()))


def logits_of(family: str, backend: cpu.CpuBackend, tokens: np.ndarray) -> np.ndarray:
    session = Session(Engine(Bundle.open(HERE / f"{family}.qedge"), backend))
    return np.stack([session.prefill(tokens[:150]), *(session.decode(int(t)) for t in tokens[150:])])


@needs_library
@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_results_do_not_depend_on_the_number_of_threads(family: str) -> None:
    """Chunks write apart from each other and sums never cross them, so even the last bit is the same."""
    tokens = np.random.default_rng(0).integers(0, 4096, 160)
    alone = logits_of(family, cpu.CpuBackend(1), tokens)
    for threads in (2, 3, 8):
        assert (logits_of(family, cpu.CpuBackend(threads), tokens) == alone).all(), f"{threads} threads"


@needs_library
@pytest.mark.parametrize("family", ["mamba", "mamba2"])
@pytest.mark.parametrize("other", harness.available())
def test_every_instruction_set_says_nearly_the_same(family: str, other: str) -> None:
    tokens = np.random.default_rng(1).integers(0, 4096, 160)
    expected = logits_of(family, cpu.CpuBackend(2), tokens)
    found = logits_of(family, harness.open_labelled(other), tokens)
    worst = np.abs(found - expected).max() / np.abs(expected).max()
    assert worst < 0.05, f"{other} differs by {worst:.3g} of the largest logit"


@needs_library
def test_a_team_sleeps_wakes_and_runs_beside_busy_threads() -> None:
    """Many short runs with pauses longer than helpers stay awake, four teams at once, more threads than cores: all finish."""
    op, case = all_ops()["quantize_i8"], {"M": 64, "K": 64}
    inputs = harness.inputs_of(op, case)
    expected = harness.meaning(op, case, inputs)["y"]
    wrong = []

    def work(seed: int) -> None:
        backend, pauses = cpu.CpuBackend(4), np.random.default_rng(seed).choice([0, 0, 0, 0.0005, 0.004], 60)
        for pause in pauses:
            if (harness.run(backend, op, case, inputs)["y"] != expected).any():
                wrong.append(seed)
            time.sleep(pause)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    assert not wrong and not any(w.is_alive() for w in workers)


@needs_library
@settings(max_examples=60, deadline=None)
@given(
    M=st.integers(1, 40),
    N=st.integers(1, 70),
    K=st.integers(1, 300),
    G=st.sampled_from([8, 16, 32, 64, 128]),
    name=st.sampled_from([n for n in all_ops() if n.startswith("linear")]),
    which=st.integers(0, 3),
)
def test_linears_of_any_size(M: int, N: int, K: int, G: int, name: str, which: int) -> None:
    sets = cpu.instruction_sets()
    op, case = all_ops()[name], {"M": M, "N": N, "K": K, "add": 1}
    case |= {"G": G} if "_w4" in name else {}
    inputs = harness.inputs_of(op, case, seed=M)
    found = harness.run(cpu.CpuBackend(2, sets[which % len(sets)]), op, case, inputs)
    harness.assert_right(op, case, inputs, found)


@needs_library
@settings(max_examples=40, deadline=None)
@given(K=st.integers(1, 700), M=st.integers(1, 3), which=st.integers(0, 3))
def test_rotations_of_any_size(K: int, M: int, which: int) -> None:
    sets = cpu.instruction_sets()
    op, case = all_ops()["hadamard_f16"], {"M": M, "K": K}
    inputs = harness.inputs_of(op, case)
    harness.assert_right(op, case, inputs, harness.run(cpu.CpuBackend(1, sets[which % len(sets)]), op, case, inputs))


@needs_library
def test_every_step_is_timed() -> None:
    op = all_ops()["quantize_i8"]
    bundle, backend = MemoryBundle(), cpu.CpuBackend(2)
    bundle.put("s", np.ones(1, np.float32))
    refs = {"x": Ref("buffer", "x"), "x_scale": Ref("weight", "s"), "y": Ref("buffer", "y")}
    buffers = Buffer("x", (512, 512), "f32"), Buffer("y", (512, 512), "i8")
    program = Program(1, 512, buffers, (), (Step(op, refs, {"M": 512, "K": 512}, {}, "here"),) * 5)
    recorded = backend.record(program, bundle, {b.name: backend.alloc(b.shape, b.dtype) for b in buffers}, {})
    seconds = backend.times(recorded)
    assert seconds.shape == (5,) and (seconds > 0).all() and seconds.sum() <= backend.elapsed()


@needs_library
def test_what_is_refused() -> None:
    with pytest.raises(BadUsage, match="--threads 0: expected 1 to 256"):
        cpu.CpuBackend(0)
    with pytest.raises(Missing, match="'sse9', this machine has .*plain"):
        cpu.CpuBackend(1, "sse9")
    with pytest.raises(Missing, match="none of this machine's instruction sets"):
        cpu.peak("sse9")


def test_an_absent_or_broken_library_says_what_to_do(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "libquamba_cpu.so")
    cpu._library.cache_clear()
    assert "is not built: `make native`" in str(cpu.why_not())
    cpu.LIBRARY.write_bytes(b"not a library")
    assert "cannot be loaded" in str(cpu.why_not()) and "make native" in str(cpu.why_not())
    cpu._library.cache_clear()


def test_cores_that_count(monkeypatch) -> None:
    """Two threads of a core are one; a container's quota is a limit."""
    siblings = {
        f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}" for i in range(8)
    }
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: {0, 1, 4, 5, 6}, raising=False)
    monkeypatch.setattr(cpu, "_read", lambda path: siblings.get(path, ""))
    assert cpu.physical_cores() == 3
    monkeypatch.setattr(cpu, "_read", lambda path: siblings.get(path, "150000 100000"))
    assert cpu.physical_cores() == 2
    monkeypatch.setattr(cpu, "_read", lambda path: "")
    assert cpu.physical_cores() == 5  # nothing known of the cores: each counts


@needs_library
def test_the_ceilings_are_numbers() -> None:
    dots, fmas = cpu.peak("plain", 0.005)
    assert 1e7 < fmas < 1e13 and 1e7 < dots < 1e13
    assert 1e8 < cpu.read_bandwidth(1, 1 << 22, 2) < 1e13


@needs_library
def test_the_choice_of_instructions_comes_from_the_environment() -> None:
    """What a person does who looks for a fault; a fresh process, since the library is loaded once."""
    say = "from quamba_edge.backends import open_backend; print(open_backend('cpu').instruction_set)"
    env = {**os.environ, "QUAMBA_CPU": "plain", "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", say], env=env, capture_output=True, text=True, check=True)
    assert found.stdout == "plain\n"
