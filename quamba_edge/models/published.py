"""Dimensions of published models, so that one can plan without a network: as their config.json on the Hugging Face Hub has them.

nvidia/mamba2-8b-3t-4k and Mamba-Codestral came without such a file; theirs follow from their training settings.
"""

from __future__ import annotations

from typing import Any

from quamba_edge import models

_MAMBA = {"mamba-130m": (768, 24), "mamba-370m": (1024, 48), "mamba-790m": (1536, 48), "mamba-1.4b": (2048, 48)}
_MAMBA |= {"mamba-2.8b": (2560, 64)}
_MAMBA2 = {"mamba2-130m": (768, 24), "mamba2-370m": (1024, 48), "mamba2-780m": (1536, 48), "mamba2-1.3b": (2048, 48)}
_MAMBA2 |= {"mamba2-2.7b": (2560, 64)}
_LARGE = {"mamba2-8b": (4096, 56, 256000, 128), "codestral-7b": (4096, 64, 32768, 1)}

# Its config.json says expand 16; what holds is intermediate_size.
_FALCON: dict[str, Any] = {
    "model_type": "falcon_mamba",
    "hidden_size": 4096,
    "num_hidden_layers": 64,
    "vocab_size": 65024,
    "state_size": 16,
}
_FALCON |= {"intermediate_size": 8192, "time_step_rank": 256, "tie_word_embeddings": False}

NAMES = (*_MAMBA, *_MAMBA2, *_LARGE, "falcon-mamba-7b")


def config(name: str) -> tuple[str, Any] | None:
    """(family, Config) of a model by its short name or as "state-spaces/NAME"; None for one that is not in the table."""
    short = name.removeprefix("state-spaces/")
    if short == "falcon-mamba-7b":
        return "mamba", models.find("mamba", "config").Config.from_transformers(_FALCON)
    if short in _MAMBA:
        raw: dict[str, Any] = {"d_model": _MAMBA[short][0], "n_layer": _MAMBA[short][1], "vocab_size": 50277}
        return "mamba", models.find("mamba", "config").Config.from_state_spaces({**raw, "pad_vocab_size_multiple": 8})
    ssm: dict[str, Any] = {"layer": "Mamba2"}
    if short in _MAMBA2:
        (width, layers), vocab, multiple = _MAMBA2[short], 50277, 16
    elif short in _LARGE:
        width, layers, vocab, multiple = _LARGE[short]
        ssm["ngroups"] = 8
    else:
        return None
    raw = {"d_model": width, "n_layer": layers, "vocab_size": vocab, "pad_vocab_size_multiple": multiple}
    raw |= {"ssm_cfg": ssm, "tie_embeddings": short not in _LARGE}
    return "mamba2", models.find("mamba2", "config").Config.from_state_spaces(raw)
