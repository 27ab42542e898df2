"""Checkpoint to bundle and back to logits: every mode, both families, interrupted and resumed."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from quamba_edge import models
from quamba_edge.bundle.reader import Bundle
from quamba_edge.checkpoint import open_checkpoint
from quamba_edge.errors import BadBundle, BadCheckpoint, BadRecipe, BadText, BadUsage, Missing
from quamba_edge.pack import pack
from quamba_edge.quant.recipe import shipped
from quamba_edge.runtime.session import Engine, Session
from quamba_edge.runtime.tokenizer import Tokenizer
from tests.tiny import write_checkpoint

FEW = {"calib_samples": 4, "calib_len": 64, "eval_tokens": 128}
# Largest error of a logit relative to the spread of logits, for random weights (which quantize worse than trained ones).
# Root mean square error of the last token's logits over their spread.  Random weights forgive less than trained ones, and few
# windows leave it to chance: 0.10 to 0.21 at 4 bits.
BOUND = {"w16a16": 0.002, "w8a8": 0.06, "w4a16": 0.3, "w4a8": 0.3, "w4a8-g32": 0.25}
SHAPES = [
    ("mamba2", {"ngroups": 2, "tied": False}),
    ("mamba2", {"d_model": 80, "headdim": 8}),  # rotations of base 20, groups with tails
    ("mamba", {"tied": False}),
    ("mamba", {"d_model": 48}),
]


def noise_text(folder, characters=6000):
    """Text without structure: a random model's own writing is too uniform to scale activations by."""
    rng = np.random.default_rng(4)
    (folder / "noise.txt").write_text("".join(chr(c) for c in rng.integers(33, 127, characters)))
    return folder / "noise.txt"


def logits_of(bundle_path, ids):
    with Bundle.open(bundle_path) as bundle:
        return Session(Engine(bundle, "reference", state_dtype="f32")).prefill(ids)


def source_logits(checkpoint, ids):
    lm = models.find(checkpoint.family, "reference").LM.from_checkpoint(checkpoint)
    return lm(torch.tensor([ids]))[0][0, -1, : checkpoint.config.true_vocab_size].numpy()


@pytest.mark.parametrize("family,sizes", SHAPES, ids=str)
@pytest.mark.parametrize("mode", BOUND)
def test_every_mode_keeps_the_logits(tmp_path, family, sizes, mode):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "c", family, **sizes))
    made = pack(tmp_path / "c", tmp_path / "m.qedge", mode, noise_text(tmp_path), **FEW)
    ids = Tokenizer(checkpoint.tokenizer_json).encode(noise_text(tmp_path).read_text()[-150:])
    found, exact = logits_of(tmp_path / "m.qedge", ids), source_logits(checkpoint, ids)
    assert np.sqrt(np.square(found - exact).mean()) / exact.std() < BOUND[mode]
    assert made.bytes == (tmp_path / "m.qedge").stat().st_size
    nll_bundle, nll_source = math.log(made.perplexity_bundle), math.log(made.perplexity_source)
    assert abs(nll_bundle / nll_source - 1) < (0.001 if mode == "w16a16" else 0.05)
    assert not (tmp_path / "m.qedge.work").exists()
    with Bundle.open(tmp_path / "m.qedge") as bundle:
        assert bundle.manifest.golden and bundle.verify()


def test_modes_grow_smaller(tmp_path):
    write_checkpoint(tmp_path / "c", "mamba2", d_model=128)
    sizes = [pack(tmp_path / "c", tmp_path / "m", mode, method="rtn", **FEW).bits_per_weight for mode in BOUND]
    assert sizes[0] > 1.5 * sizes[1] > 2.0 * sizes[3]


def test_a_mix_of_layers(tmp_path):
    write_checkpoint(tmp_path / "c", "mamba2", n_layer=3)
    (tmp_path / "mix.json").write_text(json.dumps(["w4a8", "w4a16", "w4a8"]))
    pack(tmp_path / "c", tmp_path / "m.qedge", str(tmp_path / "mix.json"), **FEW)
    with Bundle.open(tmp_path / "m.qedge") as bundle:
        sites, tensors = bundle.manifest.sites, bundle.manifest.tensors
        assert [sites[f"layers.{i}.in_proj"]["act"] for i in range(3)] == [8, 16, 8]
        assert "layers.1.conv.out_scale" not in tensors and "layers.2.conv.out_scale" in tensors
        assert Session(Engine(bundle, "reference")).prefill([1, 2, 3]).shape == (257,)


@pytest.mark.parametrize("grain", ["group", "tensor", "channel"])
def test_every_grain_of_x_scales_runs(tmp_path, grain):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "c", "mamba2", ngroups=2))
    recipe = shipped("w8a8").to_json() | {"x_grain": grain}
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    pack(tmp_path / "c", tmp_path / "m.qedge", str(tmp_path / "r.json"), noise_text(tmp_path), **FEW)
    ids = Tokenizer(checkpoint.tokenizer_json).encode(noise_text(tmp_path).read_text()[-100:])
    found, exact = logits_of(tmp_path / "m.qedge", ids), source_logits(checkpoint, ids)
    assert np.abs(found - exact).max() / exact.std() < 0.15
    with Bundle.open(tmp_path / "m.qedge") as bundle:
        scales = bundle.logical("layers.0.conv.out_scale")[: checkpoint.config.d_inner]
    assert len(np.unique(scales)) <= {"tensor": 1, "group": 32, "channel": 128}[grain]


class Stop(BaseException):
    """Not an Exception: like KeyboardInterrupt."""


@pytest.mark.parametrize("stage", ["sampling", "embedding", "layer 0", "layer 1", "output head", "measuring"])
def test_resumed_runs_give_the_same_bytes(tmp_path, stage):
    write_checkpoint(tmp_path / "c", "mamba2", n_layer=2)
    pack(tmp_path / "c", tmp_path / "whole", **FEW)

    def stop(done, total, text):
        if text.startswith(stage):
            raise Stop

    with pytest.raises(Stop):
        pack(tmp_path / "c", tmp_path / "m", progress=stop, **FEW)
    assert not (tmp_path / "m").exists()
    seen = []
    pack(tmp_path / "c", tmp_path / "m", resume=True, progress=lambda d, t, text: seen.append(text), **FEW)
    assert (tmp_path / "m").read_bytes() == (tmp_path / "whole").read_bytes()
    if stage == "layer 1":
        assert "layer 0" not in seen and "layer 1" in seen


def test_killed_outright_then_resumed(tmp_path, repo):
    """SIGKILL in the middle of a layer: nothing is cleaned up, and nothing needs to be."""
    write_checkpoint(tmp_path / "c", "mamba", n_layer=6, d_model=96)
    base = [
        sys.executable,
        "-m",
        "quamba_edge",
        "pack",
        str(tmp_path / "c"),
        "--calib-samples",
        "8",
        "--calib-len",
        "64",
    ]
    base += ["--seed", "3"]
    subprocess.run([*base, "-o", str(tmp_path / "whole")], cwd=repo, check=True, capture_output=True)
    process = subprocess.Popen([*base, "-o", str(tmp_path / "m")], cwd=repo, stderr=subprocess.DEVNULL)
    part = tmp_path / "m.work" / "part-layer-002"
    while not part.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "m").exists()
    subprocess.run([*base, "-o", str(tmp_path / "m"), "--resume"], cwd=repo, check=True, capture_output=True)
    assert (tmp_path / "m").read_bytes() == (tmp_path / "whole").read_bytes()


def test_resume_refuses_another_job_and_a_started_job_is_not_thrown_away(tmp_path):
    write_checkpoint(tmp_path / "c", "mamba2")
    with pytest.raises(BadUsage, match="no unfinished job"):
        pack(tmp_path / "c", tmp_path / "m", resume=True, **FEW)

    def stop(done, total, text):
        if text == "layer 1":
            raise Stop

    with pytest.raises(Stop):
        pack(tmp_path / "c", tmp_path / "m", progress=stop, **FEW)
    with pytest.raises(BadUsage, match="recipe"):
        pack(tmp_path / "c", tmp_path / "m", "w8a8", resume=True, **FEW)
    with pytest.raises(BadUsage, match="add --resume"):
        pack(tmp_path / "c", tmp_path / "m", **FEW)
    pack(tmp_path / "c", tmp_path / "m", "w8a8", **FEW)  # another job starts anew


def test_a_folder_in_the_way_keeps_its_files(tmp_path):
    write_checkpoint(tmp_path / "c", "mamba2")
    work = tmp_path / "m.work"
    work.write_text("a file")
    with pytest.raises(BadUsage, match="move it away"):
        pack(tmp_path / "c", tmp_path / "m", **FEW)
    work.unlink()
    work.mkdir()
    (work / "thesis.tex").write_text("mine")
    with pytest.raises(BadUsage, match="thesis.tex"):
        pack(tmp_path / "c", tmp_path / "m", **FEW)
    assert (work / "thesis.tex").read_text() == "mine"
    (work / "thesis.tex").rename(work / "job.json")  # ours by its name, and damaged
    with pytest.raises(BadUsage, match="there is none"):
        pack(tmp_path / "c", tmp_path / "m", resume=True, **FEW)
    pack(tmp_path / "c", tmp_path / "m", **FEW)


@pytest.mark.parametrize(
    "kept", ["job.json", "windows.npz", "streams-0.npz", "part-layer-000", "streams-2.npz", "part-head"]
)
def test_a_full_disk_is_one_error_at_every_stage(tmp_path, monkeypatch, kept):
    """The old bundle stays, and the job goes on when there is room."""
    write_checkpoint(tmp_path / "c", "mamba2")
    pack(tmp_path / "c", tmp_path / "whole", **FEW)
    (tmp_path / "m").write_text("old")
    replace, full = os.replace, [True]

    def no_room(source, target):
        if full and Path(target).name == kept:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("quamba_edge.bundle.writer.os.replace", no_room)
    with pytest.raises(Missing, match=f"no room to write .*{kept}"):
        pack(tmp_path / "c", tmp_path / "m", **FEW)
    assert (tmp_path / "m").read_text() == "old"
    assert not [p for p in (tmp_path / "m.work").iterdir() if p.name.endswith((".tmp", ".spool"))]
    full.clear()
    pack(tmp_path / "c", tmp_path / "m", resume=kept != "job.json", **FEW)
    assert (tmp_path / "m").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    "template,error", [(b"\xff\xfe", BadCheckpoint), (b"{% if %}{{", BadBundle), (None, BadCheckpoint)]
)
def test_a_wrong_chat_template_is_told_before_work_begins(tmp_path, template, error):
    write_checkpoint(tmp_path / "c", "mamba2")
    if template is not None:
        (tmp_path / "t.jinja").write_bytes(template)
    with pytest.raises(error, match="t.jinja"):
        pack(tmp_path / "c", tmp_path / "m", chat_template=tmp_path / "t.jinja", **FEW)
    assert not (tmp_path / "m.work").exists()


def test_both_layouts_of_a_checkpoint_pack_alike(tmp_path):
    logits = []
    for layout in ("state-spaces", "transformers"):
        write_checkpoint(tmp_path / layout, "mamba2", layout, ngroups=2, sharded=layout == "transformers")
        pack(tmp_path / layout, tmp_path / "m", "w4a8", noise_text(tmp_path), **FEW)
        logits.append(logits_of(tmp_path / "m", [1, 2, 3, 4]))
    assert np.array_equal(*logits)


def test_calibration_file_is_recorded_and_held_out_text_is_not_calibrated_on(tmp_path):
    write_checkpoint(tmp_path / "c", "mamba2")
    (tmp_path / "t.txt").write_text("The quick brown fox. " * 400)
    pack(tmp_path / "c", tmp_path / "m", calib=tmp_path / "t.txt", **FEW)
    with Bundle.open(tmp_path / "m") as bundle:
        record = bundle.manifest.calibration
        assert record["source"] == "t.txt" and len(record["sha256"]) == 64 and record["samples"] == 4
        assert bundle.manifest.source["license"] == "apache-2.0"


ONLY = shipped("w4a8").to_json()


@pytest.mark.parametrize(
    "family,recipe,words",
    [
        ("mamba", ONLY | {"x_grain": "group"}, "sorts Mamba2's heads"),
        ("mamba", ONLY | {"sites": ONLY["sites"] | {"*.x_proj": {"bits": 16}}}, "layers.0.x_proj has 16 bits"),
        ("mamba2", ONLY | {"sites": ONLY["sites"] | {"head": {"bits": 4}}}, "ties them"),
        ("mamba2", ONLY | {"sites": ONLY["sites"] | {"layers.9.*": {"bits": 4}}}, "no site fits 'layers.9.\\*'"),
        ("mamba2", {"sites": {"*.in_proj": {"bits": 4}}}, "says nothing about layers.0.out_proj"),
    ],
)
def test_a_recipe_that_does_not_fit_the_model_is_told_before_work_begins(tmp_path, family, recipe, words):
    write_checkpoint(tmp_path / "c", family)
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    with pytest.raises(BadRecipe, match=words):
        pack(tmp_path / "c", tmp_path / "m", str(tmp_path / "r.json"), noise_text(tmp_path), **FEW)
    assert not (tmp_path / "m.work").exists()


@pytest.mark.parametrize(
    "wrong",
    [{"calib_samples": 0}, {"calib_len": 1}, {"calib_len": -5}, {"eval_tokens": -1}, {"seed": -1}, {"seed": 1 << 70}],
)
def test_numbers_out_of_range_are_told_before_work_begins(tmp_path, wrong):
    write_checkpoint(tmp_path / "c", "mamba2")
    with pytest.raises(BadUsage, match=f"--{next(iter(wrong)).replace('_', '-')} is"):
        pack(tmp_path / "c", tmp_path / "m", **(FEW | wrong))
    assert not (tmp_path / "m.work").exists()


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_smallest_draws_and_odd_sizes(tmp_path, family):
    write_checkpoint(tmp_path / "c", family, d_model=50, n_layer=1, d_state=5, headdim=4, pad=1)
    made = pack(tmp_path / "c", tmp_path / "m", "w16a16", calib_samples=1, calib_len=2, eval_tokens=0)
    assert made.perplexity_bundle is None
    assert logits_of(tmp_path / "m", [1, 2, 3]).shape == (257,)


def test_problems_are_told_before_work_begins(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "c", "mamba2")
    with pytest.raises(BadRecipe, match="w5a5"):
        pack(folder, tmp_path / "m", "w5a5")
    with pytest.raises(BadText):
        pack(folder, tmp_path / "m", calib=tmp_path / "absent.txt", **FEW)
    monkeypatch.setattr("quamba_edge.quant.walk.SELF_SAMPLING_LIMIT", 10)
    with pytest.raises(BadText, match="--calib FILE"):
        pack(folder, tmp_path / "m", **FEW)
    (folder / "tokenizer.json").unlink()
    monkeypatch.undo()
    assert not pack(folder, tmp_path / "mute", **FEW).has_tokenizer
    (tmp_path / "t.txt").write_text("text " * 900)
    with pytest.raises(BadText, match="--tokenizer FILE"):
        pack(folder, tmp_path / "m", calib=tmp_path / "t.txt", **FEW)


@pytest.mark.parametrize("mode,bound", [("w16a16", 1.001), ("w8a8", 1.02), ("w4a8", 1.04)])
def test_trained_models_lose_little_even_with_little_calibration(storyteller, tmp_path, mode, bound):
    """The whole text and full calibration are in docs/benchmarks.md; this is what a minute-long test can hold."""
    made = pack(storyteller, tmp_path / "m", mode, calib_samples=8, calib_len=128, eval_tokens=1024)
    assert 0.98 < made.perplexity_bundle / made.perplexity_source < bound
