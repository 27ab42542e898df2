"""The CUDA backend above the driver: what it asks of a device, in which order, and what is left when it fails."""

import ctypes
import gc
import hashlib
import json
import struct
import threading

import numpy as np
import pytest

from quamba_edge import backends
from quamba_edge.backends import cuda, cuda_load, cuda_plan
from quamba_edge.backends.cuda_plan import CudaBackend
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadUsage, DeviceLost, HashMismatch, Missing
from quamba_edge.ops.op import all_ops
from quamba_edge.profile.ops import ceilings
from quamba_edge.runtime.session import Engine, Session
from tests.cuda.fake_device import FakeDevice
from tests.cuda.test_whole_model import logits_of
from tests.golden.make import HERE
from tests.native.build import why_not
from tests.ops import harness
from tests.ops.test_every_op import variants

needs_compiler = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
OPS = all_ops()


@pytest.fixture(autouse=True)
def a_segment_for_each_tensor(monkeypatch):
    """The emulator sees a step beyond the end of one, and copies less."""
    monkeypatch.setattr(cuda_load, "SEGMENT", 1)


@needs_compiler
@pytest.mark.parametrize("name", OPS)
def test_ops(name, emulator):
    """Addresses, strides and order of arguments, for the first and the last case of each op and all dtypes of a state."""
    op = OPS[name]
    for case, state in variants(op):
        if case in (op.cases[0], op.cases[-1]):
            inputs = harness.inputs_of(op, case, state, seed=1)
            backend = CudaBackend(lambda: FakeDevice(emulator))
            harness.assert_right(op, case, inputs, harness.run(backend, op, case, inputs))


@needs_compiler
@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_a_model_runs_launch_by_launch_once_and_then_as_a_graph(family, emulator):
    """And says, to the bit, what its kernels say without a graph: the second decode step is a replay."""
    tokens = np.random.default_rng(3).integers(0, 4096, 4)
    backend = CudaBackend(lambda: FakeDevice(emulator))
    found = logits_of(HERE / f"{family}.qedge", backend, tokens, prompt=1)
    expected = logits_of(HERE / f"{family}.qedge", backends.open_backend("reference"), tokens, prompt=1)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    names = backend.device.names()
    first = names.index("capture")
    assert "launch" in names[:first] and "replay" not in names[:first] and "replay" in names[first:]
    weights = [detail for name, detail in backend.device.calls if name == "upload"]
    with Bundle.open(HERE / f"{family}.qedge") as bundle:
        largest = max(bundle.tensor(n).nbytes for n in bundle.manifest.tensors)
    assert weights.count(largest) == 1, "weights go to the device once, whatever runs on them"


@needs_compiler
def test_times_are_of_single_launches(emulator, monkeypatch):
    """And are a run like any other: the logits are those of a run without a clock."""
    backend = CudaBackend(lambda: FakeDevice(emulator))
    with Bundle.open(HERE / "mamba2.qedge") as bundle:
        engine = Engine(bundle, backend)
        plan = engine.plan(1, 1, "last")
        plan.run(np.array([[7]]))
        expected = plan.logits()
        engine.slot(1).state.write(None)
        seconds = backend.times(plan._recorded)
    assert seconds.shape == (len(plan.program.steps),) and (seconds == 0.001).all()
    monkeypatch.setattr(cuda_plan, "COPIED", 1000)
    found = ceilings(backend)
    assert (found.bandwidth, found.dots, found.fmas) == (2 * 10 * 1000 / 0.001, 2e12, 1e12)
    assert (plan.logits() == expected).all()


@needs_compiler
def test_everything_is_given_back_on_the_devices_thread(emulator):
    """A closed engine leaves nothing allocated."""
    backend = CudaBackend(lambda: FakeDevice(emulator))
    bundle = Bundle.open(HERE / "mamba2.qedge")
    session = Session(Engine(bundle, backend))
    session.prefill(np.arange(2))
    assert backend.device.used() > 0
    bundle.close()
    del session, bundle
    gc.collect()
    backend.sync()
    assert backend.device.used() == 0
    assert "free" in backend.device.names() and "free at a wrong place" not in backend.device.names()


def test_a_device_is_closed_when_its_backend_goes():
    """On its thread, as the last thing: pycuda aborts a process whose thread ends with a context."""
    device = FakeDevice()
    backend = CudaBackend(lambda: vars(device).update(thread=threading.get_ident()) or device)
    thread = backend._owner.thread
    del backend
    gc.collect()
    thread.join(10)
    assert not thread.is_alive() and device.names()[-1] == "close"


def test_what_the_driver_refuses_is_said_in_one_line(monkeypatch):
    backend = CudaBackend(FakeDevice)
    monkeypatch.setattr(backend.device, "seconds", lambda: 1 / 0)
    with pytest.raises(Missing, match="the CUDA driver: division by zero: `quamba-edge doctor`"):
        backend.elapsed()
    monkeypatch.setattr(backend.device, "sync", lambda: 1 / 0)  # now everything fails
    with pytest.raises(DeviceLost, match="lost it .division by zero.: start it again"):
        backend.elapsed()


def load(device, monkeypatch, segment=1 << 16, others=None):
    monkeypatch.setattr(cuda_load, "SEGMENT", segment)
    monkeypatch.setattr(cuda_load, "KEPT_FREE", 0)
    backend, told = CudaBackend(device), []
    bundle = Bundle.open(HERE / "mamba2.qedge")
    backend.load(bundle, lambda: others or {}, lambda done, total: told.append((done, total)))
    return backend, backend.loader.resident[bundle].places, bundle, told


def test_weights_come_in_segments_all_allocated_before_the_first_is_read(monkeypatch):
    """None but that of a single larger tensor exceeds the segment; every tensor lies where it is said to, on its boundary."""
    backend, places, bundle, told = load(FakeDevice, monkeypatch)
    held = {n: bundle.tensor(n) for n in places}
    calls = backend.device.calls
    names = [name for name, _ in calls]
    assert names.count("alloc") > 3 and names.index("upload") > max(i for i, n in enumerate(names) if n == "alloc")
    sizes = [detail for name, detail in calls if name == "alloc"]
    larger = [s for s in sizes if s > 1 << 16]
    assert all(any(cuda_load._room(a.nbytes) == s for a in held.values()) for s in larger)
    for name, address in places.items():
        at = backend.device.place(address)
        found = at.array[at.offset : at.offset + held[name].nbytes]
        assert address % 256 == 0 and (found == held[name].reshape(-1).view(np.uint8)).all(), name
    assert "tokenizer.json" not in places
    total = sum(a.nbytes for a in held.values())
    assert told == sorted(told) and told[-1] == (total, total) and len(told) > len(places), (
        "progress, also within a tensor"
    )
    backend.load(bundle, dict, lambda done, total: 1 / 0)  # all there: nothing happens


def test_loading_does_not_map_the_file(monkeypatch):
    """Mapped pages would count as this process's, all of them: the file is read through the device's buffers."""
    _, _, bundle, _ = load(FakeDevice, monkeypatch)
    assert bundle._map is None and not bundle._unchecked - {"tokenizer.json"}, "read, hashed, never mapped"


REFUSALS = {
    "too little": (FakeDevice(room=1 << 18), {}, r"needs 0.00 GB of GPU memory \(weights 0.00\).*close other programs"),
    "too little beside them": (FakeDevice(room=1 << 20), {"state": 1 << 20}, r"weights 0.00, state 0.00"),
    "no large pieces": (FakeDevice(largest=1 << 15), {}, "in pieces of"),
    "no more in the middle": (FakeDevice(), {}, "in pieces of"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_out_of_memory_is_one_sentence_and_leaves_nothing(kind, monkeypatch):
    device, others, said = REFUSALS[kind]
    if kind == "no more in the middle":
        device.free_bytes = lambda: 1 << 30  # what the system says, and what it has
        device.room = 9 * (HERE / "mamba2.qedge").stat().st_size // 10

    def opened():
        device.thread = threading.get_ident()
        return device

    with pytest.raises(Missing, match=said):
        load(opened, monkeypatch, others=others)
    gc.collect()
    assert "upload" not in device.names()
    assert (device.names().count("alloc") > 1) == (kind == "no more in the middle")
    assert device.used() == 0


def test_a_damaged_tensor_in_the_middle_of_loading_leaves_nothing(monkeypatch, tmp_path):
    data = bytearray((HERE / "mamba2.qedge").read_bytes())
    with Bundle.open(HERE / "mamba2.qedge") as bundle:
        data[bundle.places["layers.1.out_proj.codes"].start + 100] ^= 1
    (tmp_path / "bad.qedge").write_bytes(data)
    monkeypatch.setattr(cuda_load, "KEPT_FREE", 0)
    backend = CudaBackend(FakeDevice)
    with Bundle.open(tmp_path / "bad.qedge") as bundle:
        with pytest.raises(HashMismatch, match="layers.1.out_proj.codes"):
            Engine(bundle, backend)
    gc.collect()
    backend.sync()
    assert backend.device.used() == 0


def test_why_not_says_what_to_do(monkeypatch, tmp_path):
    """No driver; no cubins; cubins of another toolkit, another GPU, or changed since: a reason and a remedy each."""
    monkeypatch.setattr(cuda, "_driver", lambda: ctypes.CDLL("libno-such-driver.so"))
    assert cuda.why_not() == "no CUDA driver (libcuda.so.1) on this machine: use --backend cpu"
    folder = tmp_path / "sm_87"
    assert "cubins.json is missing): make -C csrc cuda ARCHS=87" in cuda.unusable(folder, (12, 6), 87)
    folder.mkdir()
    header = b"\x7fELF\x02\x01\x01\x33\x07" + bytes(7) + struct.pack("<HHIQQQI", 2, 190, 126, 0, 0, 0, 0x00570557)
    data = header.ljust(64, b"\0")
    digest = hashlib.sha256(data).hexdigest()
    (folder / "cubins.json").write_text(json.dumps({"files": {"ssd": {"sha256": digest, "kernels": {}}}}))
    (folder / "ssd.cubin").write_bytes(data)
    assert cuda.unusable(folder, (12, 6), 87) is None
    assert "built with CUDA 12.6, this driver is CUDA 12.2" in cuda.unusable(folder, (12, 2), 87)
    assert "this GPU is sm_90" in cuda.unusable(folder, (12, 6), 90)
    (folder / "ssd.cubin").write_bytes(data + b"x")
    assert "is not the file that was built: make" in cuda.unusable(folder, (12, 6), 87)
    (folder / "cubins.json").write_text("{")
    assert "cannot be read" in cuda.unusable(folder, (12, 6), 87)


def test_threads_are_for_the_cpu():
    with pytest.raises(BadUsage, match="--threads"):
        cuda.make(threads=2)
