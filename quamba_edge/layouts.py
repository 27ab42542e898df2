"""How weights lie in memory: for every layout a pack and unpack pair, with a picture.

A bundle stores what `pack` returns, the kernels read it as it lies, and everything that wants the numbers back comes here.
Little-endian throughout, as are all machines this runs on.  Sizes in words: W is (N, K), n counts rows, k columns.

Matrices of gigabytes are never decoded whole: `pack_rows` and `unpack_rows` work on slabs of rows, `gather` on single ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quamba_edge.errors import MissingLayout

LINE = 64  # bytes; every stored tensor is a whole number of cache lines, so each starts on one
SLAB = 1 << 22  # elements packed at a time: bounds temporary memory to a few times 4 MB

# Logical dtype names to numpy's.  A u4 code is one byte, 0..15, in a logical array.
DTYPES = {"f32": np.float32, "f16": np.float16, "i32": np.int32, "i8": np.int8, "u8": np.uint8, "u4": np.uint8}


def pack_row(rows: np.ndarray) -> np.ndarray:
    """C order: (N, ...) stays as it is.

    w[0,0] w[0,1] .. w[0,K-1] | w[1,0] ..
    """
    return np.ascontiguousarray(rows)


def unpack_row(blocks: np.ndarray) -> np.ndarray:
    """The inverse of `pack_row`."""
    return blocks


def pack_n16k8(codes: np.ndarray) -> np.ndarray:
    """4-bit codes (N, K), values 0..15, N % 16 == K % 8 == 0 -> uint32 (N/16, K/8, 16).

    64 bytes are 16 rows by 8 columns; lane r is row 16*b + r, columns 8*j .. 8*j+7:

        line [b][j]:   | lane 0         | lane 1         | ..  | lane 15        |     4 bytes each
        lane r:        | byte 0 | byte 1 | byte 2 | byte 3 |
        low nibble:      k=8j+0   8j+1     8j+2     8j+3       word & 0x0f0f0f0f: four columns, as bytes
        high nibble:     k=8j+4   8j+5     8j+6     8j+7       word >> 4 & 0x0f0f0f0f: the next four
    """
    N, K = codes.shape
    c = codes.reshape(N // 16, 16, K // 8, 2, 4)  # block, lane, j, nibble, byte
    lanes = c[..., 0, :] | c[..., 1, :] << 4  # (N/16, 16, K/8, 4)
    return np.ascontiguousarray(lanes.transpose(0, 2, 1, 3)).view("<u4")[..., 0]


def unpack_n16k8(words: np.ndarray) -> np.ndarray:
    """The inverse of `pack_n16k8`: uint32 (N/16, K/8, 16) -> uint8 (N, K)."""
    blocks, columns, _ = words.shape
    lanes = np.ascontiguousarray(words).view(np.uint8).reshape(blocks, columns, 16, 4).transpose(0, 2, 1, 3)
    return _nibbles(lanes).reshape(blocks * 16, columns * 8)


def _nibbles(lanes: np.ndarray) -> np.ndarray:
    """Bytes (..., 4) -> codes (..., 2, 4): the four low nibbles, then the four high ones."""
    return np.stack([lanes & 15, lanes >> 4], axis=-2)


def _words(lanes: np.ndarray) -> np.ndarray:
    """uint32 (...) -> codes (..., 2, 4)."""
    return _nibbles(np.ascontiguousarray(lanes)[..., None].view(np.uint8))


def pack_n16k4(codes: np.ndarray) -> np.ndarray:
    """8-bit codes (N, K), N % 16 == K % 4 == 0 -> int8 (N/16, K/4, 16, 4).

    64 bytes are 16 rows by 4 columns; lane r is row 16*b + r, columns 4*j .. 4*j+3:

        line [b][j]:   | r=0: 4j 4j+1 4j+2 4j+3 | r=1: 4j .. | ..  | r=15: .. 4j+3 |
    """
    N, K = codes.shape
    return np.ascontiguousarray(codes.reshape(N // 16, 16, K // 4, 4).transpose(0, 2, 1, 3))


def unpack_n16k4(blocks: np.ndarray) -> np.ndarray:
    """The inverse of `pack_n16k4`: int8 (N/16, K/4, 16, 4) -> int8 (N, K)."""
    return blocks.transpose(0, 2, 1, 3).reshape(blocks.shape[0] * 16, blocks.shape[1] * 4)


def pack_n16k4x6(codes: np.ndarray) -> np.ndarray:
    """6-bit codes (N, K), values -32..31, N % 16 == K % 4 == 0 -> uint8 (N/16, K/4, 16, 3).

    Tiles as in n16k4; a lane's four codes plus 32 are one number of 24 bits, column 4*j lowest, lowest byte first:

        byte 0: c0 and the low 2 bits of c1 | byte 1: the rest of c1, the low 4 bits of c2 | byte 2: the rest of c2, c3

    Kernels do not read it: it becomes n16k4 when a bundle is loaded (`as_read`, `widen`).
    """
    c = (pack_n16k4(codes) + 32).view(np.uint8)
    lanes = c[..., 0] | c[..., 1] << 6, c[..., 1] >> 2 | c[..., 2] << 4, c[..., 2] >> 4 | c[..., 3] << 2
    return np.stack(lanes, -1)


def unpack_n16k4x6(blocks: np.ndarray) -> np.ndarray:
    """The inverse of `pack_n16k4x6`: uint8 (N/16, K/4, 16, 3) -> int8 (N, K)."""
    return unpack_n16k4(_sixes(blocks))


def _sixes(lanes: np.ndarray) -> np.ndarray:
    """Bytes (..., 3) -> codes int8 (..., 4)."""
    b = [lanes[..., i] for i in range(3)]
    codes = np.empty((*lanes.shape[:-1], 4), np.uint8)
    codes[..., 0] = b[0] & 63
    codes[..., 1] = b[0] >> 6 | (b[1] & 15) << 2
    codes[..., 2] = b[1] >> 4 | (b[2] & 3) << 4
    codes[..., 3] = b[2] >> 2
    return codes.view(np.int8) - np.int8(32)


def pack_n16(scales: np.ndarray) -> np.ndarray:
    """Group scales (N, K/G), N % 16 == 0 -> (N/16, K/G, 16): the 16 scales that a 4-bit line's lanes need stand together.

    [b][g]:   | row 16b | row 16b+1 | ..  | row 16b+15 |
    """
    N, groups = scales.shape
    return np.ascontiguousarray(scales.reshape(N // 16, 16, groups).transpose(0, 2, 1))


def unpack_n16(blocks: np.ndarray) -> np.ndarray:
    """The inverse of `pack_n16`: (N/16, K/G, 16) -> (N, K/G)."""
    return blocks.transpose(0, 2, 1).reshape(blocks.shape[0] * 16, blocks.shape[1])


@dataclass(frozen=True)
class Layout:
    """One way for a tensor to lie: `pack` and `unpack` see sizes that are whole tiles of `rows` by `cols`.

    dtypes  logical dtypes it can hold
    stored  dtype of the stored array; None: the logical one
    fill    value of the rows and columns that pad to whole tiles
    lanes   sizes of the axes after (N/rows, K/cols)
    codes   smallest and largest value of packed codes
    open    what makes numbers (..., cols) of packed lanes
    wider   the layout that kernels read it in; None: as it lies
    """

    name: str
    dtypes: tuple[str, ...]
    pack: Callable[[np.ndarray], np.ndarray]
    unpack: Callable[[np.ndarray], np.ndarray]
    rows: int = 1
    cols: int = 1
    fill: int = 0
    stored: str | None = None
    lanes: tuple[int, ...] = ()
    codes: tuple[int, int] | None = None
    open: Callable[[np.ndarray], np.ndarray] | None = None
    wider: str | None = None

    def natural(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the packed array of a logical shape, before the tail that fills its last 64 bytes."""
        if self.rows == 1:
            return tuple(shape)
        N, K = shape
        return (-(-N // self.rows), -(-K // self.cols), *self.lanes)


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("row", ("f32", "f16", "i32", "i8", "u8"), pack_row, unpack_row),
        Layout("n16k8", ("u4",), pack_n16k8, unpack_n16k8, 16, 8, 8, "u32", (16,), (0, 15), _words),
        Layout("n16k4", ("i8",), pack_n16k4, unpack_n16k4, 16, 4, 0, None, (16, 4)),
        Layout("n16k4x6", ("i8",), pack_n16k4x6, unpack_n16k4x6, 16, 4, 0, "u8", (16, 3), (-32, 31), _sixes, "n16k4"),
        Layout("n16", ("f16", "f32"), pack_n16, unpack_n16, 16, 1, 0, None, (16,)),
    )
}


def find(name: str) -> Layout:
    """The layout of that name, or MissingLayout."""
    if name not in LAYOUTS:
        raise MissingLayout(f"layout {name!r} is not one of this version ({', '.join(LAYOUTS)}): upgrade quamba_edge")
    return LAYOUTS[name]


def stored_spec(layout: str, dtype: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """(dtype, shape) in which a tensor of logical dtype and shape is stored.

    The natural shape where that is a multiple of 64 bytes; else one axis, lengthened by zeros to the next multiple.
    """
    found = find(layout)
    stored = found.stored or dtype
    natural = found.natural(shape)
    per_line = LINE // itemsize(stored)
    count = math.prod(natural)
    return stored, natural if count % per_line == 0 else (-(-count // per_line) * per_line,)


def empty(layout: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Room for a stored tensor, zeroed; fill it with `pack_rows`."""
    stored, stored_shape = stored_spec(layout, dtype, shape)
    return np.zeros(stored_shape, array_type(stored))


def pack_rows(layout: str, rows: np.ndarray, stored: np.ndarray, shape: tuple[int, ...], start: int) -> None:
    """Write logical rows [start, start + len(rows)) of a tensor of that shape into `stored` (from `empty`).

    `start` is a multiple of the layout's tile (16); so is the number of rows, but for the last slab.
    """
    found = find(layout)
    stop = start + len(rows)
    assert start % found.rows == 0 and stop <= shape[0] and (stop % found.rows == 0 or stop == shape[0])
    assert rows.shape[1:] == tuple(shape[1:]), f"rows of shape {rows.shape} for a tensor of {shape}"
    if found.codes is not None:
        least, most = found.codes
        assert rows.dtype == DTYPES[found.dtypes[0]], f"{rows.dtype} codes for layout {layout}"
        assert rows.size == 0 or least <= rows.min() and rows.max() <= most, f"codes of {layout} are {least}..{most}"
    else:
        assert rows.dtype == stored.dtype, f"{rows.dtype} rows for a {stored.dtype} tensor"
    if found.rows > 1:
        N, K = rows.shape
        short = -N % found.rows, -K % found.cols
        if any(short):
            rows = np.pad(rows, ((0, short[0]), (0, short[1])), constant_values=found.fill)
    _natural(found, stored, shape)[start // found.rows : -(-stop // found.rows)] = found.pack(rows)


def pack(layout: str, logical: np.ndarray, dtype: str | None = None) -> np.ndarray:
    """The stored form of a logical array.  `dtype` is needed only to say u4 of a uint8 array; n16k8 implies it."""
    found = find(layout)
    names = [dtype] if dtype else [d for d in found.dtypes if DTYPES[d] == logical.dtype]
    assert names and names[0] in found.dtypes, f"layout {layout} holds {found.dtypes}, not {dtype or logical.dtype}"
    stored = empty(layout, names[0], logical.shape)
    slab = max(SLAB // max(math.prod(logical.shape[1:]), 1) // 16 * 16, 16)
    for start in range(0, len(logical), slab):
        pack_rows(layout, logical[start : start + slab], stored, logical.shape, start)
    return stored


def unpack(layout: str, stored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The logical array of that shape; codes as integers (N, K).  In layout `row` it is a view of `stored`."""
    return unpack_rows(layout, stored, shape, 0, shape[0])


def unpack_rows(layout: str, stored: np.ndarray, shape: tuple[int, ...], start: int, stop: int) -> np.ndarray:
    """Logical rows [start, stop); `start` is a multiple of the layout's tile (16, or 1 in `row`)."""
    found = find(layout)
    assert 0 <= start <= stop <= shape[0] and start % found.rows == 0, f"rows {start}:{stop} of {shape} in {layout}"
    rows = found.unpack(_natural(found, stored, shape)[start // found.rows : -(-stop // found.rows)])
    return rows[: stop - start] if found.rows == 1 else rows[: stop - start, : shape[1]]


def gather(layout: str, stored: np.ndarray, shape: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
    """Logical rows at the indices `rows` (M,) -> (M, ...), reading only those; IndexError outside [0, N)."""
    found = find(layout)
    rows = np.asarray(rows)
    if rows.size and not (0 <= rows.min() and rows.max() < shape[0]):
        raise IndexError(f"rows {rows.min()}..{rows.max()} of a tensor with {shape[0]}")
    natural = _natural(found, stored, shape)
    if found.rows == 1:
        return natural[rows]
    lane = natural[rows // found.rows, :, rows % found.rows]  # (M, K/cols, [4])
    if found.open is not None:
        lane = found.open(lane)
    return lane.reshape(len(rows), natural.shape[1] * found.cols)[:, : shape[1]]


def as_read(layout: str) -> str:
    """The layout in which kernels read a tensor that is stored in `layout`."""
    return find(layout).wider or layout


def widen(layout: str, stored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A stored tensor of that shape as it lies in `as_read(layout)`: `stored` itself unless that is another layout."""
    found = find(layout)
    if found.wider is None:
        return stored
    assert found.open is not None
    wide, natural = empty(found.wider, found.dtypes[0], shape), _natural(found, stored, shape)
    lanes = _natural(find(found.wider), wide, shape)
    step = max(1, SLAB // max(math.prod(natural.shape[1:]), 1))
    for a in range(0, len(natural), step):
        lanes[a : a + step] = found.open(natural[a : a + step])
    return wide


def _natural(layout: Layout, stored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A view of the stored array in its natural shape, without the zeros that fill its last line."""
    natural = layout.natural(shape)
    return stored.reshape(-1)[: math.prod(natural)].reshape(natural)


def stored_dtype(layout: Layout) -> type:
    """numpy's dtype of what a layout stores whatever the logical dtype; only where it has one such."""
    assert layout.stored is not None
    return array_type(layout.stored)


def itemsize(stored: str) -> int:
    """Bytes of an element of a stored array."""
    return np.dtype(array_type(stored)).itemsize


def array_type(stored: str) -> type:
    """numpy's type of a stored dtype."""
    return np.uint32 if stored == "u32" else DTYPES[stored]
