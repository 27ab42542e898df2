"""Finding a checkpoint and its kind; folders, files and names that are none."""

import json
import sys
import types

import pytest

from quamba_edge.checkpoint import open_checkpoint
from quamba_edge.errors import Missing
from tests.checkpoint.refusal import change_json, refused
from tests.tiny import config_json, tokenizer_json, write_checkpoint

FAMILIES = ("mamba", "mamba2")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_with_both_dialects_is_read_as_state_spaces(tmp_path, family):
    """Converted checkpoints may carry the keys of both, and of Mamba1 an ssm_cfg that names no layer."""
    write_checkpoint(tmp_path, family)
    other = config_json(family, "transformers")
    change_json(tmp_path / "config.json", **{k: v for k, v in other.items() if k != "vocab_size"})
    raw = json.loads((tmp_path / "config.json").read_text())
    if family == "mamba":
        del raw["ssm_cfg"]["layer"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.family, checkpoint.config.vocab_size, checkpoint.config.true_vocab_size) == (family, 272, 257)


def test_what_lies_beside_the_weights(tmp_path):
    write_checkpoint(tmp_path, "mamba")
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.license, checkpoint.chat_template) == ("apache-2.0", None)
    assert json.loads(checkpoint.tokenizer_json) == json.loads(tokenizer_json())
    (tmp_path / "README.md").write_text("A model\n")
    (tmp_path / "LICENSE").write_text("\n  MIT License \nmore\n")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.license, checkpoint.chat_template) == ("MIT License", "{{ messages }}")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [{"name": "default", "template": "a"}]}')
    (tmp_path / "README.md").write_text('---\ntags: [x]\nlicense:\n- "mit"\n---\n')
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.license, checkpoint.chat_template) == ("mit", "a")
    (tmp_path / "chat_template.jinja").write_text("b")
    assert open_checkpoint(tmp_path).chat_template == "b"
    for name in ("README.md", "LICENSE", "tokenizer_config.json", "chat_template.jinja", "tokenizer.json"):
        (tmp_path / name).unlink()
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.license, checkpoint.chat_template, checkpoint.tokenizer_json) == (None, None, None)


def test_folders_that_are_no_checkpoints(tmp_path):
    refused(tmp_path / "absent", "no such folder", "state-spaces/mamba2-130m")
    refused(tmp_path, "no config.json", "empty")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "config.json", "neither d_model nor hidden_size")
    (tmp_path / "config.json").write_text("[1]")
    refused(tmp_path, "config.json", "object")
    (tmp_path / "config.json").write_text("not json")
    refused(tmp_path, "config.json", "JSON")
    (tmp_path / "config.json").write_bytes(b"\xff\xff")
    refused(tmp_path, "config.json", "JSON")
    (tmp_path / "config.json").write_text(json.dumps(config_json("mamba")))
    refused(tmp_path, "no weights", "model.safetensors", "pytorch_model.bin")
    refused(tmp_path / "config.json", "is a file", "folder")
    (tmp_path / "x.qedge").write_text("")
    refused(tmp_path / "x.qedge", "is a file", "packed already")


@pytest.mark.parametrize(
    "raw, says",
    [
        ({"hidden_size": 64, "model_type": "jamba"}, ("jamba", "attention")),
        ({"hidden_size": 64, "model_type": "zamba2"}, ("zamba2", "attention")),
        ({"hidden_size": 64, "model_type": "llama"}, ("llama", "mamba, mamba2 or falcon_mamba")),
        ({"hidden_size": 64}, ("None", "mamba, mamba2 or falcon_mamba")),
        ({"d_model": 64, "ssm_cfg": {"layer": "Mamba3"}}, ("Mamba3", "Mamba1 or Mamba2")),
        (config_json("mamba2", headdim=48), ("config.json", "headdim is 48")),
        (config_json("mamba2") | {"attn_layer_idx": [1]}, ("config.json", "attention")),
    ],
    ids=lambda v: str(v)[:40],
)
def test_other_architectures_are_refused(tmp_path, raw, says):
    write_checkpoint(tmp_path, "mamba2")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    refused(tmp_path, tmp_path / "config.json", *says)


def test_the_hub_out_of_reach_says_what_to_bring(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    refused(
        "nobody/mamba2-130m",
        "nobody/mamba2-130m",
        "config.json",
        "model.safetensors",
        "--local-dir mamba2-130m",
        kind=Missing,
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("nobody/mamba2-130m", "pip install 'quamba-edge[pack]'", kind=Missing)


@pytest.mark.parametrize("name", ["../x", "a/b/c", "a/", "/", ".", "a b/c", "https://huggingface.co/a/b"])
def test_what_is_no_hub_name_is_a_missing_folder(name, tmp_path):
    if name in ("/", "."):
        refused(name, "config.json")
    else:
        refused(name, "no such folder")


@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
def test_the_hub_gives_one_kind_of_weights(monkeypatch, tmp_path, bin):
    """A repository that has both is not downloaded twice over."""
    folder = write_checkpoint(tmp_path / "cached", "mamba", bin=bin)
    asked = []

    class HfApi:
        def list_repo_files(self, name):
            return ["config.json", "pytorch_model.bin"] + ([] if bin else ["model.safetensors"])

    def snapshot_download(name, allow_patterns):
        asked.append((name, tuple(allow_patterns)))
        return str(folder)

    fake = types.SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    checkpoint = open_checkpoint("somebody/mamba-tiny")
    assert (checkpoint.path, checkpoint.name) == (folder, "somebody/mamba-tiny")
    [(name, patterns)] = asked
    assert name == "somebody/mamba-tiny" and "tokenizer.json" in patterns and "config.json" in patterns
    assert any(p.startswith("pytorch_model") for p in patterns) == bin
    assert any(p.endswith(".safetensors") for p in patterns) != bin


@pytest.mark.parametrize(
    "listed, wanted, unwanted",
    [
        (["release/mp_rank_00/model_optim_rng.pt", "a.model", "README.md"], "*/mp_rank_*/model_optim_rng.pt", "*.bin"),
        (["params.json", "consolidated.safetensors"], "consolidated.safetensors", "pytorch_model.bin"),
        (["consolidated.safetensors", "model-00001-of-00003.safetensors"], "model-*.safetensors", "params.json"),
    ],
    ids=["megatron", "mistral", "both"],
)
def test_the_layouts_of_publishers_are_downloaded_once(monkeypatch, tmp_path, listed, wanted, unwanted):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.extend(allow_patterns)
        return str(write_checkpoint(tmp_path / "cached", "mamba"))

    fake = types.SimpleNamespace(list_repo_files=lambda name: listed)
    module = types.SimpleNamespace(HfApi=lambda: fake, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    open_checkpoint("somebody/model")
    assert wanted in asked and unwanted not in asked and "tokenizer.json" in asked


def test_the_tokenizer_of_another_model_on_the_hub(monkeypatch, tmp_path):
    (tmp_path / "t.json").write_text(tokenizer_json())
    folder = write_checkpoint(tmp_path / "c", "mamba")
    (folder / "tokenizer.json").unlink()
    asked = []
    fake = types.SimpleNamespace(hf_hub_download=lambda *names: asked.append(names) or str(tmp_path / "t.json"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    checkpoint = open_checkpoint(folder, tokenizer="EleutherAI/gpt-neox-20b")
    assert checkpoint.tokenizer_json is not None and asked == [("EleutherAI/gpt-neox-20b", "tokenizer.json")]
    assert checkpoint.name == "c"
    refused(folder, "no such file", tokenizer=tmp_path / "absent.json")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(
        folder,
        "EleutherAI/gpt-neox-20b is no file here",
        "hf download",
        tokenizer="EleutherAI/gpt-neox-20b",
        kind=Missing,
    )


def test_a_hub_repository_that_does_not_exist(monkeypatch):
    class RepositoryNotFoundError(Exception):
        pass

    class HfApi:
        def list_repo_files(self, name):
            raise RepositoryNotFoundError("404: no such repository\nmore")

    fake = types.SimpleNamespace(HfApi=HfApi, snapshot_download=None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    refused("nobody/nothing", "404: no such repository", kind=Missing)
