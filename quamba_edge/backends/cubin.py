"""What a compiled CUDA kernel file (cubin) says of itself in its ELF header, and whether a driver will take it.

CUDA 13 writes another kind of ELF than CUDA 12, which a CUDA 12 driver refuses with nothing but "invalid image": the loader and
`quamba-edge doctor` look first.  Measured on ptxas of CUDA 12.2 to 13.5 for sm_87:

    CUDA 12  OSABI 0x33, ABI version 7, e_version ten times the toolkit (126 for 12.6), sm in bits 0-7 of e_flags
    CUDA 13  OSABI 0x41, ABI version 8, e_version 1,                                   sm in bits 8-15
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HEADER_BYTES = 64
CUDA_MACHINE = 190


@dataclass(frozen=True)
class Cubin:
    """`toolkit` is (12, 6) for CUDA 12.6; of CUDA 13 only the (13, 0) that all its versions have in common is known."""

    abi: int
    sm: int
    toolkit: tuple[int, int]


def parse(header: bytes) -> Cubin:
    """From a file's first 64 bytes.  ValueError says what it is instead."""
    if len(header) < HEADER_BYTES or header[:6] != b"\x7fELF\x02\x01" or _u16(header, 18) != CUDA_MACHINE:
        raise ValueError("it is not a cubin (a 64-bit ELF file for CUDA)")
    kind, abi, version, flags = header[7], header[8], _u32(header, 20), _u32(header, 48)
    if (kind, abi) == (0x33, 7):
        return Cubin(abi, flags & 0xFF, (version // 10, version % 10))
    if (kind, abi) == (0x41, 8):
        return Cubin(abi, flags >> 8 & 0xFF, (13, 0))
    raise ValueError(f"its ELF kind (OSABI {kind:#x}, version {abi}) is none that CUDA 12 or 13 writes")


def read(path: Path) -> Cubin:
    """OSError, or ValueError as `parse`."""
    with open(path, "rb") as file:
        return parse(file.read(HEADER_BYTES))


def refused(cubin: Cubin, driver: tuple[int, int], sm: int | None = None, board: bool = True) -> str | None:
    """Why a driver of this CUDA version, on a GPU of this architecture, does not take it; None if it should.

    A board's (Tegra's) driver takes what its own CUDA or an older one has built; a card's any of its major version (minor version
    compatibility, since CUDA 11).  Code is for exactly one architecture here.
    """
    built = ".".join(map(str, cubin.toolkit)) if cubin.toolkit[0] < 13 else str(cubin.toolkit[0])
    if cubin.toolkit > driver if board else cubin.toolkit[0] > driver[0]:
        return f"built with CUDA {built}, this driver is CUDA {driver[0]}.{driver[1]}: build it with CUDA {driver[0]}.{driver[1]} or older"
    if sm is not None and cubin.sm != sm:
        return f"built for sm_{cubin.sm}, this GPU is sm_{sm}: build it for sm_{sm}"
    return None


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")
