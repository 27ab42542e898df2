"""Both golden bundles, and a small Falcon-Mamba, through the CUDA kernels on the CPU: prefill chunks, carried states, decode; every buffer as the programs bind it."""

from pathlib import Path

import numpy as np
import pytest

from quamba_edge import backends
from quamba_edge.bundle.reader import Bundle
from quamba_edge.pack import pack
from quamba_edge.runtime.session import Engine, Session
from tests.cuda.emulator import EmulatedBackend, Emulator, build
from tests.golden.make import HERE
from tests.native.build import why_not
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(params=["mamba", "mamba2", "falcon"])
def bundle(request, tmp_path) -> Path:
    if request.param != "falcon":
        return HERE / f"{request.param}.qedge"
    folder = write_checkpoint(tmp_path / "c", "mamba", "falcon", tied=False)
    pack(folder, tmp_path / "falcon.qedge", "w4a8", method="rtn", calib_samples=4, calib_len=16, eval_tokens=0)
    return tmp_path / "falcon.qedge"


def logits_of(path: Path, backend: backends.Backend, tokens: np.ndarray, prompt: int = 18) -> np.ndarray:
    session = Session(Engine(Bundle.open(path), backend))
    return np.stack([session.prefill(tokens[:prompt]), *(session.decode(int(t)) for t in tokens[prompt:])])


def test_logits_are_the_references(bundle: Path) -> None:
    """A chunk of 16, two single tokens, two decode steps; a code at a tie may fall the other way, nothing more."""
    tokens = np.random.default_rng(2).integers(0, 257, 20)
    emulator = Emulator(build())
    expected = logits_of(bundle, backends.open_backend("reference"), tokens)
    found = logits_of(bundle, EmulatedBackend(emulator), tokens)
    emulator.close()
    worst = np.abs(found - expected).max() / np.abs(expected).max()
    assert worst < 0.05, f"{worst:.3g} of the largest logit"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_a_long_chunk_is_the_references(family: str) -> None:
    """128 tokens at once: the pipelined products and the recurrence on tensor cores; then a single token."""
    tokens = np.random.default_rng(5).integers(0, 4096, 130)
    emulator = Emulator(build())
    expected = logits_of(HERE / f"{family}.qedge", backends.open_backend("reference"), tokens, prompt=129)
    found = logits_of(HERE / f"{family}.qedge", EmulatedBackend(emulator), tokens, prompt=129)
    emulator.close()
    worst = np.abs(found - expected).max() / np.abs(expected).max()
    assert worst < 0.08, f"{worst:.3g} of the largest logit; the CPU's kernels differ by up to 0.052 there"
