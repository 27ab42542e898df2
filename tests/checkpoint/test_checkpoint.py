"""Checkpoints in every layout, and tables that do not fit their config.json."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from quamba_edge import models
from quamba_edge.checkpoint import open_checkpoint
from quamba_edge.errors import BadCheckpoint
from tests.checkpoint.refusal import change_json, refused
from tests.tiny import config_json, parse_config, random_weights, tokenizer_json, write_checkpoint, write_weights

FAMILIES, LAYOUTS = ("mamba", "mamba2"), ("state-spaces", "transformers")
CONV = "backbone.layers.1.mixer.conv1d.weight"


def change_weights(folder, change):
    """Rewrite model.safetensors after change(dict of tensors)."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("sharded", [False, True], ids=["one", "shards"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_gives_the_same_tensors(tmp_path, family, layout, tied, sharded, bin):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, family, layout, tied=tied, sharded=sharded, bin=bin))
    config = parse_config(family, "state-spaces", config_json(family, tied=tied))
    assert (checkpoint.family, checkpoint.config, checkpoint.path) == (family, config, tmp_path)
    weights = random_weights(config)
    assert set(checkpoint.names()) == set(weights)
    for name, exact in weights.items():
        assert checkpoint.shape(name) == tuple(exact.shape)
        assert torch.equal(checkpoint.tensor(name), exact), name
    counted = [t.nbytes for n, t in weights.items() if n != "lm_head.weight" or not tied]
    assert checkpoint.bytes == sum(counted)


def test_a_head_that_is_stored_though_tied_is_not_read(tmp_path):
    write_checkpoint(tmp_path, "mamba2")
    change_weights(tmp_path, lambda t: t.update({"lm_head.weight": torch.zeros_like(t["backbone.embedding.weight"])}))
    assert open_checkpoint(tmp_path).tensor("lm_head.weight").abs().sum() > 0
    change_weights(tmp_path, lambda t: t.update({"lm_head.weight": torch.zeros(3, 3)}))
    refused(tmp_path, "model.safetensors", "lm_head.weight", "[3, 3]", "[272, 64]")


def test_a_given_tokenizer_wins_and_must_fit(tmp_path):
    folder, other = write_checkpoint(tmp_path / "c", "mamba", "transformers"), tmp_path / "other.json"
    assert open_checkpoint(folder).config.true_vocab_size == 257  # config.json counts 272, the padding too
    raw = json.loads(tokenizer_json())
    last = max(raw["model"]["vocab"], key=raw["model"]["vocab"].get)
    del raw["model"]["vocab"][last]
    other.write_text(json.dumps(raw))
    checkpoint = open_checkpoint(folder, tokenizer=other)
    assert checkpoint.tokenizer_json == other.read_text() and checkpoint.config.true_vocab_size == 256
    raw["model"]["vocab"][last] = 5000
    other.write_text(json.dumps(raw))
    refused(folder, other, "5001 ids", "272", tokenizer=other)
    refused(folder, "absent.json", "no such file", tokenizer=tmp_path / "absent.json")
    (folder / "tokenizer.json").write_text("{}")
    refused(folder, "tokenizer.json", "tokenizers")


def test_the_digest_tells_checkpoints_apart(tmp_path):
    make = lambda name, **options: open_checkpoint(write_checkpoint(tmp_path / name, "mamba2", **options)).digest
    first = make("a")
    assert make("b") == first and len(first) == 64
    others = [
        make("c", seed=1),
        make("d", tied=False),
        make("e", sharded=True),
        make("f", dtype=torch.bfloat16),
        make("g", n_layer=3),
    ]
    assert len({first, *others}) == 6


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, value):
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    "change, says",
    [
        (drop(CONV), (CONV, "is missing", "[160, 1, 4]")),
        (drop("backbone.embedding.weight"), ("backbone.embedding.weight", "is missing")),
        (put(CONV, torch.zeros(160, 4, 1)), ("model.safetensors", CONV, "[160, 4, 1]", "[160, 1, 4]")),
        (put(CONV, torch.zeros(160, 1, 4, dtype=torch.int8)), ("model.safetensors", CONV, "I8", "BF16")),
        (put("backbone.layers.0.mixer.in_proj.bias", torch.zeros(3)), ("model.safetensors", "in_proj.bias")),
        (put("backbone.embeddings.weight", torch.zeros(272, 64)), ("backbone.embeddings.weight", "which one")),
    ],
    ids=["missing", "no embedding", "shape", "dtype", "extra", "twice"],
)
def test_tables_that_are_not_this_models(tmp_path, change, says):
    write_checkpoint(tmp_path, "mamba2")
    change_weights(tmp_path, change)
    refused(tmp_path, *says)


def test_a_head_that_is_missing(tmp_path):
    write_checkpoint(tmp_path, "mamba2", "transformers")
    change_json(tmp_path / "config.json", tie_word_embeddings=False)
    refused(tmp_path, "lm_head.weight", "tie_word_embeddings")


def test_more_layers_than_there_can_be(tmp_path):
    write_checkpoint(tmp_path, "mamba2")
    change_json(tmp_path / "config.json", n_layer=2**30)
    refused(tmp_path, "1073741824 layers")


@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
def test_shards(tmp_path, bin):
    stem = "pytorch_model" if bin else "model"
    suffix = "bin" if bin else "safetensors"
    index = f"{stem}.{suffix}.index.json"
    second = f"{stem}-00002-of-00002.{suffix}"
    make = lambda: write_checkpoint(tmp_path, "mamba2", sharded=True, bin=bin)

    (make() / second).unlink()
    refused(tmp_path, tmp_path / second, "is missing", index)

    make()
    table = json.loads((tmp_path / index).read_text())["weight_map"]
    change_json(tmp_path / index, weight_map=table | {"backbone.norm_f.weight": f"{stem}-00001-of-00002.{suffix}"})
    refused(tmp_path, "00001", "backbone.norm_f.weight is missing", index)

    (tmp_path.parent / f"outside.{suffix}").write_bytes((tmp_path / second).read_bytes())
    change_json(tmp_path / index, weight_map=table | {"backbone.norm_f.weight": f"../outside.{suffix}"})
    refused(tmp_path, index, f"../outside.{suffix}", "beside it")

    change_json(tmp_path / index, weight_map={})
    refused(tmp_path, index, "weight_map")

    (tmp_path / index).write_text("{")
    refused(tmp_path, index, "JSON")


def test_a_tensor_in_two_shards(tmp_path):
    write_checkpoint(tmp_path, "mamba2", sharded=True)
    path = tmp_path / "model-00001-of-00002.safetensors"
    save_file(load_file(path) | {"backbone.norm_f.weight": torch.zeros(64)}, path)
    refused(tmp_path, "backbone.norm_f.weight", "00001", "00002")


def test_embedded_models_open_and_speak(storyteller):
    checkpoint = open_checkpoint(storyteller)
    assert checkpoint.config.true_vocab_size == 4096 and checkpoint.license == "apache-2.0"
    assert checkpoint.chat_template is not None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json)
    lm = models.find(checkpoint.family, "reference").LM.from_checkpoint(checkpoint)
    text = "Once upon a time, there was a little girl named"
    with torch.no_grad():
        logits, states = lm(torch.tensor([tokenizer.encode(text).ids]))
        said = []
        token = logits[:, -1].argmax(-1)
        for _ in range(4):
            said.append(int(token))
            logits, states = lm.step(token, states)
            token = logits.argmax(-1)
    assert tokenizer.decode(said).split()[0].strip(".,").istitle(), tokenizer.decode(said)  # a name


@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number_is_named_with_its_place(tmp_path, value, bin):
    write_checkpoint(tmp_path, "mamba2", bin=bin, dtype=torch.bfloat16)
    weights = random_weights(parse_config("mamba2", "state-spaces", config_json("mamba2")))
    del weights["lm_head.weight"]
    weights["backbone.embedding.weight"][40, 7] = value
    write_weights(tmp_path, weights, bin=bin)
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.tensor("backbone.embedding.weight", slice(0, 40))) == 40
    for rows in (None, slice(32, 48), slice(40, 41)):
        with pytest.raises(BadCheckpoint, match=rf"backbone.embedding.weight has {value:g} at \[40, 7\]"):
            checkpoint.tensor("backbone.embedding.weight", rows)
