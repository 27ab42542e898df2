"""Published models in their publishers' layouts: opened, packed, run, and compared with somebody else's implementation."""

import os
import pickle

import numpy as np
import pytest
import torch

from quamba_edge import backends, models
from quamba_edge.bundle.reader import Bundle
from quamba_edge.checkpoint import open_checkpoint
from quamba_edge.errors import BadCheckpoint
from quamba_edge.pack import pack
from quamba_edge.runtime.session import Engine, Session
from tests.checkpoint import sources
from tests.checkpoint.refusal import refused
from tests.models.oracle import relative, transformers_logits
from tests.tiny import config_json, parse_config, random_weights, write_checkpoint

LARGE = {"d_model": 64, "d_state": 128, "headdim": 64, "ngroups": 2}  # what params.json cannot say otherwise


def written(source, folder):
    """(checkpoint folder, the config it must give, its weights) in one of the four layouts."""
    if source == "megatron":
        config, weights = sources.grouped()
        return sources.write_megatron(folder, config, weights), config, weights
    if source == "codestral":
        config, weights = sources.grouped(**LARGE)
        return sources.write_codestral(folder, config, weights), config, weights
    layout, family = ("falcon", "mamba") if source == "falcon" else ("state-spaces", "mamba2")
    config = parse_config(family, layout, config_json(family, layout, tied=False))
    return write_checkpoint(folder, family, layout, tied=False), config, random_weights(config)


SOURCES = ("state-spaces", "megatron", "codestral", "falcon")
ids = lambda batch, length: torch.randint(0, 257, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_is_the_model_it_says(source, tmp_path):
    pytest.importorskip("transformers", reason="the oracle, transformers, is not installed: pip install transformers")
    folder, config, weights = written(source, tmp_path / "c")
    checkpoint = open_checkpoint(folder)
    assert {**checkpoint.config.to_json(), "true_vocab_size": 0} == {**config.to_json(), "true_vocab_size": 0}
    assert checkpoint.tokenizer_json is not None and checkpoint.config.true_vocab_size in (257, 264)
    for name, exact in weights.items():
        assert torch.equal(checkpoint.tensor(name), exact), name
    lm = models.find(checkpoint.family, "reference").LM.from_checkpoint(checkpoint, torch.float64)
    with torch.no_grad():
        found = lm(ids(2, 40))[0]
    assert relative(found, transformers_logits(config, weights, ids(2, 40), torch.float64)) < 1e-9


# What each recipe may cost in the logits of a random model of 64 channels, in units of the largest: f16 rounds at 2^-11.
RECIPES = {"w16a16": 2e-3, "w8a8": 0.1, "w4a16": 0.35}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("source", SOURCES)
def test_a_source_is_packed_and_runs(source, recipe, tmp_path):
    """On every backend here; with one token at a time as with chunks; and the bundle opens again."""
    folder, config, weights = written(source, tmp_path / "c")
    out = tmp_path / "m.qedge"
    made = pack(folder, out, recipe, method="rtn", calib_samples=8, calib_len=32, eval_tokens=32)
    assert made.has_tokenizer and made.perplexity_bundle == pytest.approx(made.perplexity_source, rel=RECIPES[recipe])
    checkpoint = open_checkpoint(folder)
    lm = models.find(checkpoint.family, "reference").LM.from_checkpoint(checkpoint, torch.float64)
    with torch.no_grad():
        exact = lm(ids(1, 24))[0][0, -1].numpy()[: checkpoint.config.true_vocab_size]
    with Bundle.open(out) as bundle:
        assert bundle.config.to_json() == checkpoint.config.to_json()
        for name in [n for n in backends.known() if backends.why_not(n) is None]:
            session = Session(Engine(bundle, backend=name))
            logits = session.prefill([int(i) for i in ids(1, 24)[0][:17]])
            for i in ids(1, 24)[0][17:]:
                logits = session.decode(int(i))
            error = np.abs(logits - exact).max() / np.abs(exact).max()
            assert error < RECIPES[recipe], f"{name}: {error:.3g}"


def test_the_grouped_norm_matters(tmp_path):
    """The model with one norm over all groups is another: what these tests compare with would show it."""
    config, weights = sources.grouped()
    lm = models.find("mamba2", "reference").LM(config)
    lm.load_state_dict(weights)
    with torch.no_grad():
        exact = lm(ids(1, 24))[0]
        for block in lm.backbone.layers:
            block.mixer.norm.groups = 1
        assert relative(lm(ids(1, 24))[0], exact) > 0.02


class Attack:
    def __reduce__(self):
        return (os.system, (f"touch {os.getcwd()}/it-ran",))


class Quiet:
    """A class of somebody's own."""


def test_a_pickle_that_would_run_something_is_refused_by_name(tmp_path):
    config, weights = sources.grouped()
    for number, (where, says) in enumerate({"args": "posix.system", "model": "posix.system"}.items()):
        folder = tmp_path / str(number)
        sources.write_megatron(folder, config, weights, **{where: {"x": Attack()}})
        refused(folder, sources.RUN, says, "no Megatron-LM checkpoint needs")
        sources.write_megatron(tmp_path / f"own {number}", config, weights, **{where: Quiet()})
        refused(tmp_path / f"own {number}", "test_sources.Quiet")
    with pytest.raises(pickle.UnpicklingError):  # nor does torch itself run it
        torch.load(tmp_path / "0" / sources.RUN, weights_only=True)
    assert not (tmp_path / "it-ran").exists()
    os.system(Attack().__reduce__()[1][0])
    assert (tmp_path / "it-ran").exists(), "the attack is none, so the test proves nothing"


def test_megatron_folders_that_are_not_to_be_read(tmp_path):
    config, weights = sources.grouped()
    write = lambda name, w=weights, **more: sources.write_megatron(tmp_path / name, config, w, **more)
    attention = {**weights, "decoder.layers.1.self_attention.linear_qkv.weight": torch.zeros(2, 2)}
    refused(write("hybrid", attention), "self_attention", "attention or MLP layers are not supported")
    split = write("split")
    (split / "release/mp_rank_01").mkdir()
    (split / "release/mp_rank_01/model_optim_rng.pt").write_bytes(b"")
    refused(split, "split over 2 ranks", "tools/checkpoint")
    other = write("other")
    (other / "latest_checkpointed_iteration.txt").write_text("4000")
    refused(other, "'4000'", "iter_0004000", "copy it too")
    refused(write("no model", model=[1]), sources.RUN, 'no state dict under "model"')
    refused(write("not tensors", model={"a": 3}), sources.RUN, "something else than named tensors")
    refused(write("empty", model={}), "embedding.word_embeddings.weight is missing", "Mamba2 model of Megatron-LM")
    missing = {n: t for n, t in weights.items() if n != "backbone.layers.1.mixer.D"}
    refused(write("missing", missing), "backbone.layers.1.mixer.D is missing")
    refused(write("states", args={"mamba_state_dim": "many"}), "mamba_state_dim is 'many'")
    refused(write("default states", args=None), "no Mamba2 layer with 128 states")
    two = write("two")
    (two / "release").rename(two / "iter_0000001")
    sources.write_megatron(two, config, weights)
    (two / "latest_checkpointed_iteration.txt").unlink()
    refused(two, "2 Megatron-LM checkpoints")


def test_a_megatron_model_without_arguments_or_with_a_tied_head(tmp_path):
    config, weights = sources.grouped(**LARGE, tied=True)
    del weights["lm_head.weight"]
    folder = sources.write_megatron(tmp_path / "c", config, weights, args=None)
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: some-license\n---\n")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.tie_embeddings and checkpoint.config.ngroups == 2 and checkpoint.license == "some-license"


def test_mistral_folders_that_are_not_to_be_read(tmp_path):
    config, weights = sources.grouped(**LARGE)
    write = lambda name, **changes: sources.write_codestral(tmp_path / name, config, weights, **changes)
    refused(write("a", n_groups=None), "params.json", "n_groups")
    refused(write("b", rms_norm=False), "params.json", "LayerNorm")
    refused(write("c", dim=128), "consolidated.safetensors", "backbone.embedding.weight", "[272, 64]")
    (tmp_path / "a" / "params.json").write_text('{"dim": 64, "n_heads": 8}')
    refused(tmp_path / "a", "no dim and n_groups")


def test_what_a_megatron_file_holds_beside_is_never_made(tmp_path):
    """Objects of other people's classes become dead ones, whatever state they bring."""
    config, weights = sources.grouped()
    folder = sources.write_megatron(tmp_path / "c", config, weights, rng_state=[np.random.default_rng(0).random(3)])
    assert open_checkpoint(folder).names()
    with pytest.raises(BadCheckpoint, match=r"pytorch_model.bin|config.json"):
        open_checkpoint(folder / "release")
