"""Bench measures what it says: counts, sums and bytes on a tiny bundle; times themselves are not tested."""

import csv
import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quamba_edge import cli
from quamba_edge.apps import bench as app
from quamba_edge.apps import bench_plot, bench_text
from quamba_edge.apps.bench import bench, grid
from quamba_edge.apps.bench_text import summary
from quamba_edge.backends import reference
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadUsage, Missing
from quamba_edge.profile import speed
from quamba_edge.profile.speed import Repeat
from quamba_edge.runtime.session import Engine, Session
from quamba_edge.telemetry.sample import Sample
from tests.apps import tiny_bundle

# DESIGN: what other programs rely on.
SPREADS = ("ttft_ms", "tpot_ms", "ttlt_ms")
FIELDS = {
    *SPREADS,
    *"prefill_tps decode_tps weights_bytes state_bytes peak_rss_bytes gbps roofline_pct energy_j power_mode backend threads".split(),
}
SMALL = {"backend": "reference", "gen_len": 4, "repeats": 3}


class Steady:
    """A source that draws 5 W; its first and last sample are far before and after whatever runs."""

    name = "steady"

    def __init__(self, power_w=5.0):
        self.power_w, self.count = power_w, 0

    def read(self):
        self.count += 1
        return Sample(
            0 if self.count == 1 else 10**18, "steady", power_w=self.power_w, power_of="VDD_IN", power_mode="15W"
        )

    def close(self):
        pass


@pytest.fixture(scope="module", params=["mamba", "mamba2"])
def bundle(request, tmp_path_factory) -> Path:
    return tiny_bundle.write(tmp_path_factory.mktemp("b") / "tiny.qedge", request.param)


def measure(bundle, **options):
    return bench(bundle, **{**SMALL, "prompt_len": 19, **options})


def told_by(monkeypatch, *repeats):
    """Those repeats, after one that warms up."""
    found = iter([Repeat(100.0, (100.0, 100.0)), *repeats])
    monkeypatch.setattr(speed, "run", lambda texts, prompts, gen_len: next(found))


def test_every_repeat_and_token_counts(bundle):
    result = measure(bundle)
    assert (result.ttft_ms.n, result.tpot_ms.n, result.ttlt_ms.n) == (3, 12, 3)
    assert result.ttlt_ms.median > result.ttft_ms.median > 0
    assert (result.prompt_len, result.gen_len, result.repeats, result.state_dtype, result.batch) == (19, 4, 3, "f16", 1)
    assert [len(v) for v in result.repeats_ms.values()] == [3, 3, 3]


def test_numbers_worked_by_hand(bundle, monkeypatch):
    told_by(monkeypatch, *(Repeat(first, (0.25, last)) for first, last in ((2.0, 0.75), (4.0, 0.25), (3.0, 1.75))))
    result = measure(bundle, prompt_len=12, gen_len=2, batch=2)
    assert (result.ttft_ms.median, result.ttft_ms.mean, result.ttft_ms.stddev) == (3e3, 3e3, 1e3)
    assert result.tpot_ms.median == 250 and math.isclose(result.tpot_ms.mean, 3.5e3 / 6)
    assert result.ttlt_ms.median == 4.5e3
    assert (result.prefill_tps, result.decode_tps) == (8.0, 4.0)  # 2 times 12 in 3 s; 2 times 2 in 1 s
    assert result.repeats_ms == {"ttft_ms": [2e3, 4e3, 3e3], "tpot_ms": [500, 250, 1000], "ttlt_ms": [3e3, 4.5e3, 5e3]}


def test_joules_are_those_of_the_windows(bundle, monkeypatch):
    many = [Repeat(3.0, (1.0, 1.0), 10**10 * i) for i in range(1, 4)]
    told_by(monkeypatch, *many)
    monkeypatch.setattr(app.energy, "MIN_SAMPLES", 0)
    monkeypatch.setattr(app.energy.per_token, "__defaults__", (None,))
    monkeypatch.setattr(app.energy.over, "__kwdefaults__", {"min_samples": 0, "max_gap_s": 1e12})
    result = measure(bundle, prompt_len=10, gen_len=2, source=Steady())
    assert math.isclose(result.energy_j, 5.0 * 5) and result.power_mode == "15W"
    assert math.isclose(result.energy["prefill"]["gross_j"], 15 / 10)
    assert math.isclose(result.energy["decode"]["gross_j"], 10 / 2) and result.energy["reason"] is None
    assert "J/token" in summary(result)


def test_the_idle_machine_is_watched_first(bundle, monkeypatch):
    monkeypatch.setattr(app.energy, "MIN_IDLE_S", 0.0)
    told = measure(bundle, repeats=1, idle_s=0.1, source=Steady()).energy["idle_w"]
    assert told is None  # two samples are too few, and nothing is made of them


def test_without_a_sensor_the_reason_is_told(bundle):
    result = measure(bundle, source=Steady(power_w=None))
    assert result.energy_j is None and "does not tell its power" in result.energy["reason"]
    assert "does not tell its power" in summary(result)


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
    many = measure(bundle, repeats=1, batch=4)  # which share the weights
    assert small.bytes_per_token > many.bytes_per_token > 2 * small.state_bytes


def test_without_a_measure_of_bandwidth_there_is_no_percentage(bundle):
    result = measure(bundle, repeats=1)
    assert result.roofline_pct is None and result.read_bandwidth is None and "reference backend" in result.roofline
    assert result.threads is None and result.ttft_ms.stddev is None and "that this machine reads" not in summary(result)


def test_with_one_the_percentage_is_of_it(bundle, monkeypatch):
    asked = []
    monkeypatch.setattr(reference, "read_bandwidth", lambda threads: asked.append(threads) or 2e6, raising=False)
    monkeypatch.setattr(reference.ReferenceBackend, "threads", 3, raising=False)
    result = measure(bundle, repeats=1)
    assert asked == [3] == [result.threads] and result.read_bandwidth == 2e6
    assert math.isclose(result.roofline_pct, 100 * result.gbps * 1e9 / 2e6)
    assert (
        result.roofline == app.ROOFLINE
        and "3 threads" in summary(result)
        and "that this machine reads" in summary(result)
    )


def test_a_repeat_begins_empty_and_feeds_back_the_likeliest(bundle):
    with Bundle.open(bundle) as opened:
        engine = Engine(opened, "reference")
        again = Session(engine)
        told, fed = again.prefill([5, 6, 7]), []
        for _ in range(4):
            fed.append(int(told.argmax()))
            told = again.decode(fed[-1])
        for sequences in (1, 2):
            seen = []
            texts = speed.texts(engine, sequences)
            decode = texts.decode
            texts.decode = lambda tokens, s, seen=seen, decode=decode: seen.append(tokens.tolist()) or decode(tokens, s)
            for _ in range(2):
                spent = speed.run(texts, np.array([[5, 6, 7]] * sequences, np.int32), 4)
                assert len(spent.tokens) == 4 and min(spent.first, *spent.tokens) > 0
            assert seen == 2 * [[token] * sequences for token in fed]


def test_a_grid_measures_every_pair(bundle):
    found = [m.result for m in grid(bundle, prompt_lens=(3, 17), batches=(1, 2), **SMALL)]
    assert [(r.batch, r.prompt_len) for r in found] == [(1, 3), (1, 17), (2, 3), (2, 17)]
    table = bench_text.markdown(found).splitlines()
    assert table[2].startswith("| 1 | 3 |") and table[5].startswith("| 2 | 17 |") and "not told" not in table[0]
    rows = list(csv.DictReader(io.StringIO(bench_text.table_csv(found))))
    assert [row["prompt_len"] for row in rows] == ["3", "17", "3", "17"] and float(rows[0]["ttft_ms.median"]) > 0
    assert len(bench_text.as_json(found)["records"]) == 4 and "repeats_ms" in bench_text.as_json(found[:1])


@pytest.mark.parametrize("option", ["prompt_len", "gen_len", "repeats", "batch"])
def test_nothing_to_measure_is_refused(bundle, option):
    with pytest.raises(BadUsage, match="expected 1 or more"):
        measure(bundle, **{option: 0})
    with pytest.raises(BadUsage, match="--idle-s is -1"):
        measure(bundle, idle_s=-1.0)


def test_the_command_prints_the_documented_object(bundle, capsys):
    words = ["bench", str(bundle), "--prompt-len", "5", "--gen-len", "2", "--repeats", "2", "--backend", "reference"]
    assert cli.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert FIELDS <= set(told) and {"digest", "arena_bytes", "read_bandwidth", "version", "conditions"} <= set(told)
    for name in SPREADS:
        assert {"median", "p95", "mean", "stddev", "n"} <= set(told[name])
    assert cli.main([*words, "--state-dtype", "i8"]) == 0
    out = capsys.readouterr().out
    assert "prefill" in out and "decode" in out and "state i8" in out
    assert cli.main([*words, "--format", "jsonl", "--prompt-len", "5,6"]) == 0
    assert [json.loads(line)["prompt_len"] for line in capsys.readouterr().out.splitlines()] == [5, 6]
    assert cli.main([*words, "--threads", "2"]) == 2
    assert cli.main(["bench", str(bundle), str(bundle)]) == 2 and cli.main(["bench", "compare", "a.json"]) == 2


def test_a_plot_is_a_picture_of_what_was_told(bundle, tmp_path):
    pytest.importorskip("matplotlib")
    (one,) = grid(bundle, prompt_lens=(5,), **SMALL)
    start = one.runs[0].began_ns
    samples = [
        Sample(start + 10**8 * i, "x", power_w=4.0 + i, power_of="VDD_IN", temps_c={"tj": 50.0 + i}, gpu_mhz=612.0, cpu_mhz=(1500.0,))
        for i in range(5)
    ]  # fmt: skip
    bench_plot.plot([one], tmp_path / "plain.png")
    bench_plot.plot([one, replace(one, samples=tuple(samples))], tmp_path / "all.png")
    plain, both = ((tmp_path / name).read_bytes() for name in ("plain.png", "all.png"))
    assert plain[:8] == both[:8] == b"\x89PNG\r\n\x1a\n"
    size = [tuple(int.from_bytes(p[at : at + 4], "big") for at in (16, 20)) for p in (plain, both)]
    assert size[1][0] > 1.5 * size[0][0] and size[1][1] > size[0][1]


def test_a_plot_is_refused_before_measuring(tmp_path, monkeypatch):
    with pytest.raises(BadUsage, match="ends in"):
        bench_plot.check(tmp_path / "picture.doc")
    with pytest.raises(BadUsage, match="no folder"):
        bench_plot.check(tmp_path / "absent" / "picture.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Missing, match="quamba-edge"):
        bench_plot.check(tmp_path / "picture.png")


def test_no_torch_is_needed(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    measure(bundle, repeats=1, prompt_len=1, gen_len=1)
