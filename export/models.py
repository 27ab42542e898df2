"""The models that this version packs: where each lies, under which licence, with whose tokenizer.

Dimensions are quamba_edge/models/published.py's.  Licences are those that the models' pages on the Hugging Face Hub state, as far as
copies of these pages show; a bundle is a copy of the weights, so who passes one on should read the licence again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quamba_edge.models import published

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Model:
    """source: a name on the Hub, or a folder of this source tree.  tokenizer: whose tokenizer.json, where the source has none."""

    name: str
    source: str
    layout: str
    licence: str
    tokenizer: str | None = None

    @property
    def here(self) -> bool:
        """Whether the weights travel with the source tree."""
        return (ROOT / self.source).is_dir()

    def dimensions(self) -> tuple[str, Any]:
        """(family, Config), without a network."""
        known = published.config(self.name)
        if known is not None:
            return known
        from quamba_edge.checkpoint import hub

        return hub.read_config(ROOT / self.source)


def _state_spaces(name: str) -> Model:
    return Model(name, f"state-spaces/{name}", "mamba_ssm's pytorch_model.bin", "apache-2.0", "EleutherAI/gpt-neox-20b")


def _embedded(name: str) -> Model:
    return Model(name, f"demos/models/{name}", "safetensors", "apache-2.0")


LARGE = (
    Model(
        "mamba2-8b",
        "nvidia/mamba2-8b-3t-4k",
        "Megatron-LM's model_optim_rng.pt, a SentencePiece tokenizer",
        "apache-2.0",
    ),
    Model(
        "codestral-7b",
        "mistralai/Mamba-Codestral-7B-v0.1",
        "transformers' safetensors; Mistral's own consolidated.safetensors is read too",
        "apache-2.0",
    ),
    Model(
        "falcon-mamba-7b",
        "tiiuae/falcon-mamba-7b",
        "transformers' safetensors",
        "falcon-mamba-7b-license (TII Falcon-Mamba License 2.0: conditions on use, https://falconllm.tii.ae)",
    ),
)
SMALL = tuple(_state_spaces(n) for n in published.NAMES if n not in {m.name for m in LARGE})
EMBEDDED = (_embedded("storyteller-mamba1-5m"), _embedded("storyteller-mamba2-5m"))
MODELS = {m.name: m for m in (*SMALL, *LARGE, *EMBEDDED)}
