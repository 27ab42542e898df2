"""The int8 state's scales on a trained model, by what the bundle's perplexity loses to the f16 state."""

import numpy as np
import pytest

from quamba_edge import models
from quamba_edge.bundle.reader import Bundle
from quamba_edge.calibrate.text import Draw, from_model
from quamba_edge.checkpoint import open_checkpoint
from quamba_edge.pack import pack
from quamba_edge.runtime import engine


@pytest.fixture(scope="module")
def packed(tmp_path_factory, storyteller_mamba2):
    """A bundle, and 4 texts of 257 tokens that the model wrote: longer than the windows it was calibrated on."""
    checkpoint = open_checkpoint(storyteller_mamba2)
    lm = models.find("mamba2", "reference").LM.from_checkpoint(checkpoint)
    ids = from_model(lm, 0, checkpoint.config.true_vocab_size, Draw(4, 257, 0, seed=9)).calib
    path = tmp_path_factory.mktemp("packed") / "m.qedge"
    pack(storyteller_mamba2, path, "w4a8", method="rtn", calib_samples=8, calib_len=128, eval_tokens=128)
    return path, ids


def loss(packed, monkeypatch, chunks):
    """How much higher the perplexity is with an int8 state than with f16, which is rounded at the end of every chunk."""
    path, ids = packed
    monkeypatch.setattr(engine, "CHUNKS", chunks)
    with Bundle.open(path) as bundle:
        half, byte = (
            np.exp(-engine.Engine(bundle, "reference", state_dtype=d).score(ids).mean()) for d in ("f16", "i8")
        )
    return byte / half - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "chunks, bound",
    [
        ((128, 16, 1), 0.02),  # a prompt
        ((1,), 0.03),  # rounded after every token: to the nearest code it would be 0.05, and more in a longer text
    ],
    ids=["by chunks", "token by token"],
)
def test_an_int8_state_costs_little(packed, monkeypatch, chunks, bound):
    assert abs(loss(packed, monkeypatch, chunks)) < bound
