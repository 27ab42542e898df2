"""Profiles: sums that agree with each other, ceilings worked by hand, and a trace that a viewer takes."""

import json
import math

import numpy as np
import pytest

from quamba_edge import cli
from quamba_edge.apps import bench_profile
from quamba_edge.backends import cpu
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadUsage, Missing
from quamba_edge.profile import ops
from quamba_edge.profile.ops import Ceilings, Timed
from quamba_edge.runtime.engine import Engine
from tests.golden.make import HERE


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(ops, "SECONDS", 0.0)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_every_op_of_every_layer_is_there(family, backend, monkeypatch):
    if backend == "cpu":
        if reason := cpu.why_not():
            pytest.skip(reason)
        monkeypatch.setattr(cpu, "read_bandwidth", lambda threads: 1e10)
        monkeypatch.setattr(cpu, "peak", lambda name: (1e11, 1e10))
    found = bench_profile.profile(HERE / f"{family}.qedge", backend=backend, tokens=(1, 16))
    assert [p.tokens for p in found.profiles] == [1, 16] and (found.ceilings is None) == (backend == "reference")
    for p in found.profiles:
        assert all(op.seconds > 0 for op in p.ops)
        for rows in (p.kinds, p.layers):
            assert sum(r.steps for r in rows) == len(p.ops)
            assert math.isclose(sum(r.seconds for r in rows), p.timed_seconds)
            assert math.isclose(sum(r.share for r in rows), 1)
            assert sum(r.bytes for r in rows) == sum(op.bytes for op in p.ops)
            assert [r.seconds for r in rows] == sorted((r.seconds for r in rows), reverse=True)
            assert all((r.percent is None) == (backend == "reference") for r in rows)
        assert {r.name for r in p.layers} == {"ends"} | {f"layer {r.layer}" for r in p.layers if r.layer is not None}
    assert "the slowest layers" in bench_profile.text(found)


def test_percentages_are_of_the_scarcer_ceiling():
    with Bundle.open(HERE / "mamba2.qedge") as bundle:
        engine = Engine(bundle, "reference")
        program = engine.program(1, 1, "last")
        timed = Timed(engine, program, np.full(len(program.steps), 0.5), 2.0, 7)
        p = ops.profile(timed, Ceilings(1e3, 1e30, 1e30))
        for row in (*p.ops, *p.kinds, *p.layers):
            assert math.isclose(row.percent, 100 * row.bytes / 1e3 / row.seconds)
            assert math.isclose(row.gbps, row.bytes / row.seconds / 1e9)
        assert (p.tokens_per_s, p.repeats, p.timed_seconds) == (0.5, 7, 0.5 * len(program.steps))
        idle = ops.profile(timed, Ceilings(1e30, 1e30, 1e3))
        busy = [row for row in idle.kinds if row.name.startswith(("ssd", "conv"))]
        assert len(busy) == 2
        assert all(math.isclose(row.percent, 100 * row.multiply_adds / 1e3 / row.seconds) for row in busy)


def test_of_two_measurements_the_better_counts():
    assert ops.better(Ceilings(1, 5, 3), Ceilings(2, 4, 3)) == Ceilings(2, 5, 3)
    assert ops.better(None, Ceilings(1, 1, 1)) == Ceilings(1, 1, 1) and ops.better(None, None) is None


def test_a_trace_lies_end_to_end(tmp_path):
    path = tmp_path / "trace.json"
    found = bench_profile.profile(HERE / "mamba.qedge", backend="reference", tokens=(1, 2), trace=path)
    events = json.loads(path.read_text())["traceEvents"]
    assert {e["ph"] for e in events} == {"M", "X"}
    for pid, p in enumerate(found.profiles):
        steps = [e for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == (pid, 1)]
        layers = [e for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == (pid, 0)]
        assert [e["name"] for e in steps] == [op.name for op in p.ops]
        for row in (steps, layers):
            assert row[0]["ts"] == 0
            for one, other in zip(row, row[1:]):
                assert math.isclose(one["ts"] + one["dur"], other["ts"], rel_tol=1e-9)
            assert math.isclose(row[-1]["ts"] + row[-1]["dur"], 1e6 * p.timed_seconds)
        assert [e["name"] for e in layers][:2] == ["ends", "layer 0"] and layers[-1]["name"] == "ends"


def test_what_cannot_be_profiled_is_said(monkeypatch):
    with pytest.raises(BadUsage, match="1 or more"):
        bench_profile.profile(HERE / "mamba.qedge", batch=0)
    with Bundle.open(HERE / "mamba.qedge") as bundle:
        engine = Engine(bundle, "reference")
        monkeypatch.delattr(type(engine.backend), "times")
        with pytest.raises(Missing, match="cannot time single ops"):
            ops.timed(engine, 1)


def test_the_command(tmp_path, capsys):
    words = ["bench", str(HERE / "mamba2.qedge"), "--profile", "--backend", "reference", "--batch", "2"]
    assert cli.main([*words, "--trace", str(tmp_path / "t.json"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [p["batch"] for p in told["profiles"]] == [2, 2] and (tmp_path / "t.json").exists()
