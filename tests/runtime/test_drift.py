"""What int8 states cost, and what "auto" makes of it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadUsage
from quamba_edge.pack import pack
from quamba_edge.runtime.drift import state_drift
from quamba_edge.runtime.engine import Engine
from quamba_edge.runtime.state import DRIFT, resolved
from tests.tiny import write_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_drift(family: str) -> None:
    with Bundle.open(GOLDEN / f"{family}.qedge") as bundle:
        ids = np.random.default_rng(0).integers(0, bundle.manifest.vocab_size, (3, 20))
        none, half, byte = (state_drift(bundle, ids, dtype) for dtype in ("f32", "f16", "i8"))
        assert none == {"kl": 0.0, "tokens": 60}
        assert 0 < half["kl"] < byte["kl"]
        assert byte == state_drift(bundle, ids), "the same text drifts the same way"


@pytest.mark.parametrize(
    ("chosen", "recorded", "expected"),
    [
        ("auto", {"kl": DRIFT / 2, "tokens": 9}, "i8"),
        ("auto", {"kl": DRIFT, "tokens": 9}, "f16"),
        ("auto", None, "f16"),
        ("f32", {"kl": 0.0, "tokens": 9}, "f32"),
    ],
)
def test_auto(chosen: str, recorded: dict | None, expected: str) -> None:
    assert resolved(chosen, SimpleNamespace(perplexity={"state_i8": recorded})) == expected


def test_an_engine_takes_what_pack_recorded(tmp_path: Path) -> None:
    made = pack(
        write_checkpoint(tmp_path / "tiny", "mamba2"), tmp_path / "m.qedge", "w8a8", calib_samples=2, calib_len=32
    )
    with Bundle.open(Path(made.bundle)) as bundle:
        recorded = bundle.manifest.perplexity["state_i8"]
        assert recorded["kl"] > 0
        assert Engine(bundle, "reference", "auto").state_dtype == ("i8" if recorded["kl"] < DRIFT else "f16")
        bundle.manifest = replace(bundle.manifest, perplexity={})
        assert Engine(bundle, "reference", "auto").state_dtype == "f16"
        with pytest.raises(BadUsage, match="or auto"):
            Engine(bundle, "reference", "f8")
