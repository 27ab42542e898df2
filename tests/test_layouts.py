"""Layouts: what is packed comes back, and lies where the contract says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quamba_edge import layouts
from quamba_edge.errors import MissingLayout

# (layout, logical dtype): everything a bundle may hold
HOLDS = [(name, dtype) for name, layout in layouts.LAYOUTS.items() for dtype in layout.dtypes]


def noise(dtype, shape, seed=0, layout="row"):
    rng = np.random.default_rng(seed)
    if dtype in ("f32", "f16"):
        return rng.standard_normal(shape).astype(layouts.DTYPES[dtype])
    low, high = {"u4": (0, 16), "u8": (0, 256), "i8": (-128, 128), "i32": (-(2**31), 2**31)}[dtype]
    if layout == "n16k4x6":
        low, high = -32, 32
    return rng.integers(low, high, shape).astype(layouts.DTYPES[dtype])


@pytest.mark.parametrize(("layout", "dtype"), HOLDS)
@settings(deadline=None, max_examples=60)
@given(N=st.integers(1, 70), K=st.integers(1, 70), seed=st.integers(0, 99), data=st.data())
def test_round_trip_whole_in_slabs_and_by_rows(layout, dtype, N, K, seed, data):
    logical = noise(dtype, (N, K), seed, layout)
    stored = layouts.pack(layout, logical, dtype)
    assert (stored.shape, stored.nbytes % 64) == (layouts.stored_spec(layout, dtype, (N, K))[1], 0)
    assert np.array_equal(layouts.unpack(layout, stored, (N, K)), logical)
    start = data.draw(st.integers(0, (N - 1) // 16)) * 16
    stop = data.draw(st.integers(start, N))
    assert np.array_equal(layouts.unpack_rows(layout, stored, (N, K), start, stop), logical[start:stop])
    rows = np.array(data.draw(st.lists(st.integers(0, N - 1), max_size=9)), int)
    assert np.array_equal(layouts.gather(layout, stored, (N, K), rows), logical[rows])
    slabs = layouts.empty(layout, dtype, (N, K))
    for i in range(0, N, 32):
        layouts.pack_rows(layout, logical[i : i + 32], slabs, (N, K), i)
    assert slabs.tobytes() == stored.tobytes()
    wide = layouts.widen(layout, stored, (N, K))
    assert wide.tobytes() == layouts.pack(layouts.as_read(layout), logical, dtype).tobytes()


def test_big_matrices_are_packed_in_slabs_to_the_same_bytes(monkeypatch):
    codes = noise("u4", (100, 40))
    whole = layouts.pack("n16k8", codes)
    monkeypatch.setattr(layouts, "SLAB", 40 * 16)
    assert np.array_equal(layouts.pack("n16k8", codes), whole)


def test_every_nibble_lies_where_the_formula_says():
    N, K = 37, 21
    codes = noise("u4", (N, K))
    words = layouts.pack("n16k8", codes)
    assert words.dtype == np.uint32 and words.shape == (3, 3, 16)
    for n in range(48):
        for k in range(24):
            j, i = k // 8, k % 4
            high = k % 8 >= 4
            nibble = int(words[n // 16, j, n % 16]) >> (8 * i + 4 * high) & 15
            assert nibble == (codes[n, k] if n < N and k < K else 8), (n, k)


def test_every_byte_of_n16k4_and_n16_lies_where_the_formula_says():
    codes, scales = noise("i8", (18, 6)), noise("f16", (18, 3))
    flat, lanes = layouts.pack("n16k4", codes).reshape(-1), layouts.pack("n16", scales).reshape(-1)
    for n in range(32):
        for k in range(8):
            at = ((n // 16 * 2 + k // 4) * 16 + n % 16) * 4 + k % 4
            assert flat[at] == (codes[n, k] if n < 18 and k < 6 else 0), (n, k)
        for g in range(3):
            assert lanes[(n // 16 * 3 + g) * 16 + n % 16] == (scales[n, g] if n < 18 else 0), (n, g)


def test_every_code_of_n16k4x6_lies_where_the_formula_says():
    N, K = 37, 22
    codes = noise("i8", (N, K), layout="n16k4x6")
    flat = layouts.pack("n16k4x6", codes).reshape(-1)
    for n in range(48):
        for k in range(24):
            at = ((n // 16 * 6 + k // 4) * 16 + n % 16) * 3
            number = int(flat[at]) | int(flat[at + 1]) << 8 | int(flat[at + 2]) << 16
            code = (number >> 6 * (k % 4) & 63) - 32
            assert code == (codes[n, k] if n < N and k < K else 0), (n, k)


def test_a_large_matrix_is_widened_in_slabs(monkeypatch):
    codes = noise("i8", (100, 40), layout="n16k4x6")
    stored = layouts.pack("n16k4x6", codes)
    monkeypatch.setattr(layouts, "SLAB", 600)
    assert np.array_equal(layouts.widen("n16k4x6", stored, codes.shape), layouts.pack("n16k4", codes))


def test_stored_shapes_keep_the_natural_shape_only_when_it_fills_its_lines():
    assert layouts.stored_spec("row", "f32", (4, 16)) == ("f32", (4, 16))
    assert layouts.stored_spec("row", "f32", (1,)) == ("f32", (16,))
    assert layouts.stored_spec("row", "f16", (3, 5, 7)) == ("f16", (128,))
    assert layouts.stored_spec("n16", "f16", (16, 3)) == ("f16", (64,))  # 96 bytes: half a line is filled
    assert layouts.stored_spec("n16k8", "u4", (768, 1536)) == ("u32", (48, 192, 16))
    assert layouts.stored_spec("n16k4", "i8", (1, 1)) == ("i8", (1, 1, 16, 4))


def test_row_keeps_any_rank_and_is_a_view():
    conv = noise("f32", (5, 3, 2))
    stored = layouts.pack("row", conv)
    back = layouts.unpack("row", stored, conv.shape)
    assert np.array_equal(back, conv) and np.shares_memory(back, stored)
    assert np.array_equal(layouts.gather("row", stored, conv.shape, np.array([4, 0])), conv[[4, 0]])


def test_misuse_is_refused():
    with pytest.raises(MissingLayout, match="n8k32.*upgrade"):
        layouts.find("n8k32")
    with pytest.raises(AssertionError, match="0..15"):
        layouts.pack("n16k8", np.full((16, 8), 16, np.uint8))
    with pytest.raises(AssertionError, match="-32..31"):
        layouts.pack("n16k4x6", np.full((16, 8), 32, np.int8))
    with pytest.raises(AssertionError, match="holds"):
        layouts.pack("n16k4", np.zeros((16, 8), np.float32))
    stored = layouts.pack("n16k4", np.zeros((32, 8), np.int8))
    for rows in ([32], [-1]):
        with pytest.raises(IndexError, match="rows"):
            layouts.gather("n16k4", stored, (32, 8), np.array(rows))
    with pytest.raises(AssertionError):
        layouts.unpack_rows("n16k4", stored, (32, 8), 8, 32)
