"""Random checkpoints of a few 100 KB, in every layout that can be read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from quamba_edge import models as families

VOCAB = 257  # <|endoftext|> = 0, then the 256 bytes


def write_checkpoint(
    folder: Path | str,
    family: str,
    layout: str = "state-spaces",
    *,
    d_model: int = 64,
    n_layer: int = 2,
    d_state: int = 16,
    headdim: int = 16,
    ngroups: int = 1,
    dt_limit: tuple[float, float] | None = None,
    tied: bool = True,
    vocab: int = VOCAB,
    pad: int = 16,
    sharded: bool = False,
    bin: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    chat_template: str | None = None,
) -> Path:
    """A folder with config.json, weights, a byte-level tokenizer.json and a README.md with a licence; returns it.

    layout "state-spaces", "transformers" or (Mamba1 only) "falcon"; `vocab` ids are padded to a multiple of `pad` rows.  A_log and D stay float32.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    raw = config_json(family, layout, d_model, n_layer, d_state, headdim, ngroups, dt_limit, tied, vocab, pad)
    (folder / "config.json").write_text(json.dumps(raw))
    weights = random_weights(parse_config(family, layout, raw), seed)
    stored = {n: t if n.endswith(("A_log", ".D")) else t.to(dtype) for n, t in weights.items()}
    if layout != "state-spaces":
        stored["backbone.embeddings.weight"] = stored.pop("backbone.embedding.weight")
    if tied and (layout != "state-spaces" or not bin):
        del stored["lm_head.weight"]
    write_weights(folder, stored, sharded, bin)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nRandom numbers.\n")
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    return folder


def config_json(
    family: str,
    layout: str = "state-spaces",
    d_model: int = 64,
    n_layer: int = 2,
    d_state: int = 16,
    headdim: int = 16,
    ngroups: int = 1,
    dt_limit: tuple[float, float] | None = None,
    tied: bool = True,
    vocab: int = VOCAB,
    pad: int = 16,
) -> dict[str, Any]:
    """config.json's object, as mamba_ssm or transformers would write it."""
    two = family == "mamba2"
    if layout == "state-spaces":
        ssm: dict[str, Any] = {"layer": "Mamba2" if two else "Mamba1", "d_state": d_state}
        if two:
            ssm |= {"headdim": headdim, "ngroups": ngroups} | ({"dt_limit": list(dt_limit)} if dt_limit else {})
        return {
            "d_model": d_model,
            "d_intermediate": 0,
            "n_layer": n_layer,
            "vocab_size": vocab,
            "ssm_cfg": ssm,
            "attn_layer_idx": [],
            "attn_cfg": {},
            "rms_norm": True,
            "residual_in_fp32": True,
            "fused_add_norm": True,
            "pad_vocab_size_multiple": pad,
            "tie_embeddings": tied,
        }
    assert layout == "transformers" or (layout, two) == ("falcon", False), layout
    E = 2 * d_model
    raw = {
        "architectures": ["Mamba2ForCausalLM" if two else "MambaForCausalLM"],
        "model_type": family,
        "hidden_size": d_model,
        "num_hidden_layers": n_layer,
        "vocab_size": -(-vocab // pad) * pad,
        "state_size": d_state,
        "conv_kernel": 4,
        "expand": 2,
        "use_bias": False,
        "use_conv_bias": True,
        "hidden_act": "silu",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": tied,
    }
    if layout == "falcon":  # an expand that is not the truth, as in the published config.json
        raw |= {"architectures": ["FalconMambaForCausalLM"], "model_type": "falcon_mamba", "expand": 16}
    if not two:
        return raw | {"intermediate_size": E, "time_step_rank": -(-d_model // 16)}
    raw |= {"head_dim": headdim, "num_heads": E // headdim, "n_groups": ngroups}
    return raw | ({"time_step_limit": list(dt_limit)} if dt_limit else {})


def parse_config(family: str, layout: str, raw: dict[str, Any]) -> Any:
    Config = families.find(family, "config").Config
    return Config.from_state_spaces(raw) if layout == "state-spaces" else Config.from_transformers(raw)


def random_weights(config: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    """Float32 tensors by canonical name, scaled so that every part of the model matters; a tied head is the embedding."""
    generator = torch.Generator().manual_seed(seed)
    uniform = lambda shape: torch.rand(shape, generator=generator)
    found = {}
    for name, shape in families.find(config.family, "weights").expected(config).items():
        leaf = name.removesuffix(".weight").split(".")[-1]
        noise = torch.randn(shape, generator=generator)
        if leaf == "A_log":
            value = (1 + 15 * uniform(shape)).log()
        elif leaf == "dt_bias" or name.endswith("dt_proj.bias"):
            dt = torch.exp(math.log(1e-3) + uniform(shape) * math.log(1e2))  # 0.001 to 0.1, as models are initialized
            value = dt + torch.log(-torch.expm1(-dt))  # softplus gives dt back
        elif leaf in ("norm", "norm_f", "D"):
            value = 1 + 0.2 * noise
        elif leaf == "bias":
            value = 0.1 * noise
        elif leaf == "embedding":
            value = noise
        else:
            value = noise / math.sqrt(shape[-1])
        found[name] = value
    if config.tie_embeddings:
        found["lm_head.weight"] = found["backbone.embedding.weight"]
    return found


def write_weights(folder: Path, tensors: dict[str, torch.Tensor], sharded: bool = False, bin: bool = False) -> None:
    """One file, or two shards with an index; safetensors, or torch's pickle."""
    stem, suffix = ("pytorch_model", "bin") if bin else ("model", "safetensors")
    save = (lambda t, p: torch.save(t, p)) if bin else (lambda t, p: save_file(t, p, metadata={"format": "pt"}))
    if not sharded:
        save(tensors, folder / f"{stem}.{suffix}")
        return
    names, table = list(tensors), {}
    for k, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"{stem}-{k:05d}-of-00002.{suffix}"
        save({n: tensors[n] for n in part}, folder / file)
        table |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": table}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def tokenizer_json() -> str:
    """A byte-level tokenizer: <|endoftext|> is 0, every byte one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {c: i for i, c in enumerate(alphabet, 1)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return str(tokenizer.to_str())
