"""Both golden bundles through the CUDA kernels on the CPU: prefill chunks, carried states, decode; every buffer as the programs bind it."""

import numpy as np
import pytest

from quamba_edge import backends
from quamba_edge.bundle.reader import Bundle
from quamba_edge.runtime.session import Engine, Session
from tests.cuda.emulator import EmulatedBackend, Emulator, build
from tests.golden.make import HERE
from tests.native.build import why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def logits_of(family: str, backend: backends.Backend, tokens: np.ndarray, prompt: int = 18) -> np.ndarray:
    session = Session(Engine(Bundle.open(HERE / f"{family}.qedge"), backend))
    return np.stack([session.prefill(tokens[:prompt]), *(session.decode(int(t)) for t in tokens[prompt:])])


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_logits_are_the_references(family: str) -> None:
    """A chunk of 16, two single tokens, two decode steps; a code at a tie may fall the other way, nothing more."""
    tokens = np.random.default_rng(2).integers(0, 4096, 20)
    emulator = Emulator(build())
    expected = logits_of(family, backends.open_backend("reference"), tokens)
    found = logits_of(family, EmulatedBackend(emulator), tokens)
    emulator.close()
    worst = np.abs(found - expected).max() / np.abs(expected).max()
    assert worst < 0.05, f"{worst:.3g} of the largest logit"
