"""What PycudaDevice calls, in which order, against stand-ins for pycuda and libcuda; test_real_pycuda.py has pycuda itself."""

import ctypes
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from quamba_edge.backends import cuda, cuda_pieces
from quamba_edge.backends.cuda_device import Address
from quamba_edge.backends.launch import Launch
from quamba_edge.errors import Missing


class Recorder:
    """pycuda.driver as far as it is used; memory is this process's."""

    Error = type("Error", (Exception,), {})
    MemoryError = type("MemoryError", (Error,), {})
    device_attribute = SimpleNamespace(INTEGRATED="integrated", MULTIPROCESSOR_COUNT="sms", CLOCK_RATE="kHz")
    function_attribute = SimpleNamespace(MAX_DYNAMIC_SHARED_SIZE_BYTES="shared")

    def __init__(self):
        self.calls, self.memory = [], {}
        self.integrated = 0

    def init(self):
        self.calls.append("init")

    def Device(self, index):
        context = SimpleNamespace(push=lambda: self.calls.append("push"), detach=lambda: self.calls.append("detach"))
        return SimpleNamespace(
            retain_primary_context=lambda: context,
            get_attribute=lambda which: {"integrated": self.integrated, "sms": 8, "kHz": 1_020_000}[which],
            compute_capability=lambda: (8, 7),
        )

    def Stream(self, flags):
        return SimpleNamespace(handle=77, synchronize=lambda: self.calls.append("synchronize"))

    def Event(self):
        return SimpleNamespace(record=lambda stream: None, synchronize=lambda: None, time_since=lambda other: 250.0)

    def module_from_buffer(self, data):
        function = SimpleNamespace(
            prepare=lambda formats: self.calls.append(("prepare", formats)),
            set_attribute=lambda which, value: self.calls.append((which, value)),
            prepared_async_call=lambda grid, block, stream, *arguments, shared_size: self.calls.append(
                ("call", grid, block, arguments, shared_size)
            ),
        )
        return SimpleNamespace(get_function=lambda name: function)

    def pagelocked_empty(self, shape, dtype):
        return np.empty(shape, dtype)

    def mem_alloc(self, nbytes):
        if nbytes > 1 << 30:
            raise self.MemoryError("out of memory")
        array = np.full(nbytes, 9, np.uint8)
        self.memory[array.ctypes.data] = array
        return _Allocation(array.ctypes.data)

    def memset_d8_async(self, address, value, count, stream):
        self.memory[address][:count] = value

    def memcpy_htod_async(self, address, source, stream):
        ctypes.memmove(address, source.ctypes.data, source.nbytes)

    def memcpy_dtod_async(self, to, source, nbytes, stream):
        ctypes.memmove(to, source, nbytes)

    def memcpy_dtoh(self, array, address):
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def mem_get_info(self):
        return 5, 10


class _Allocation:
    def __init__(self, address):
        self.address = address

    def __int__(self):
        return self.address


class Libcuda:
    """Every function notes its name and succeeds, or fails with `status`."""

    def __init__(self):
        self.names, self.status = [], {}

    def __getattr__(self, name):
        def call(*arguments):
            self.names.append(name)
            return self.status.get(name, 0)

        return call


class Mapping(Libcuda):
    """Virtual memory: a unit of 1000 bytes, `room` units in all; what was made, mapped and given back."""

    def __init__(self, room):
        super().__init__()
        self.room, self.made, self.mapped, self.reserved = room, [], {}, {}

    def cuDeviceGetAttribute(self, found, which, device):
        found._obj.value = 1 if which == cuda_pieces.VIRTUAL_MEMORY else 0
        return 0

    def cuMemGetAllocationGranularity(self, unit, kind, option):
        assert (kind._obj.type, kind._obj.location.type, kind._obj.location.id) == (1, 1, 0)
        unit._obj.value = 1000
        return 0

    def cuMemAddressReserve(self, address, size, alignment, wanted, flags):
        address._obj.value = 1 << 32
        self.reserved[1 << 32] = size.value
        return 0

    def cuMemCreate(self, handle, size, kind, flags):
        if sum(self.mapped.values()) + size.value > 1000 * self.room:
            return cuda_pieces.OUT_OF_MEMORY
        self.made.append(size.value)
        handle._obj.value = len(self.made)
        return 0

    def cuMemMap(self, address, size, offset, handle, flags):
        assert size.value == self.made[handle.value - 1]
        self.mapped[address.value] = size.value
        return 0

    def cuMemUnmap(self, address, size):
        assert self.mapped.pop(address.value) == size.value
        return 0

    def cuMemAddressFree(self, address, size):
        assert self.reserved.pop(address.value) == size.value
        return 0


def test_a_large_tensor_comes_in_pieces_at_one_address():
    native = Mapping(room=100)
    memory = cuda_pieces.Pieces(native, 6500, largest=2600)
    assert native.made == [2000, 2000, 2000, 1000] and list(native.mapped) == [(1 << 32) + 2000 * i for i in range(4)]
    assert native.names.count("cuMemSetAccess") == 1 and native.names.count("cuMemRelease") == 4
    assert memory.address == 1 << 32
    del memory
    assert not native.mapped and not native.reserved


def test_pieces_that_do_not_fit_are_given_back():
    native = Mapping(room=3)
    with pytest.raises(MemoryError):
        cuda_pieces.Pieces(native, 6500, largest=2600)
    assert native.made == [2000] and not native.mapped and not native.reserved
    native.status["cuMemSetAccess"], native.room = 801, 100
    with pytest.raises(Missing, match="maps no memory .error 801."):
        cuda_pieces.Pieces(native, 10, largest=2600)
    assert not native.mapped and not native.reserved


def test_large_allocations_are_pieces_where_the_driver_can(opened, monkeypatch):
    driver, _, device = opened
    monkeypatch.setattr(cuda, "SEGMENT", 3000)
    assert isinstance(device.alloc(4000), cuda.PycudaMemory), "this driver cannot"
    device.native, device.pieces = Mapping(room=100), True
    monkeypatch.setattr(driver, "memset_d8_async", lambda *given: driver.calls.append(given[:3]))
    assert device.alloc(4000).address == 1 << 32 and driver.calls[-1] == (1 << 32, 0, 4000)
    assert isinstance(device.alloc(2000), cuda.PycudaMemory)


@pytest.fixture
def opened(monkeypatch, tmp_path):
    driver, native = Recorder(), Libcuda()
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=driver))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setattr(cuda, "_driver", lambda: native)
    monkeypatch.setattr(cuda, "CUBINS", tmp_path)
    monkeypatch.setattr(cuda, "STAGE", 1000)
    monkeypatch.setattr(cuda.PycudaDevice, "_try", lambda device: None)  # nothing here runs kernels
    (tmp_path / "sm_87").mkdir()
    (tmp_path / "sm_87" / "ssd.cubin").write_bytes(b"x")
    (tmp_path / "sm_87" / "cubins.json").write_text(json.dumps({"files": {"ssd": {"kernels": {"k": {}}}}}))
    device = cuda.PycudaDevice()
    native.names.clear()
    return driver, native, device


def test_memory_is_zeroed_filled_in_stages_and_read_back(opened):
    _, _, device = opened
    memory, values = device.alloc(4 * 1300), np.arange(1300, dtype=np.float32)
    found = np.empty(1300, np.float32)
    device.download(memory.address, found)
    assert (found == 0).all()
    device.upload(memory.address, values.reshape(13, 100))
    device.download(memory.address, found)
    assert (found == values).all()
    device.post(1, memory.address + 8, np.array([7], np.float32))
    values[2] = 7
    other = device.alloc(4 * 1300)
    device.copy(other.address, memory.address, 4 * 1300)
    device.download(other.address, found)
    assert (found == values).all()
    with pytest.raises(MemoryError):
        device.alloc(2 << 30)


def test_launches_are_prepared_once_and_told_of_much_shared_memory(opened):
    driver, _, device = opened
    for shared in (100, 60000, 60000):
        device.launch(Launch("k", (3, 2, 1), 64, shared), [Address(4096), 7, 0.5])
    rest = driver.calls[2:]
    assert rest[0] == ("prepare", "Pif") and rest.count(("shared", 60000)) == 1 and len(rest) == 5
    assert rest[-1] == ("call", (3, 2, 1), (64, 1, 1), (4096, 7, 0.5), 60000)
    assert device.seconds() == 0.25


def test_graphs_are_captured_instantiated_and_launched(opened):
    _, native, device = opened
    order = []
    graph = device.capture(lambda: order.append(list(native.names)))
    device.replay(graph)
    assert order == [["cuStreamBeginCapture_v2"]]
    assert native.names[1:] == ["cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphDestroy", "cuGraphLaunch"]
    del graph
    assert native.names[-1] == "cuGraphExecDestroy"
    native.status["cuStreamEndCapture"] = 901
    with pytest.raises(Missing, match="capture: .*quamba-edge doctor"):
        device.capture(lambda: None)


def test_a_closed_device_leaves_the_context_with_nothing_in_it(opened):
    driver, _, device = opened
    device.close()
    assert driver.calls[-2:] == ["synchronize", "detach"] and not device.modules and not device.staging


def test_peaks_are_the_tensor_cores(opened):
    """An Orin Nano's 33 trillion operations on bytes, where a multiply-add is two."""
    assert opened[2].peaks() == (8 * 1.02e9 * 2048, 8 * 1.02e9 * 1024)


def test_a_board_that_shares_its_memory_asks_linux(opened):
    driver, _, device = opened
    assert device.free_bytes() == 5
    device.integrated = True
    assert device.free_bytes() > 1 << 20
