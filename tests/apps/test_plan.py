"""Plan: what a target may be, what fits, and what the command prints; the arithmetic is tests/profile/test_predict.py's."""

import json
import sys
from pathlib import Path

import pytest

from quamba_edge import cli, devices
from quamba_edge.apps import plan as app
from quamba_edge.apps import plan_text
from quamba_edge.backends import cpu
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadUsage, Missing
from quamba_edge.models import published
from tests.apps import tiny_bundle

NANO = "orin-nano-8gb"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return tiny_bundle.write(tmp_path_factory.mktemp("b") / "tiny.qedge")


def test_a_bundle_is_planned_from_its_header(bundle):
    told = app.plan(str(bundle), NANO)
    with Bundle.open(bundle) as opened:
        stored = sum(place.nbytes for name, place in opened.places.items() if name != "tokenizer.json")
    assert (told.recipe, told.memory[0].name, told.memory[0].bytes) == ("test", "weights", stored)
    assert told.need_bytes == sum(p.bytes for p in told.memory) and told.fits
    assert told.spare_bytes == told.room_bytes - told.need_bytes
    assert [s.mode for s in told.speeds] == ["15W", "25W", "MAXN_SUPER"]
    assert [c.recipe for c in told.recipes] == list(app.PRECISE_FIRST) and told.best == "w16a16"


def test_a_checkpoint_is_planned_from_its_config(storyteller, tmp_path):
    (tmp_path / "config.json").write_text((storyteller / "config.json").read_text())  # no weights beside it
    assert app.plan(str(tmp_path), NANO, recipe="w8a8").parameters == app.plan(str(storyteller), NANO).parameters > 4e6


def test_a_large_model_fits_in_few_bits_only():
    told = app.plan("mamba2-8b", NANO, recipe="w8a8")
    assert not told.fits and told.spare_bytes < 0 and "too much" in plan_text.text(told)
    assert told.best == "w4a16" and app.plan("mamba2-8b", "orin-nano-4gb").best is None
    assert "no shipped recipe fits" in plan_text.text(app.plan("mamba2-8b", "orin-nano-4gb"))
    assert app.plan("mamba2-8b", NANO, sessions=4).spare_bytes < app.plan("mamba2-8b", NANO).spare_bytes


def test_all_published_models_on_every_board():
    for board in devices.BOARDS:
        plans = app.plan_published(board.name)
        assert [p.target for p in plans] == list(published.NAMES)
        assert all(len(p.speeds) == len(board.modes) and p.speeds[0].decode_tps > 1 for p in plans)
        assert len(plan_text.table(plans).splitlines()) == 4 + len(plans) * len(board.modes)


@pytest.mark.parametrize(
    "target, device, options, error, words",
    [
        ("mamba2-8b", "orin-mega", {}, BadUsage, "orin-nano-8gb"),
        ("no-such-model", NANO, {}, BadUsage, "mamba2-2.7b"),
        ("mamba2-8b", NANO, {"sessions": 0}, BadUsage, "--sessions is 0"),
        ("mamba2-8b", NANO, {"threads": 2}, BadUsage, "--device here"),
        ("someone/model", NANO, {}, Missing, "known without a network"),
    ],
)
def test_what_cannot_be_planned(target, device, options, error, words):
    with pytest.raises(error, match=words):
        app.plan(target, device, **options)


def test_without_torch_bundles_and_published_models_are_left(bundle, storyteller, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("quamba_edge.checkpoint")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert app.plan(str(bundle), NANO).fits and app.plan("mamba-130m", NANO).fits
    with pytest.raises(Missing, match="needs torch"):
        app.plan(str(storyteller), NANO)


def test_this_machine_is_measured(bundle, monkeypatch):
    if reason := cpu.why_not():
        with pytest.raises(Missing, match="native"):
            app.plan(str(bundle), "here")
        pytest.skip(reason)
    monkeypatch.setattr(cpu, "read_bandwidth", lambda threads: 8e9 * threads)
    monkeypatch.setattr(cpu, "peak", lambda name: (1e11, 1e10))
    told = app.plan(str(bundle), "here", threads=1)
    assert [s.bandwidth_gbps for s in told.speeds] == [8.0] and "1 threads: 8.0 GB/s" in told.notes[1]
    assert {p.name for p in told.memory} >= {"Python", "weights"} and "CUDA context" not in {
        p.name for p in told.memory
    }
    assert next(p.bytes for p in told.memory if p.name == "Python") > 20 << 20


def test_the_command(bundle, capsys):
    assert cli.main(["plan", str(bundle), "--device", NANO, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["fits"] is True and {"name", "bytes", "origin"} == set(told["memory"][0])
    assert cli.main(["plan", "published"]) == 0 and "codestral-7b" in capsys.readouterr().out
    assert cli.main(["plan", "published", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["plans"]) == len(published.NAMES)
    assert cli.main(["plan", "mamba2-2.7b", "--device", "nothing"]) == 2
