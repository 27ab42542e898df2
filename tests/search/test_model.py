"""What is measured on a model of two layers: the source's predictions, mixes of bundles, KL, and both verbs from end to end."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from quamba_edge import models
from quamba_edge.bundle.reader import Bundle
from quamba_edge.calibrate.text import Draw
from quamba_edge.checkpoint import open_checkpoint
from quamba_edge.cli import main
from quamba_edge.errors import BadUsage
from quamba_edge.pack import pack
from quamba_edge.runtime.engine import Engine
from quamba_edge.search import source
from quamba_edge.search.objective import Objective, divergences, mean
from quamba_edge.search.space import Space
from quamba_edge.search.store import open_store
from tests import tiny

DRAW = Draw(4, 32, 3, 0)
TEXT = "".join(chr(c) for c in np.random.default_rng(0).integers(97, 123, 4000))


@pytest.fixture(scope="module", params=["mamba", "mamba2"])
def made(request, tmp_path_factory):
    """(checkpoint folder, text file, folder of a store with w4a8 and w4a16) of a random model."""
    folder = tmp_path_factory.mktemp("search")
    tiny.write_checkpoint(folder / "model", request.param, tied=request.param == "mamba2")
    (folder / "text.txt").write_text(TEXT)
    with opened(folder, "w4a8", "w4a16"):
        pass
    return folder


def opened(folder, *modes, ends=("w8a8",), draw=DRAW):
    checkpoint = open_checkpoint(folder / "model")
    return open_store(folder / "store", checkpoint, modes, ends, calib=folder / "text.txt", draw=draw)


def space_of(folder, choices="w4ax", ends=None):
    checkpoint = open_checkpoint(folder / "model")
    return Space.of(checkpoint.family, checkpoint.config, True, choices, ends)


def test_the_source_predicts_what_the_reference_does(made):
    checkpoint = open_checkpoint(made / "model")
    tokens = np.random.default_rng(1).integers(1, 250, (3, 20))
    lm = models.find(checkpoint.family, "reference").LM.from_checkpoint(checkpoint)
    with torch.no_grad():
        exact = lm(torch.from_numpy(tokens))[0][..., : checkpoint.config.true_vocab_size].double().softmax(-1)
    exact = exact.numpy()
    nats = -np.log(np.take_along_axis(exact[:, :-1], tokens[:, 1:, None], 2))[..., 0].mean(1)
    exact = exact.reshape(-1, exact.shape[-1])
    chances, ids, nll = source.predictions(checkpoint, tokens)
    assert ids is None and np.abs(chances - exact).max() < 1e-5 and np.abs(nll - nats).max() < 1e-5
    few, ids, nll = source.predictions(checkpoint, tokens, keep_bytes=60 * 8 * 10)
    assert np.abs(nll - nats).max() < 1e-5
    assert few.shape == (60, 10) == ids.shape
    assert np.abs(np.sort(few, 1) - np.sort(exact, 1)[:, -10:]).max() < 1e-5
    assert np.abs(few - np.take_along_axis(exact, ids.astype(int), 1)).max() < 1e-5


def test_divergence_is_that_of_the_definition_and_of_a_part_a_lower_bound():
    rng = np.random.default_rng(2)
    p, logits = rng.dirichlet(np.ones(30), 8), rng.normal(0, 2, (8, 30)).astype(np.float32)
    q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    exact = (p * np.log(p / q)).sum(1)
    tokens = np.zeros((2, 4), int)
    whole = source.Source.of(tokens, p.astype(np.float32), None, np.zeros(2))
    assert np.allclose(whole.divergence(slice(0, 8), logits), exact, atol=2e-6)
    assert np.allclose(whole.divergence(slice(2, 5), logits[2:5]), exact[2:5], atol=2e-6)
    ids = np.argsort(-p, 1)[:, :12]
    part = source.Source.of(tokens, np.take_along_axis(p, ids, 1).astype(np.float32), ids.astype(np.int32), np.zeros(2))
    found = part.divergence(slice(0, 8), logits)
    assert (found <= exact + 1e-6).all() and (found > 0).all() and not np.allclose(found, exact, atol=1e-4)
    steep = np.random.default_rng(3).normal(0, 4, (8, 4096)).astype(np.float32) - 9
    chances = np.exp(steep.astype(np.float64)) / np.exp(steep.astype(np.float64)).sum(1, keepdims=True)
    long_tail = source.Source.of(tokens, chances.astype(np.float32), None, np.zeros(2))
    assert np.abs(long_tail.divergence(slice(0, 8), steep)).max() < 2e-6  # thousands of small terms count too
    same = np.log(p).astype(np.float32)
    assert np.abs(whole.divergence(slice(0, 8), same)).max() < 1e-6
    assert np.abs(part.divergence(slice(0, 8), same)).max() < 1e-6


def test_a_mix_of_one_mode_is_its_bundle_and_another_layer_is_another_model(made):
    space = space_of(made)
    with opened(made, "w4a8") as store:
        plain = divergences(Engine(store.bundles["w4a8"], "reference"), store.source)
        assert (
            divergences(Objective(store, "reference").engine(store.mix(space.uniform())), store.source) == plain
        ).all()
    with opened(made, "w4a8", "w4a16") as store:
        objective = Objective(store, "reference")
        uniform = {m: divergences(objective.engine(store.mix(space.uniform(m))), store.source) for m in space.choices}
        plain = divergences(Engine(store.bundles["w4a16"], "reference"), store.source)
        whole = store.mix({**space.uniform("w4a16"), "ends": "w8a16"})
        assert (divergences(objective.engine(whole), store.source) == plain).all()
        mixed = objective.measure({**space.uniform(), "layers.1": "w4a16"})
        assert mixed.kl not in (mean(uniform["w4a8"]).kl, mean(uniform["w4a16"]).kl) and mixed.kl > 0
        manifest = store.mix({**space.uniform(), "layers.1": "w4a16"}).manifest
        assert [manifest.sites[f"layers.{i}.in_proj"]["act"] for i in (0, 1)] == [8, 16]
        assert manifest.check() is not None
        low = objective.with_layer_state(space.uniform(), 0, "i8")
        assert low.kl != objective.measure(space.uniform()).kl


def test_what_a_layer_is_fed_changes_no_weight(made):
    """Layer 0 fed 8 bits: the codes of 16-bit activations, the scales of 8-bit ones."""
    space = space_of(made)
    with opened(made, "w4a8", "w4a16") as store:
        mix, (int8, plain) = store.mix({**space.uniform("w4a16"), "layers.0": "w4a8"}), store.bundles.values()
        for site in ("in_proj", "out_proj"):
            assert (mix.tensor(f"layers.0.{site}.codes") == plain.tensor(f"layers.0.{site}.codes")).all()
            assert (mix.tensor(f"layers.0.{site}.in_scale") == int8.tensor(f"layers.0.{site}.in_scale")).all()
            assert mix.manifest.sites[f"layers.0.{site}"]["act"] == 8
        assert (mix.tensor("layers.0.conv.out_scale") == int8.tensor("layers.0.conv.out_scale")).all()
        assert not any("scale" in n.split(".")[-1] and n.startswith("layers.1.conv") for n in mix.manifest.tensors)


def test_a_site_of_another_mode(made):
    with opened(made, "w4a8", "w8a8", "w6a8") as store:
        space = space_of(made, "w4a8,w8a8,w4a8/out_proj=6")
        given = {**space.uniform(), "layers.0": "w4a8/out_proj=6", "layers.1": "w8a8"}
        manifest = store.mix(given).manifest
        bits = [manifest.sites[f"layers.{i}.{site}"]["bits"] for i in (0, 1) for site in ("in_proj", "out_proj")]
        assert bits == [4, 6, 8, 8]
        kl = Objective(store, "auto").kl
        assert 0 < kl(given) < kl(space.uniform())


def test_the_recipe_packs_to_the_mix_where_the_layer_comes_first(made, tmp_path):
    """Layer 0 has nothing before it but the embedding, so packed after a search it is the very same."""
    space = space_of(made)
    given = {**space.uniform(), "layers.0": "w4a16"}
    (tmp_path / "r.json").write_text(json.dumps(space.recipe(given).to_json()))
    result = pack(
        made / "model", tmp_path / "m.qedge", str(tmp_path / "r.json"), made / "text.txt", 4, 32, eval_tokens=96
    )
    with opened(made, "w4a8", "w4a16") as store, Bundle.open(result.bundle) as bundle:
        mix = store.mix(given)
        assert list(bundle.manifest.tensors) == list(mix.manifest.tensors) or set(bundle.manifest.tensors) == set(
            mix.manifest.tensors
        )
        for name in bundle.manifest.tensors:
            if name.startswith(("layers.0.", "embedding")):
                assert (bundle.tensor(name) == mix.tensor(name)).all(), name


def test_a_store_is_kept_and_is_of_one_text(made):
    files = {p: p.stat().st_mtime_ns for p in (made / "store").glob("*.qedge")}
    with opened(made, "w4a8", "w4a16"):
        pass
    assert {p: p.stat().st_mtime_ns for p in files} == files
    with pytest.raises(BadUsage, match="differs in windows"):
        opened(made, "w4a8", draw=Draw(5, 32, 3, 0))


def test_search_finds_the_front_of_the_whole_space(made, tmp_path, capsys):
    shutil.copytree(made / "store", tmp_path / "out")
    words = ["search", str(made / "model"), "-o", "out", "--calib", str(made / "text.txt"), "--calib-samples", "4"]
    words += ["--calib-len", "32", "--tokens", "96", "--trials", "9", "--budget", "a16=2", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    space = space_of(made)
    with opened(made, "w4a8", "w4a16") as store:
        objective = Objective(store)
        pairs = []
        for choices in itertools.product(space.choices, repeat=2):
            given = {**dict(zip(("layers.0", "layers.1"), choices)), "ends": "w8a8"}
            pairs.append((space.a16(given), objective.kl(given), given))
    best = [min((p for p in pairs if p[0] == n), key=lambda p: p[1]) for n in range(3)]
    expected = [b for i, b in enumerate(best) if all(b[1] < other[1] for other in best[:i])]
    assert found["measured"] == 4 and [r["given"] for r in found["front"]] == [b[2] for b in expected]
    assert found["winner"]["kl"] == min(p[1] for p in pairs)
    names = {r["name"].split()[0] for r in found["baselines"]}
    assert names == {"uniform", "first", "last", "greedy", "random"}
    assert json.loads((tmp_path / "out" / "recipe.json").read_text()) == found["recipe"]
    with opened(made, "w4a8", "w4a16") as store, Bundle.open(found["bundle"]) as best:
        assert best.manifest.recipe == found["recipe"] and len(best.manifest.golden) == 1
        kl = mean(divergences(Engine(best, "auto"), store.source)).kl
        assert kl == found["winner"]["kl"]  # what was measured is what was written
        perplexity = best.manifest.perplexity
        assert perplexity["source"] == pytest.approx(np.exp(store.source.nll.mean())) and perplexity["tokens"] == 3 * 31
    assert main([*words[:-1], "--trials", "9"]) == 0  # again: nothing is left to measure
    said = capsys.readouterr().out
    assert "run it: quamba-edge run out/best.qedge" in said and "4 recipes measured" in said
    assert (tmp_path / "out" / "front.png").stat().st_size > 5000


def test_sensitivity_of_every_part(made, tmp_path, capsys):
    shutil.copytree(made / "store", tmp_path / "out")
    words = ["sensitivity", str(made / "model"), "-o", "out", "--calib", str(made / "text.txt"), "--calib-samples", "4"]
    assert main([*words, "--calib-len", "32", "--tokens", "96", "--choices", "w4a8,w8a16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    kl = {(r["place"], r["choice"]): r["kl"] for r in found["rows"]}
    untied = {"embedding", "head"} if "mamba" == open_checkpoint(made / "model").family else set()
    assert {p for p, _ in kl} == {"all", "layers.0", "layers.1", "ends"} | untied
    for part in untied:
        assert found["floor"]["kl"] < kl[part, "w4a8"] < kl["ends", "w4a8"]
    assert found["floor"]["kl"] < kl["layers.0", "w8a16"] < kl["layers.0", "w4a8"] < kl["all", "w4a8"]
    assert kl["ends", "w4a8"] > kl["ends", "w8a8"] and kl["layers.0", "state i8"] > 0
    assert (tmp_path / "out" / "sensitivity.png").stat().st_size > 5000


def test_usage_that_is_refused_before_anything_is_packed(made, capsys):
    words = ["search", str(made / "model"), "-o", "new"]
    assert main([*words, "--budget", "a16=x"]) == 2
    assert main([*words, "--budget", "a16=1", "--trials", "0"]) == 2
    assert main([*words, "--budget", "a16=1", "--recipe", "w5"]) == 2
    assert main([*words, "--budget", "a16=1", "--tasks", "blimp"]) == 2
    assert main([*words, "--budget", "bytes=1"]) == 2
    assert main([*words, "--budget", "a16=1", "--study", "nowhere/study"]) == 2
    assert not Path("new").exists()
    said = capsys.readouterr().err
    assert "--study nowhere/study cannot be opened" in said
    assert "a number in no unit" in said and "--trials is 0" in said and "no choice for a layer" in said
    assert "--tasks needs --data" in said and "fewer than" in said
