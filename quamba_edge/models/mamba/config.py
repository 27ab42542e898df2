"""Dimensions of a Mamba1 model, from either dialect of config.json (Gu and Dao 2023; mamba_ssm's defaults)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from quamba_edge.errors import BadBundle, BadCheckpoint
from quamba_edge.models.fields import Fields, from_manifest, padded, reject_state_spaces, reject_transformers

# Options of mamba_ssm's Mamba1 layer.  Those not read below matter to training or to speed only.
SSM_CFG = (
    "layer d_state d_conv expand dt_rank dt_min dt_max dt_init dt_scale dt_init_floor conv_bias bias use_fast_path"
)


@dataclass(frozen=True)
class Config:
    """Symbols of models/__init__.py: d_model D, d_inner E, d_state N, dt_rank R, d_conv W.

    vocab_size       rows of the embedding and of the head, padding included (V)
    true_vocab_size  ids below this one mean something
    mixer_norm_eps   Falcon-Mamba: low-rank dt, B and C are each divided by their root mean square, with this eps; else None
    """

    family: ClassVar[str] = "mamba"

    d_model: int
    n_layer: int
    vocab_size: int
    true_vocab_size: int
    d_inner: int
    d_state: int
    d_conv: int
    dt_rank: int
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    mixer_norm_eps: float | None = None

    def __post_init__(self) -> None:
        raw = Fields(asdict(self), "model dimensions")
        for key in ("d_model", "n_layer", "vocab_size", "true_vocab_size", "d_inner", "d_state", "d_conv", "dt_rank"):
            raw.count(key)
        raw.number("norm_eps", 1e-5)
        raw.flag("tie_embeddings", True)
        raw.number("mixer_norm_eps", 1e-6)
        if self.d_conv < 2:
            raise raw.bad("d_conv", "2 or more")
        if self.true_vocab_size > self.vocab_size:
            raise raw.bad("true_vocab_size", f"no more than the {self.vocab_size} vocabulary rows")

    @classmethod
    def from_state_spaces(cls, raw: Any) -> Config:
        """From the config.json of mamba_ssm, with its defaults (MambaConfig and Mamba)."""
        top = Fields(raw)
        reject_state_spaces(top)
        ssm = top.nested("ssm_cfg")
        ssm.known(SSM_CFG)
        ssm.only("layer", "Mamba1", why="this reader is for Mamba1")
        ssm.only("bias", False, why="projections with a bias are not supported")
        ssm.only("conv_bias", True, why="convolutions without a bias are not supported")
        D, vocab = top.count("d_model"), top.count("vocab_size")
        return cls(
            d_model=D,
            n_layer=top.count("n_layer"),
            vocab_size=padded(vocab, top.count("pad_vocab_size_multiple", 8)),
            true_vocab_size=vocab,
            d_inner=ssm.width(D),
            d_state=ssm.count("d_state", 16),
            d_conv=ssm.count("d_conv", 4),
            dt_rank=_rank(ssm, "dt_rank", D),
            tie_embeddings=top.flag("tie_embeddings", True),
        )

    @classmethod
    def from_transformers(cls, raw: Any) -> Config:
        """From the config.json of transformers' MambaConfig or FalconMambaConfig, whose vocab_size counts the rows."""
        top = Fields(raw)
        reject_transformers(top)
        D, vocab = top.count("hidden_size"), top.count("vocab_size")
        return cls(
            d_model=D,
            n_layer=top.count("num_hidden_layers"),
            vocab_size=vocab,
            true_vocab_size=vocab,
            d_inner=top.count("intermediate_size", top.width(D)),  # some configs give an expand that is not the truth
            d_state=top.count("state_size", 16),
            d_conv=top.count("conv_kernel", 4),
            dt_rank=_rank(top, "time_step_rank", D),
            norm_eps=top.number("layer_norm_epsilon", 1e-5),
            tie_embeddings=top.flag("tie_word_embeddings", True),
            mixer_norm_eps=top.number("mixer_rms_eps", 1e-6) if top.raw.get("model_type") == "falcon_mamba" else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` is its inverse.  A mixer without norms says nothing of them, as bundles always did."""
        return {k: v for k, v in asdict(self).items() if k != "mixer_norm_eps" or v is not None}

    @classmethod
    def from_json(cls, raw: Any) -> Config:
        """From a bundle's manifest; BadBundle when a field is missing, unknown or senseless."""
        try:
            return cls(**from_manifest(raw, {f.name for f in fields(cls)}, {"mixer_norm_eps"}))
        except BadCheckpoint as e:
            raise BadBundle(f"the bundle's {e}; pack it again") from None


def _rank(raw: Fields, key: str, d_model: int) -> int:
    """dt_rank: a number, or "auto" = ceil(D / 16)."""
    return -(-d_model // 16) if raw.raw.get(key) in (None, "auto") else raw.count(key)
