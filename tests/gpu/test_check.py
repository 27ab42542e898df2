"""`make gpu-check` on a device that is none: every step that needs no driver, on a model of one small layer."""

import json
import sys
from dataclasses import replace

import pytest

from quamba_edge import models
from quamba_edge.backends import cuda_load, cuda_plan
from quamba_edge.backends.cuda_plan import CudaBackend
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import Missing
from tests.cuda.emulator import Emulator, build
from tests.cuda.fake_device import FakeDevice
from tests.golden.make import HERE
from tests.gpu import check as module
from tests.gpu import measures, random_bundle, steps, tables
from tests.gpu.check import Unit, check_all
from tests.gpu.measures import Load
from tests.gpu.steps import ROOT, Check
from tests.native.build import why_not

needs_compiler = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def tiny(family: str):
    raw = {"d_model": 64, "n_layer": 1, "vocab_size": 256, "pad_vocab_size_multiple": 16, "tie_embeddings": True}
    if family == "mamba2":
        raw["ssm_cfg"] = {"layer": "Mamba2", "d_state": 16, "headdim": 32}
    return family, models.find(family, "config").Config.from_state_spaces(raw)


@needs_compiler
def test_every_step_that_needs_no_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_load, "SEGMENT", 1)
    monkeypatch.setattr(cuda_plan, "COPIED", 1 << 16)
    monkeypatch.setattr(measures, "REPEATS", 1)
    monkeypatch.setattr(steps, "WAYS", steps.WAYS[-1:])
    emulator, opened = Emulator(build()), []

    def fake():
        opened.append(CudaBackend(lambda: FakeDevice(emulator)))
        return opened[-1]

    check = Check(
        tmp_path / "work",
        tmp_path / "gpu.md",
        open=fake,
        name="fake",
        models=(tiny("mamba"),),
        large=tiny("mamba2"),
        recipes=("w16a16", "w4a8"),
        layers=None,
        prompt=3,
        tokens=1,
        text=3,
        repeats=1,
        bundles=(HERE / "mamba2.qedge",),
    )
    said = []
    assert check_all(check, ["perplexity", "sampling", "kernels", "speed", "load"], said.append), "\n".join(said)
    emulator.close()
    text = check.document.read_text()
    for words in (
        "## Perplexity",
        "mamba2.qedge",
        "## Kernels",
        "linear_w4a8",
        "linear_w4a8_x16",
        "to w16a16",
        "## Loading",
        "3 tokens chosen on the GPU",
    ):
        assert words in text, f"{words!r} is not in\n{text}"
    assert "## Failed" not in text and not (tmp_path / "work" / "random.qedge").exists()
    assert any("copy" in b.device.names() for b in opened) and any("replay" in b.device.names() for b in opened)


def test_a_step_that_fails_is_named_and_does_not_stop_the_others(tmp_path, monkeypatch):
    def broken(check):
        raise Missing("no such thing")

    monkeypatch.setitem(module.STEPS, "tests", ("Tests", broken))
    monkeypatch.setitem(module.STEPS, "sanitizer", ("compute-sanitizer", lambda check: ["clean", ""]))
    monkeypatch.setitem(
        module.STEPS, "load", ("Loading", lambda check: check.missed.append("too slow") or ["slow", ""])
    )
    check = Check(tmp_path, tmp_path / "gpu.md")
    assert not check_all(check, ["tests", "sanitizer"], lambda line: None)
    assert not check_all(replace(check, failed=[], missed=[]), ["load"], lambda line: None), "an earlier failure stands"
    text = check.document.read_text()
    assert "## Failed\n\n* tests: Missing: no such thing" in text and "clean" in text
    assert "## Targets missed\n\n* too slow" in text
    assert json.loads((tmp_path / "tests.json").read_text())["failed"]


def test_a_unit_that_dies_or_hangs_is_a_line_in_the_document(tmp_path):
    check = Check(tmp_path / "work", tmp_path / "gpu.md", command="the command")
    dies, hangs = "print('last words'); import os; os.kill(os.getpid(), 11)", "import time; time.sleep(60)"
    module.run_apart(check, Unit("tests"), [sys.executable, "-uc", dies], 60)
    module.run_apart(check, Unit("speed", "mamba2-2.7b"), [sys.executable, "-uc", hangs], 0.5)
    assert not module.written(check, lambda line: None)
    text = check.document.read_text()
    assert "| tests | FAIL | 0 | tests: ended with signal 11: last words |" in text and "`the command`" in text
    assert "| speed.mamba2-2.7b | FAIL |" in text and "not done after 0 s" in text and "| kernels | not run |" in text


def test_units_are_a_model_each_where_they_are_long():
    check = Check(ROOT, ROOT / "gpu.md", models=("a", "b"), large="c")
    found = [u.name for u in module.units(check, ("tests", "kernels", "speed", "load"))]
    assert found == ["tests", "kernels.a", "kernels.b", "kernels.c", "speed.a", "speed.b", "load"]
    narrowed = Unit("kernels", "c").narrowed(check)
    assert (narrowed.models, narrowed.large) == (("c",), None) and narrowed.failed is check.failed


def test_targets():
    """Ratios to w16a16, shares of a copy, bytes while loading: met or named."""
    found = {"w16a16": (10.0, 100.0, 50.0), "w4a8": (31.0, 120.0, 40.0), "w8a8": (18.0, 131.0, 45.0)}
    assert tables.speeds("m", found)[1] == ["m w4a8: prefill is 1.20 times w16a16's, 1.3 is asked for"]
    assert tables.loading("m", Load(10**9, 2.0, 200 << 20, 300 << 20))[1] == []
    assert "adds 210 MB" in tables.loading("m", Load(10**9, 2.0, 200 << 20, 400 << 20))[1][0]


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
@pytest.mark.parametrize("recipe", ["w4a8", "w4a16", "w8a8", "w16a16"])
def test_a_random_bundle_is_a_bundle(family, recipe, tmp_path):
    digest = random_bundle.write(tmp_path / "r.qedge", tiny(family), recipe, layers=2)
    with Bundle.open(tmp_path / "r.qedge") as bundle:
        assert bundle.digest == digest and bundle.manifest.config["n_layer"] == 2 and bundle.verify() > 0


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    def none():
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(module.cuda, "_driver", none)
    assert module.main([]) == 1 and "nothing to check" in capsys.readouterr().out
