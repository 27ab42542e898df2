"""Which CUDA kernel runs an op of given sizes, and its grid, block and shared memory.

The emulator of the tests and the GPU both take it from here, so what the tests prove of a grid holds on the board.  A kernel's
arguments are its op's, in their order: a pointer for each array, followed by the row stride where the op says `strided`; then
sizes, then scalars (`arguments`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from quamba_edge.errors import Missing
from quamba_edge.ops.op import Op, Scalar, Size

WARP = 32
MOST_THREADS = 1024
MOST_SHARED = 163 * 1024  # bytes a block of sm_87 may ask for; above 48 KB the function must be told so first
STATES = ("f32", "f16", "i8")

Dim = tuple[int, int, int]
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Launch:
    """One kernel: `block` threads in x, `shared` bytes of dynamic shared memory."""

    kernel: str
    grid: Dim
    block: int
    shared: int = 0


def launch(op: Op, sizes: Sizes, state: str = "f32") -> Launch:
    """How to run an op; `state` is the dtype of its state's buffer.  Missing if the sizes are beyond what its kernel does."""
    found = _FAMILIES[_family(op.name)](op.name, sizes, state)
    if found.shared > MOST_SHARED:
        raise Missing(
            f"{op.name} of {dict(sizes)} needs {found.shared} bytes of shared memory, sm_87 has {MOST_SHARED}: use --backend cpu"
        )
    return found


def arguments(
    op: Op, pointers: Sequence[object], strides: Sequence[int], sizes: Sizes, scalars: Mapping[str, float]
) -> list[object]:
    """A kernel's arguments in order; `pointers` and `strides` (elements) are those of op.arrays."""
    found: list[object] = []
    for arg, pointer, stride in zip(op.arrays, pointers, strides, strict=True):
        found += [pointer, stride] if arg.strided else [pointer]
    found += [sizes[a.name] for a in op.args if isinstance(a, Size)]
    return found + [float(scalars[a.name]) for a in op.args if isinstance(a, Scalar)]


# csrc/cuda/sample.cu: logits of a block, bins of its histogram, candidates it can sort.
PIECE, BINS, LOOK = 2048, 4096, 1024
EDITS = 4096  # logits that a request may change
REQUEST = 8 * (8 + 4 * EDITS)  # bytes of the longest request
HOST = -2  # instead of a token: the host must choose.  -1: the logits are no numbers, which the host says in words
SAMPLE_ARRAYS = {  # name: numpy dtype, elements for V logits
    "values": ("f4", lambda V: V),
    "peaks": ("f4", lambda V: ceil(V / PIECE)),
    "places": ("i4", lambda V: ceil(V / PIECE)),
    "shares": ("f8", lambda V: ceil(V / PIECE)),
    "bins": ("i4", lambda V: BINS),
    "token": ("i4", lambda V: 1),
}


def sample(V: int) -> list[tuple[Launch, list[str]]]:
    """How to choose a token from V logits: launches, and the names of their arrays in order (then V): `logits`, `how`
    (runtime/sampling.py's request) and SAMPLE_ARRAYS.  Missing for a vocabulary that the kernels do not reach."""
    pieces = ceil(V / PIECE)
    if pieces > LOOK:
        raise Missing(f"a vocabulary of {V}, the sampling kernels take {LOOK * PIECE}: use --backend cpu")
    return [
        (
            Launch("sample_values", (pieces, 1, 1), 256, 4 * (PIECE + 512)),
            "logits how values peaks places bins".split(),
        ),
        (Launch("sample_shares", (pieces, 1, 1), 256, 8 * 256 + 4 * BINS), "values how peaks shares bins".split()),
        (Launch("sample_draw", (1, 1, 1), LOOK, 16 * LOOK + 16), "values how peaks places shares bins token".split()),
    ]


def kernels(stem: str) -> list[str]:
    """Names of the kernels that csrc/cuda/<stem>.cu must have."""
    ops = {
        "conv_silu": ("conv_silu_f32", "conv_silu_i8"),
        "embed": ("embed_w4", "embed_w8", "embed_w16"),
        "gated_norm": ("gated_norm",),
        "linear": tuple(f"linear_{k}{x}" for k in PRODUCTS for x in TOKENS.values()),
        "linear_chunk": tuple(f"linear_{k}_x64" for k in PRODUCTS),
        "part_norm": ("part_norm",),
        "sample": ("sample_values", "sample_shares", "sample_draw"),
        "scan": tuple(f"scan_{k}_{s}" for k in ("f32", "i8") for s in STATES),
        "ssd_chunk": tuple(f"ssd_chunk_{k}_{s}" for k in ("f32", "i8") for s in STATES),
        "ssd": tuple(f"ssd_{k}_{s}" for k in ("f32", "i8") for s in STATES),
    }
    return list(ops.get(stem, (f"{stem}_i8", f"{stem}_f16")))


def _family(name: str) -> str:
    return name if name in _FAMILIES else name.rpartition("_")[0]


def _threads(values: int, each: int) -> int:
    """Whole warps for so many values, `each` a thread."""
    return min(MOST_THREADS, WARP * max(1, ceil(values / (WARP * each))))


def _elements(name: str, columns: int, rows: int, each: int = 1) -> Launch:
    """A thread for every `each` columns of every row."""
    block = min(256, _threads(columns, each))
    return Launch(name, (ceil(columns / (each * block)), rows, 1), block)


def _quantize(name: str, s: Sizes, _: str) -> Launch:
    return _elements(name, s["K"], s["M"])


def _embed(name: str, s: Sizes, _: str) -> Launch:
    return _elements(name, s["K"], s["M"], {"embed_w4": 8, "embed_w8": 4, "embed_w16": 1}[name])


def _rmsnorm(name: str, s: Sizes, _: str) -> Launch:
    block = _threads(s["K"], 8)
    return Launch(name, (s["M"], 1, 1), block, 4 * block // WARP)


def _hadamard(name: str, s: Sizes, _: str) -> Launch:
    return Launch(name, (s["M"], 1, 1), _threads(s["K"], 8), 4 * s["K"])


def _tied_norm(name: str, s: Sizes, _: str) -> Launch:
    block = _threads(s["K"], 8)
    return Launch(name, (s["M"], 1, 1), block, 4 * (2 * s["K"] + block // WARP))


def _gated_norm(name: str, s: Sizes, _: str) -> Launch:
    columns = s["E"] // s["groups"]
    block = _threads(columns, 8)
    return Launch(name, (s["groups"], s["M"], 1), block, 4 * (columns + block // WARP))


def _part_norm(name: str, s: Sizes, _: str) -> Launch:
    block = _threads(s["E"] // s["parts"], 8)
    return Launch(name, (s["parts"], s["M"], 1), block, 4 * block // WARP)


def _conv_silu(name: str, s: Sizes, _: str) -> Launch:
    if s["W"] > 4:
        raise Missing(f"{name}: a window of {s['W']}, the CUDA kernel has at most 4: use --backend cpu")
    return Launch(name, (ceil(s["C"] / 128), s["S"], 1), 128)


def _scan(name: str, s: Sizes, state: str) -> Launch:
    if s["N"] > 16:
        raise Missing(f"{name}: {s['N']} states a channel, the CUDA kernel has at most 16: use --backend cpu")
    return Launch(f"{name}_{state}", (ceil(4 * s["E"] / 128), s["S"], 1), 128)


def _ssd(name: str, s: Sizes, state: str) -> Launch:
    if s["N"] > 128:
        raise Missing(f"{name}: {s['N']} states a row, the CUDA kernel has at most 128: use --backend cpu")
    if s["T"] >= SSD_CHUNK:
        kind, warps = name.removeprefix("ssd_"), min(4, ceil(s["P"] / 16))
        return Launch(f"ssd_chunk_{kind}_{state}", (ceil(s["P"] / 64), s["H"], s["S"]), WARP * warps, SSD_SHARED)
    warps = min(4, ceil(s["P"] / 4))
    return Launch(f"{name}_{state}", (ceil(s["P"] / (4 * warps)), s["H"], s["S"]), WARP * warps, 8 * s["T"])


# csrc/cuda/ssd_chunk.cu: tokens from which it is used, those of one round; bytes of its struct Shared.
SSD_CHUNK = 16
SSD_SHARED = 4 * (2 * 16 * 136 + 16 * 72 + 2 * 16 * 20 + 5 * 16)
PRODUCTS = ("w4a8", "w8a8", "w4a16", "w8a16", "w16a16")
# Tokens for each fragment of weights, and what the kernel's name ends in.
TOKENS = {8: "", 16: "_x16", 32: "_x32"}
# csrc/cuda/linear_chunk.cu: bytes of a stage beside those of tokens, for each product.
STAGED = {"linear_w4a8": 8192, "linear_w8a8": 16384, "linear_w4a16": 4096, "linear_w8a16": 8192, "linear_w16a16": 16384}
STAGES = 3


def _linear(name: str, s: Sizes, _: str) -> Launch:
    G, K, M = s.get("G", s["K"]), s["K"], s["M"]
    if G % 32 and G < K:
        raise Missing(f"{name}: groups of {G} columns, the CUDA kernel wants a multiple of 32: use --backend cpu")
    span = 128 if name.endswith("a8") else 64  # columns of a stage
    if max(TOKENS) < M and K % span == 0 and (G % span == 0 or G >= K):
        return Launch(f"{name}_x64", (ceil(M / 64), ceil(s["N"] / 128), 1), 128, STAGES * (8192 + STAGED[name]))
    tokens = next((t for t in TOKENS if M <= t), max(TOKENS))
    warps = min(8, ceil(K / 128))  # 128 columns at a time are a warp's
    return Launch(
        name + TOKENS[tokens], (ceil(M / tokens), ceil(s["N"] / 32), 1), WARP * warps, 4 * warps * 32 * tokens
    )


_FAMILIES: dict[str, Callable[[str, Sizes, str], Launch]] = {
    "quantize": _quantize,
    "embed": _embed,
    "rmsnorm": _rmsnorm,
    "hadamard": _hadamard,
    "tied_norm": _tied_norm,
    "gated_norm": _gated_norm,
    "part_norm": _part_norm,
    "conv_silu": _conv_silu,
    "scan": _scan,
    "ssd": _ssd,
    "linear": _linear,
}
