"""Small checkpoints as their publishers lay them out: Megatron-LM's pickle, Mistral's params.json, with a SentencePiece model."""

from __future__ import annotations

import argparse
import contextlib
import enum
import io
import json
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file

from tests.tiny import config_json, parse_config, random_weights

RUN = "release/mp_rank_00/model_optim_rng.pt"


def grouped(**more: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """(Config, weights) of a Mamba2 model with 4 SSD groups and a head of its own, as NVIDIA's 8B and Codestral have them."""
    raw = config_json("mamba2", **{"ngroups": 4, "tied": False, "vocab": 272, **more})
    config = parse_config("mamba2", "state-spaces", raw)
    return config, random_weights(config)


def write_megatron(folder: Path, config: Any, weights: dict[str, torch.Tensor], **more: Any) -> Path:
    """The file that Megatron-LM saves: args with its own classes, states of Transformer Engine; `more` goes beside."""
    names = {
        "backbone.embedding.weight": "embedding.word_embeddings.weight",
        "backbone.norm_f.weight": "decoder.final_norm.weight",
        "lm_head.weight": "output_layer.weight",
    }
    state = {names.get(n, n.replace("backbone.layers.", "decoder.layers.")): t for n, t in weights.items()}
    state["decoder.layers.0.mixer.in_proj._extra_state"] = io.BytesIO(b"scales")
    with megatron() as ModelType:
        args = argparse.Namespace(mamba_state_dim=config.d_state, norm_epsilon=1e-5, params_dtype=torch.bfloat16)
        args.model_type, args.num_layers = ModelType.encoder_or_decoder, config.n_layer
        whole = {"args": args, "checkpoint_version": 3.0, "iteration": 7, "model": state, "optimizer": None, **more}
        (folder / RUN).parent.mkdir(parents=True)
        torch.save(whole, folder / RUN)
    (folder / "latest_checkpointed_iteration.txt").write_text("release\n")
    (folder / "mt_nlg.model").write_bytes(sentencepiece_model())
    return folder


@contextlib.contextmanager
def megatron() -> Iterator[Any]:
    """An enum of a package that is gone again when the file is read."""
    module = types.ModuleType("megatron.core.enums")

    class ModelType(enum.Enum):
        encoder_or_decoder = 1

    ModelType.__module__, ModelType.__qualname__, module.ModelType = module.__name__, "ModelType", ModelType
    names = {"megatron": types.ModuleType("megatron"), "megatron.core": types.ModuleType("megatron.core")}
    with mock.patch.dict(sys.modules, names | {module.__name__: module}):
        yield ModelType


def write_codestral(folder: Path, config: Any, weights: dict[str, torch.Tensor], **changes: Any) -> Path:
    """params.json has no d_state and no headdim: a model in this layout has 128 and 64."""
    params = {"dim": config.d_model, "n_layers": config.n_layer, "vocab_size": config.vocab_size, "model_type": "mamba"}
    params |= {"n_groups": config.ngroups, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True}
    params |= {"pad_vocab_size_multiple": 1, "tie_embeddings": config.tie_embeddings, **changes}
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(params))
    save_file({f"model.{n}": t for n, t in weights.items()}, folder / "consolidated.safetensors")
    (folder / "tokenizer.model.v3").write_bytes(sentencepiece_model())
    return folder


def sentencepiece_model(algorithm: int = 2) -> bytes:
    """A SentencePiece model of the bytes and one word: 0 <unk>, 1 <s>, 2 </s>, 3 to 258 bytes, then ▁, h, i, ▁h, ▁hi."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{b:02X}>", 0.0, 6) for b in range(256)]
    pieces += [(text, float(-rank), 1) for rank, text in enumerate(("▁hi", "▁h", "▁", "h", "i"))]
    message = b"".join(_bytes(1, _bytes(1, t.encode()) + _score(s) + _number(3, kind)) for t, s, kind in pieces)
    return message + _bytes(2, _number(3, algorithm) + _number(35, 1)) + _bytes(3, _number(3, 1) + _number(4, 0))


def _varint(value: int) -> bytes:
    low = value & 0x7F
    return bytes([low | 0x80]) + _varint(value >> 7) if value > 0x7F else bytes([low])


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _score(value: float) -> bytes:
    return _varint(2 << 3 | 5) + struct.pack("<f", value)
