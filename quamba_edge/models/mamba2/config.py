"""Dimensions of a Mamba2 model, from either dialect of config.json (Dao and Gu 2024; mamba_ssm's defaults)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from quamba_edge.errors import BadBundle, BadCheckpoint
from quamba_edge.models.fields import Fields, from_manifest, padded, reject_state_spaces, reject_transformers

# Options of mamba_ssm's Mamba2 layer.  Those not read below matter to training or to speed only.
SSM_CFG = """layer d_state d_conv conv_init expand headdim d_ssm ngroups A_init_range D_has_hdim rmsnorm norm_before_gate
    dt_min dt_max dt_init_floor dt_limit bias conv_bias chunk_size use_mem_eff_path"""


@dataclass(frozen=True)
class Config:
    """Symbols of models/__init__.py: d_model D, d_inner E, d_state N, d_conv W, headdim P, ngroups g.

    vocab_size       rows of the embedding and of the head, padding included (V)
    true_vocab_size  ids below this one mean something
    dt_limit         softplus(dt + dt_bias) is clamped to this range
    """

    family: ClassVar[str] = "mamba2"

    d_model: int
    n_layer: int
    vocab_size: int
    true_vocab_size: int
    d_inner: int
    d_state: int
    d_conv: int
    headdim: int
    ngroups: int
    dt_limit: tuple[float, float] = (0.0, math.inf)
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        raw = Fields(asdict(self), "model dimensions")
        for key in "d_model n_layer vocab_size true_vocab_size d_inner d_state d_conv headdim ngroups".split():
            raw.count(key)
        raw.number("norm_eps", 1e-5)
        raw.flag("tie_embeddings", True)
        raw.limits("dt_limit")
        if self.d_conv < 2:
            raise raw.bad("d_conv", "2 or more")
        if self.true_vocab_size > self.vocab_size:
            raise raw.bad("true_vocab_size", f"no more than the {self.vocab_size} vocabulary rows")
        if self.d_inner % self.headdim:
            raise raw.bad("headdim", f"a divisor of d_inner {self.d_inner}")
        if self.n_heads % self.ngroups:
            raise raw.bad("ngroups", f"a divisor of the {self.n_heads} heads")

    @property
    def n_heads(self) -> int:
        """H = E / P."""
        return self.d_inner // self.headdim

    @property
    def conv_channels(self) -> int:
        """What the convolution runs over: x, B and C, E + 2gN."""
        return self.d_inner + 2 * self.ngroups * self.d_state

    @classmethod
    def from_state_spaces(cls, raw: Any) -> Config:
        """From the config.json of mamba_ssm, with its defaults (MambaConfig and Mamba2)."""
        top = Fields(raw)
        reject_state_spaces(top)
        ssm = top.nested("ssm_cfg")
        ssm.known(SSM_CFG)
        ssm.only("layer", "Mamba2", why="this reader is for Mamba2")
        ssm.only("bias", False, why="projections with a bias are not supported")
        ssm.only("conv_bias", True, why="convolutions without a bias are not supported")
        ssm.only("D_has_hdim", False, why="D per channel is not supported, only per head")
        ssm.only("rmsnorm", True, why="models without the gated norm are not supported")
        ssm.only("norm_before_gate", False, why="a norm before the gate is not supported")
        D, vocab = top.count("d_model"), top.count("vocab_size")
        E = ssm.width(D)
        ssm.only("d_ssm", E, None, why="layers that are an SSM in part of their channels only are not supported")
        return cls(
            d_model=D,
            n_layer=top.count("n_layer"),
            vocab_size=padded(vocab, top.count("pad_vocab_size_multiple", 8)),
            true_vocab_size=vocab,
            d_inner=E,
            d_state=ssm.count("d_state", 128),
            d_conv=ssm.count("d_conv", 4),
            headdim=ssm.count("headdim", 64),
            ngroups=ssm.count("ngroups", 1),
            dt_limit=ssm.limits("dt_limit"),
            tie_embeddings=top.flag("tie_embeddings", True),
        )

    @classmethod
    def from_transformers(cls, raw: Any) -> Config:
        """From the config.json of transformers' Mamba2Config, with its defaults; its vocab_size counts the rows."""
        top = Fields(raw)
        reject_transformers(top)
        D, vocab = top.count("hidden_size"), top.count("vocab_size")
        E, P = top.width(D), top.count("head_dim", 64)
        if top.count("num_heads", E // P if E % P == 0 else None) * P != E:
            raise top.bad("num_heads", f"d_inner {E} (expand * hidden_size) / head_dim {P}")
        top.only("intermediate_size", E, None, why=f"d_inner is expand * hidden_size = {E}")
        return cls(
            d_model=D,
            n_layer=top.count("num_hidden_layers"),
            vocab_size=vocab,
            true_vocab_size=vocab,
            d_inner=E,
            d_state=top.count("state_size", 128),
            d_conv=top.count("conv_kernel", 4),
            headdim=P,
            ngroups=top.count("n_groups", 8),
            dt_limit=top.limits("time_step_limit"),
            norm_eps=top.number("layer_norm_epsilon", 1e-5),
            tie_embeddings=top.flag("tie_word_embeddings", False),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, an infinite limit as null; `from_json` is its inverse."""
        return {**asdict(self), "dt_limit": [v if math.isfinite(v) else None for v in self.dt_limit]}

    @classmethod
    def from_json(cls, raw: Any) -> Config:
        """From a bundle's manifest; BadBundle when a field is missing, unknown or senseless."""
        try:
            own = from_manifest(raw, {f.name for f in fields(cls)})
            return cls(**{**own, "dt_limit": Fields(own, "model dimensions").limits("dt_limit")})
        except BadCheckpoint as e:
            raise BadBundle(f"the bundle's {e}; pack it again") from None
