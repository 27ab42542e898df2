"""Compare on made-up records: what is noise, what is not, what is void."""

import json

import numpy as np
import pytest

from quamba_edge import cli
from quamba_edge.apps.bench_compare import compare, records, text
from quamba_edge.errors import BadUsage

RNG = np.random.default_rng(1)


def record(scale=1.0, spread=0.01, repeats=6, **changes):
    each = {
        k: (v * scale * np.exp(RNG.normal(0, spread, repeats))).tolist()
        for k, v in (("ttft_ms", 200), ("tpot_ms", 5), ("ttlt_ms", 800))
    }
    plain = {
        "batch": 1,
        "prompt_len": 512,
        "gen_len": 128,
        "repeats_ms": each,
        "digest": "a",
        "backend": "cpu",
        "read_bandwidth": 2e10,
    }
    plain |= {"weights_bytes": 100, "state_bytes": 10, "arena_bytes": 5, "peak_rss_bytes": 1000, "bytes_per_token": 110}
    plain |= {"conditions": {"throttled": False, "throttled_why": None, "others_pct": 0.0}, "energy": {}}
    return plain | changes  # fmt: skip


def compared(a, b, tmp_path):
    for name, raw in (("a", a), ("b", b)):
        (tmp_path / f"{name}.json").write_text("told first\n" + json.dumps(raw) + "\n")
    return compare(tmp_path / "a.json", tmp_path / "b.json").comparisons


def verdicts(comparison):
    return {r.name: r.verdict for r in comparison.rows}


def test_two_runs_of_the_same_are_noise(tmp_path):
    (found,) = compared(record(), record(), tmp_path)
    assert {verdicts(found)[k] for k in ("ttft_ms", "tpot_ms", "ttlt_ms")} == {"noise"}
    assert {verdicts(found)[k] for k in ("weights_bytes", "peak_rss_bytes")} == {"same"} and found.floor_pct == 2


def test_a_real_change_is_found_with_its_interval(tmp_path):
    (found,) = compared(record(), record(0.8, digest="b", weights_bytes=60, peak_rss_bytes=900), tmp_path)
    row = found.rows[1]
    assert row.verdict == "faster" and row.low_pct < row.change_pct < row.high_pct < -15
    assert row.change_pct == pytest.approx(-20, abs=2) and found.differs == {"digest": ("a", "b")}
    assert verdicts(found)["weights_bytes"] == verdicts(found)["peak_rss_bytes"] == "less"
    assert "faster" in text(compare(tmp_path / "a.json", tmp_path / "b.json"))
    (back,) = compared(record(0.8), record(), tmp_path)
    assert verdicts(back)["tpot_ms"] == "slower"


def test_what_is_certain_and_small_is_still_noise(tmp_path):
    (found,) = compared(record(spread=1e-4), record(1.01, spread=1e-4), tmp_path)
    assert found.rows[0].low_pct > 0 and found.rows[0].verdict == "noise"
    # A machine that itself became slower explains as much.
    (found,) = compared(record(spread=1e-3), record(1.08, spread=1e-3, read_bandwidth=1.8e10), tmp_path)
    assert found.rows[0].verdict == "noise" and found.floor_pct == pytest.approx(10) and "18.0" in found.notes[0]


def test_a_throttled_run_is_void(tmp_path):
    hot = {"throttled": True, "throttled_why": "99.5 C, the limit is 99", "others_pct": 40.0}
    (found,) = compared(record(), record(2, conditions=hot), tmp_path)
    assert verdicts(found)["ttlt_ms"] == "void" and "99.5 C" in found.void[0] and "40 %" in found.notes[0]
    assert "VOID" in text(compare(tmp_path / "a.json", tmp_path / "b.json"))


@pytest.mark.parametrize(
    "threads, others, void", [(2, 40.0, True), (2, 5.0, False), (1, 45.0, False), (1, 75.0, True), (None, 75.0, False)]
)
def test_a_run_that_shared_its_cores_is_void(tmp_path, threads, others, void):
    busy = {"throttled": None, "throttled_why": None, "others_pct": others, "cpus": 2}
    (found,) = compared(record(conditions=busy, threads=threads), record(0.5, threads=threads), tmp_path)
    assert verdicts(found)["tpot_ms"] == ("void" if void else "faster")
    assert bool(found.void) == void and (not void or f"{others:.0f} % of 2 cores" in found.void[0])


def test_too_few_repeats_decide_nothing(tmp_path):
    (found,) = compared(record(repeats=2), record(3, repeats=2), tmp_path)
    assert found.rows[0].verdict == "unknown" and found.rows[0].low_pct is None


def test_joules_where_both_have_them(tmp_path):
    a, b = (record(energy={"decode": {"gross_j": j}, "prefill": {"gross_j": None}}) for j in (0.5, 0.4))
    (found,) = compared(a, b, tmp_path)
    assert found.rows[-1].name == "decode_j_per_token" and found.rows[-1].change_pct == pytest.approx(-20)


def test_records_of_a_grid_are_matched_by_their_work(tmp_path):
    a = {"records": [record(), record(batch=2), record(prompt_len=128)]}
    found = compared(a, {"records": [record(prompt_len=128), record()]}, tmp_path)
    assert [c.work["prompt_len"] for c in found] == [512, 128]
    with pytest.raises(BadUsage, match="different work"):
        compared(record(), record(gen_len=1), tmp_path)


def test_files_may_be_json_lines_or_nothing_of_ours(tmp_path):
    (tmp_path / "lines").write_text(f"{json.dumps(record())}\n{json.dumps(record(batch=2))}\n")
    assert len(records(tmp_path / "lines")) == 2
    (tmp_path / "indented").write_text(json.dumps(record(), indent=1))
    assert len(records(tmp_path / "indented")) == 1
    (tmp_path / "other").write_text('{"error": "x"}')
    for name in ("other", "absent"):
        with pytest.raises(BadUsage, match="expected what"):
            records(tmp_path / name)


def test_the_command_ends_with_0_whatever_it_finds(tmp_path, capsys):
    compared(record(), record(2), tmp_path)
    assert cli.main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["comparisons"][0]["rows"][0]["verdict"] == "slower" and "Welch" in told["comparisons"][0]["method"]
