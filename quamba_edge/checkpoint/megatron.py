"""Megatron-LM's checkpoint of a Mamba2 model, such as NVIDIA's mamba2-8b-3t-4k: a pickle of weights and training arguments.

    latest_checkpointed_iteration.txt        "release", or an iteration's number
    release/mp_rank_00/model_optim_rng.pt    {"model": state dict, "args": Namespace, ...}
    NAME.model                               the SentencePiece tokenizer (spm.py)

There is no config.json: the dimensions are those of the tensors.  torch's restricted unpickler reads the file; classes of
Megatron and of libraries around it become dead objects of one class here, nothing is imported or called, and any other name is
refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from quamba_edge.checkpoint.tensors import BinFile
from quamba_edge.errors import BadCheckpoint
from quamba_edge.models.fields import Fields
from quamba_edge.models.mamba2.config import Config

FILE = "model_optim_rng.pt"
PATTERNS = [f"*/mp_rank_*/{FILE}", "latest_checkpointed_iteration.txt", "*.model"]
# Where classes of a training run's arguments and random states come from.  Only weights and a few numbers are wanted of it all.
LIBRARIES = ("megatron.", "apex.", "transformer_engine.", "numpy.", "torch.", "pathlib.", "enum.")
KNOWN = (*LIBRARIES, "argparse.Namespace", "types.SimpleNamespace", "_io.BytesIO", "_codecs.encode")


class Dead:
    """What an object of a class becomes that is not unpickled: it keeps a dictionary if that was its state, and does nothing."""

    def __new__(cls, *args: Any) -> Dead:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        self.fields: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.fields = state if isinstance(state, dict) else {}


class MegatronFile(BinFile):
    """The tensors under "model" of a .pt file, by Megatron's names; `args` are its training arguments, where they are plain."""

    def __init__(self, path: Path):
        self.args: dict[str, Any] = {}
        super().__init__(path)

    def _load(self) -> Any:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(self.path)
        strange = sorted(n for n in names if not n.startswith(KNOWN))
        if strange:
            raise ValueError(f"it asks for {', '.join(strange)}, which no Megatron-LM checkpoint needs")
        dead: Any = [(Dead, name) for name in names]
        with torch.serialization.safe_globals(dead):
            loaded = super()._load()
        if not isinstance(loaded, dict) or not isinstance(loaded.get("model"), dict):
            raise ValueError('it has no state dict under "model"')
        args: Any = loaded.get("args")
        self.args = args.fields if isinstance(args, Dead) else args if isinstance(args, dict) else {}
        # What Transformer Engine keeps of its layers' scales, often nothing.
        return {n: t for n, t in loaded["model"].items() if not str(n).endswith("_extra_state")}


def find(folder: Path) -> Path | None:
    """The weights of a Megatron-LM checkpoint folder; None where it is none.  BadCheckpoint where they are split over ranks."""
    latest = folder / "latest_checkpointed_iteration.txt"
    runs = sorted({p.parent.parent for p in folder.glob(f"*/mp_rank_*/{FILE}")})
    if latest.is_file() and runs:
        said = latest.read_text(errors="replace").strip()
        wanted = folder / (f"iter_{int(said):07d}" if said.isdecimal() else said)
        if wanted not in runs:
            raise BadCheckpoint(f"{latest}: says {said!r:.40}, but {wanted} has no mp_rank_00/{FILE}: copy it too")
        runs = [wanted]
    if len(runs) > 1:
        raise BadCheckpoint(f"{folder}: has {len(runs)} Megatron-LM checkpoints, and no {latest.name} that names one")
    if not runs:
        return folder / FILE if (folder / FILE).is_file() else None
    parts = sorted(runs[0].glob(f"mp_rank_*/{FILE}"))
    if len(parts) > 1:
        raise BadCheckpoint(
            f"{runs[0]}: the model is split over {len(parts)} ranks; merge it with Megatron-LM's tools/checkpoint first"
        )
    return parts[0]


def read_config(path: Path) -> tuple[str, Config]:
    """("mamba2", its Config) from the shapes of the tensors, and from the arguments what shapes do not say."""
    file = MegatronFile(path)
    attention = next((n for n in file.entries if ".self_attention." in n or ".mlp." in n), None)
    if attention is not None:
        raise BadCheckpoint(f"{path}: has {attention}: models with attention or MLP layers are not supported")

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in file.entries or len(file.entries[name].shape) != axes:
            found = list(file.entries[name].shape) if name in file.entries else "missing"
            raise BadCheckpoint(
                f"{path}: {name} is {found}, expected {axes} axes: is it a Mamba2 model of Megatron-LM?"
            )
        return file.entries[name].shape

    mixer = "decoder.layers.0.mixer."
    V, D = shape("embedding.word_embeddings.weight", 2)
    channels, _, W = shape(mixer + "conv1d.weight", 3)
    E, (H,) = shape(mixer + "out_proj.weight", 2)[1], shape(mixer + "A_log", 1)
    said = Fields(file.args, f"{path}: args")
    N = said.count("mamba_state_dim", 128)  # not to be seen in any shape; the default is Megatron-LM's
    if H < 1 or E % H or channels <= E or (channels - E) % (2 * N):
        raise BadCheckpoint(
            f"{path}: {E} channels, {H} heads, {channels} channels of the convolution are no Mamba2 layer with {N} states"
        )
    layers = {int(found[1]) for n in file.entries if (found := re.match(r"decoder\.layers\.(\d{1,6})\.", n))}
    return "mamba2", Config(
        d_model=D,
        n_layer=max(layers) + 1,
        vocab_size=V,
        true_vocab_size=V,
        d_inner=E,
        d_state=N,
        d_conv=W,
        headdim=E // H,
        ngroups=(channels - E) // (2 * N),
        norm_eps=said.number("norm_epsilon", said.number("layernorm_epsilon", 1e-5)),
        tie_embeddings="output_layer.weight" not in file.entries,
    )
