"""Bench measures what it says: counts, sums and bytes on a tiny bundle; times themselves are not tested."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from quamba_edge import cli
from quamba_edge.apps import bench as app
from quamba_edge.apps.bench import bench, summary
from quamba_edge.backends import reference
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadUsage
from quamba_edge.runtime.session import Engine, Session
from tests.apps import tiny_bundle

# DESIGN: what other programs rely on.
SPREADS = ("ttft_ms", "tpot_ms", "ttlt_ms")
FIELDS = {
    *SPREADS,
    *"prefill_tps decode_tps weights_bytes state_bytes peak_rss_bytes gbps roofline_pct energy_j power_mode backend threads".split(),
}


@pytest.fixture(scope="module", params=["mamba", "mamba2"])
def bundle(request, tmp_path_factory) -> Path:
    return tiny_bundle.write(tmp_path_factory.mktemp("b") / "tiny.qedge", request.param)


def measure(bundle, **options):
    return bench(bundle, **{"backend": "reference", "prompt_len": 19, "gen_len": 4, "repeats": 3, **options})


def test_every_repeat_and_token_counts(bundle):
    result = measure(bundle)
    assert (result.ttft_ms.n, result.tpot_ms.n, result.ttlt_ms.n) == (3, 12, 3)
    assert result.ttlt_ms.median > result.ttft_ms.median > 0
    assert (result.prompt_len, result.gen_len, result.repeats, result.state_dtype) == (19, 4, 3, "f16")


def test_numbers_worked_by_hand(bundle, monkeypatch):
    warm = app.Repeat(100.0, (100.0, 100.0))  # what comes first is not counted
    told = iter([warm, *(app.Repeat(first, (0.25, last)) for first, last in ((2.0, 0.75), (4.0, 0.25), (3.0, 1.75)))])
    monkeypatch.setattr(app, "run", lambda session, prompt, gen_len: next(told))
    result = measure(bundle, prompt_len=12, gen_len=2)
    assert (result.ttft_ms.median, result.ttft_ms.mean, result.ttft_ms.stddev) == (3e3, 3e3, 1e3)
    assert result.tpot_ms.median == 250 and math.isclose(result.tpot_ms.mean, 3.5e3 / 6)
    assert result.ttlt_ms.median == 4.5e3
    assert (result.prefill_tps, result.decode_tps) == (4.0, 2.0)  # 12 in 3 s; 2 in 1 s


def test_bytes_are_those_of_the_bundle_and_the_state(bundle):
    small, wide = measure(bundle, repeats=1), measure(bundle, repeats=1, state_dtype="f32")
    with Bundle.open(bundle) as opened:
        stored = sum(place.nbytes for name, place in opened.places.items() if name != "tokenizer.json")
        held = Session(Engine(opened, "reference")).state().nbytes
        assert small.digest == opened.digest
    assert small.weights_bytes == stored and small.state_bytes == held
    # A token reads the state and writes it; the weights are the same.
    assert wide.bytes_per_token - small.bytes_per_token == 2 * (wide.state_bytes - small.state_bytes) > 0
    # The matrices once, of the embedding one row more where the head shares it, and no more of it where it does not.
    assert 0 < small.bytes_per_token - 2 * small.state_bytes <= stored + 4096
    assert math.isclose(small.gbps, small.bytes_per_token * small.decode_tps / 1e9)
    assert small.arena_bytes > 0 and small.peak_rss_bytes > 1 << 20


def test_without_a_measure_of_bandwidth_there_is_no_percentage(bundle):
    result = measure(bundle, repeats=1)
    assert result.roofline_pct is None and result.read_bandwidth is None and "reference backend" in result.roofline
    assert result.threads is None and (result.energy_j, result.power_mode) == (None, None)
    assert "%" not in summary(result) and result.ttft_ms.stddev is None


def test_with_one_the_percentage_is_of_it(bundle, monkeypatch):
    asked = []
    monkeypatch.setattr(reference, "read_bandwidth", lambda threads: asked.append(threads) or 2e6, raising=False)
    monkeypatch.setattr(reference.ReferenceBackend, "threads", 3, raising=False)
    result = measure(bundle, repeats=1)
    assert asked == [3] == [result.threads] and result.read_bandwidth == 2e6
    assert math.isclose(result.roofline_pct, 100 * result.gbps * 1e9 / 2e6)
    assert result.roofline == app.ROOFLINE and "3 threads" in summary(result) and "%" in summary(result)


def test_a_repeat_begins_empty_and_feeds_back_the_likeliest(bundle):
    fed = []

    class Watched(Session):
        def prefill(self, tokens):
            fed.append([*map(int, tokens)])
            if len(tokens) > 1:
                assert self.tokens == []
            return super().prefill(tokens)

    with Bundle.open(bundle) as opened:
        session = Watched(Engine(opened, "reference"))
        prompt = np.array([5, 6, 7], np.int32)
        for _ in range(2):
            spent = app.run(session, prompt, 4)
            assert len(spent.tokens) == 4 and min(spent.first, *spent.tokens) > 0
        assert fed[:5] == fed[5:] and [len(f) for f in fed[:5]] == [3, 1, 1, 1, 1]
        again = Session(session.engine)
        told = again.prefill(prompt)
        for token in fed[1:5]:
            assert token == [int(told.argmax())]
            told = again.decode(token[0])


@pytest.mark.parametrize("option", ["prompt_len", "gen_len", "repeats"])
def test_nothing_to_measure_is_refused(bundle, option):
    with pytest.raises(BadUsage, match="expected 1 or more"):
        measure(bundle, **{option: 0})


def test_the_command_prints_the_documented_object(bundle, capsys):
    words = ["bench", str(bundle), "--prompt-len", "5", "--gen-len", "2", "--repeats", "2", "--backend", "reference"]
    assert cli.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert FIELDS <= set(told) and {"digest", "arena_bytes", "read_bandwidth", "version"} <= set(told)
    for name in SPREADS:
        assert set(told[name]) == {"median", "p95", "mean", "stddev", "n"}
    assert cli.main([*words, "--state-dtype", "i8"]) == 0
    out = capsys.readouterr().out
    assert "prefill" in out and "decode" in out and "state i8" in out
    assert cli.main([*words, "--threads", "2"]) == 2


def test_no_torch_is_needed(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    measure(bundle, repeats=1, prompt_len=1, gen_len=1)
