"""Where the elements of a matrix are in an mma's registers, as the PTX ISA says it: the emulator and all kernels rely on it.

Written from "Matrix Fragments for mma.m16n8k8 / .m16n8k16 / .m16n8k32" and "ldmatrix" of the PTX ISA, element by element, and not from
csrc/common/ptx.cuh, which is what it checks.  groupID = lane >> 2, threadID_in_group = lane % 4.
"""

from pathlib import Path

import numpy as np
import pytest

from quamba_edge.backends.launch import Launch
from tests.cuda.emulator import Emulator, Pointer, build
from tests.native.build import CSRC, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
KERNELS = ["fragment_i8", "fragment_f16", "fragment_tf32", "matrices", "copies", "too_early"]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fragments")
    source = folder / "fragments.cu"
    text = (Path(__file__).parent / "fragments.cu").read_text()
    source.write_text(text.replace('"ptx.cuh"', f'"{CSRC}/common/ptx.cuh"'))
    running = Emulator(build(folder, [source], lambda stem: KERNELS))
    yield running
    running.close()


def a_place_i8(lane: int, i: int) -> tuple[int, int]:
    """(row, column) of a_i, i = 0..15, in A 16 x 32."""
    group, thread = lane >> 2, lane % 4
    row = group if 0 <= i < 4 or 8 <= i < 12 else group + 8
    column = thread * 4 + (i & 3) if i < 8 else thread * 4 + (i & 3) + 16
    return row, column


def b_place_i8(lane: int, i: int) -> tuple[int, int]:
    """(row, column) of b_i, i = 0..7, in B 32 x 8."""
    group, thread = lane >> 2, lane % 4
    return (thread * 4 + (i & 3) if i < 4 else thread * 4 + (i & 3) + 16), group


def a_place_f16(lane: int, i: int) -> tuple[int, int]:
    """(row, column) of a_i, i = 0..7, in A 16 x 16."""
    group, thread = lane >> 2, lane % 4
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    return row, (thread * 2 + (i & 1) if i < 4 else thread * 2 + (i & 1) + 8)


def b_place_f16(lane: int, i: int) -> tuple[int, int]:
    """(row, column) of b_i, i = 0..3, in B 16 x 8."""
    group, thread = lane >> 2, lane % 4
    return (thread * 2 + (i & 1) if i < 2 else thread * 2 + (i & 1) + 8), group


def a_place_tf32(lane: int, i: int) -> tuple[int, int]:
    """(row, column) of a_i, i = 0..3, in A 16 x 8."""
    group, thread = lane >> 2, lane % 4
    return (group if i in (0, 2) else group + 8), (thread if i in (0, 1) else thread + 4)


def b_place_tf32(lane: int, i: int) -> tuple[int, int]:
    """(row, column) of b_i, i = 0..1, in B 8 x 8."""
    group, thread = lane >> 2, lane % 4
    return (thread if i == 0 else thread + 4), group


def c_place(lane: int, i: int) -> tuple[int, int]:
    """(row, column) of c_i, i = 0..3, in C or D 16 x 8."""
    group, thread = lane >> 2, lane % 4
    return (group if i < 2 else group + 8), thread * 2 + (i & 1)


def registers(matrix: np.ndarray, place, count: int) -> np.ndarray:
    """(32, count): what each lane holds."""
    return np.array([[matrix[place(lane, i)] for i in range(count)] for lane in range(32)], matrix.dtype)


def pointer(array: np.ndarray) -> Pointer:
    return Pointer(array.reshape(-1).view(np.uint8))


@pytest.mark.parametrize(
    "kernel, dtype, k, a_place, b_place, start",
    [
        ("fragment_i8", np.int8, 32, a_place_i8, b_place_i8, 0),
        ("fragment_f16", np.float16, 16, a_place_f16, b_place_f16, 0.5),
        ("fragment_tf32", np.float32, 8, a_place_tf32, b_place_tf32, 0),
    ],
)
def test_mma_multiplies_what_the_isa_says(kernel, dtype, k, a_place, b_place, start, emulator):
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-128, 128, shape).astype(dtype) for shape in ((16, k), (k, 8)))
    c = rng.integers(-1000, 1000, (16, 8)).astype(np.int32 if k == 32 else np.float32)
    held = registers(c, c_place, 4)
    each = 16 // np.dtype(dtype).itemsize
    arguments = [pointer(registers(a, a_place, each)), pointer(registers(b, b_place, each // 2)), pointer(held)]
    emulator.run(Launch(kernel, (1, 1, 1), 32), arguments)
    expected = a.astype(np.int64) @ b.astype(np.int64) + c + start
    assert (held == registers(expected, c_place, 4)).all()


def test_every_element_has_one_place():
    for place, count, shape in (
        (a_place_i8, 16, (16, 32)),
        (b_place_i8, 8, (32, 8)),
        (a_place_f16, 8, (16, 16)),
        (b_place_f16, 4, (16, 8)),
        (a_place_tf32, 4, (16, 8)),
        (b_place_tf32, 2, (8, 8)),
        (c_place, 4, (16, 8)),
    ):
        assert len({place(lane, i) for lane in range(32) for i in range(count)}) == shape[0] * shape[1] == 32 * count


def test_ldmatrix_gives_rows_and_transposed_columns(emulator):
    """Lanes 8 i .. 8 i + 7 address the rows of matrix i; a lane receives row lane / 4, elements 2 (lane % 4) and the next."""
    matrices = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)
    plain, transposed = np.zeros((32, 4, 2), np.uint16), np.zeros((32, 4, 2), np.uint16)
    emulator.run(
        Launch("matrices", (1, 1, 1), 32, 512), [pointer(matrices.copy()), pointer(plain), pointer(transposed)]
    )
    for lane in range(32):
        for i in range(4):
            for half in range(2):
                row, column = lane // 4, 2 * (lane % 4) + half
                assert plain[lane, i, half] == matrices[i, row, column]
                assert transposed[lane, i, half] == matrices[i, column, row]


@pytest.mark.parametrize("backwards", [False, True])
def test_asynchronous_copies_come_at_the_latest_when_they_are_waited_for(backwards, emulator):
    given, found = np.arange(256, dtype=np.uint32).reshape(64, 4), np.zeros((64, 4), np.uint32)
    emulator.run(Launch("copies", (1, 1, 1), 32, 1024), [pointer(given), pointer(found)], backwards)
    expected = given.copy()
    expected[32::2] = 0  # no source: zeros
    assert (found == expected).all()
    emulator.run(Launch("too_early", (1, 1, 1), 32, 512), [pointer(given), pointer(found)], backwards)
    right = (found[:32] == given[:32]).all()
    assert right != backwards, (
        "one order makes copies at once, the other when they are waited for: a missing wait shows"
    )
