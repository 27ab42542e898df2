"""Blocks in the memory of this process, as numpy sees them: what the backends share that run on the CPU."""

from __future__ import annotations

import numpy as np

from quamba_edge import layouts
from quamba_edge.backends.base import Backend, Block
from quamba_edge.layouts import DTYPES


class HostBackend(Backend):
    """`run` sets `_elapsed`, and everything is done when it returns."""

    def __init__(self) -> None:
        self._elapsed = 0.0

    def alloc(self, shape: tuple[int, ...], dtype: str) -> Block:
        size = Block(None, tuple(shape), dtype).nbytes
        raw = np.zeros(size + layouts.LINE, np.uint8)
        start = -raw.ctypes.data % layouts.LINE
        return Block(raw[start : start + size], tuple(shape), dtype)

    def upload(self, block: Block, array: np.ndarray) -> None:
        view = array_of(block)
        assert array.shape == view.shape and array.dtype == view.dtype, (
            f"{array.shape} {array.dtype} into {block.shape} {block.dtype}"
        )
        view[...] = array

    def download(self, block: Block) -> np.ndarray:
        return array_of(block).copy()

    def download_into(self, block: Block, array: np.ndarray) -> None:
        np.copyto(array, array_of(block))

    def sync(self) -> None:
        """Everything is done when `run` returns."""

    def elapsed(self) -> float:
        return self._elapsed


def array_of(block: Block) -> np.ndarray:
    """The numpy view of a block of such a backend."""
    return block.memory[: block.nbytes].view(DTYPES[block.dtype]).reshape(block.shape)
