"""Both dialects of config.json, their defaults, and everything that must be refused."""

import json
import math

import pytest

from quamba_edge import models
from quamba_edge.errors import BadBundle, BadCheckpoint, WrongArchitecture
from quamba_edge.models.mamba.config import Config as Mamba
from quamba_edge.models.mamba2.config import Config as Mamba2
from tests.tiny import config_json, parse_config

FAMILIES, LAYOUTS = ("mamba", "mamba2"), ("state-spaces", "transformers")
PUBLISHED = {"d_model": 768, "n_layer": 24, "vocab_size": 50277, "rms_norm": True, "residual_in_fp32": True}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_dialects_agree(family, tied):
    one, other = (parse_config(family, layout, config_json(family, layout, tied=tied)) for layout in LAYOUTS)
    assert one.tie_embeddings == tied and (one.true_vocab_size, other.true_vocab_size) == (257, 272)
    assert one.to_json() | {"true_vocab_size": 0} == other.to_json() | {"true_vocab_size": 0}


def test_published_mamba_130m():
    c = Mamba.from_state_spaces({**PUBLISHED, "ssm_cfg": {}, "fused_add_norm": True, "pad_vocab_size_multiple": 8})
    assert c == Mamba(768, 24, 50280, 50277, 1536, 16, 4, 48)
    assert c == Mamba.from_state_spaces(
        {**PUBLISHED, "ssm_cfg": {"layer": "Mamba1", "dt_rank": "auto"}}
    )  # 8 is the default


def test_published_mamba2_130m_and_8b():
    c = Mamba2.from_state_spaces({**PUBLISHED, "ssm_cfg": {"layer": "Mamba2"}, "pad_vocab_size_multiple": 16})
    assert c == Mamba2(768, 24, 50288, 50277, 1536, 128, 4, 64, 1)
    assert (c.n_heads, c.conv_channels, c.dt_limit, c.tie_embeddings) == (24, 1792, (0.0, math.inf), True)
    raw = {
        "d_model": 4096,
        "n_layer": 56,
        "vocab_size": 256000,
        "pad_vocab_size_multiple": 128,
        "tie_embeddings": False,
    }
    c = Mamba2.from_state_spaces({**raw, "ssm_cfg": {"layer": "Mamba2", "ngroups": 8, "chunk_size": 128}})
    assert c == Mamba2(4096, 56, 256000, 256000, 8192, 128, 4, 64, 8, tie_embeddings=False)
    assert (c.n_heads, c.conv_channels) == (128, 10240)


def test_intermediate_size_is_believed_before_expand():
    raw = config_json("mamba", "transformers") | {"expand": 16, "intermediate_size": 128}
    assert Mamba.from_transformers(raw).d_inner == 128
    del raw["intermediate_size"]
    assert Mamba.from_transformers(raw).d_inner == 1024


@pytest.mark.parametrize("high", [math.inf, None, "inf", {"__float__": "Infinity"}])
def test_every_spelling_of_an_infinite_limit(high):
    raw = config_json("mamba2", "transformers") | {"time_step_limit": [0.0, high]}
    assert Mamba2.from_transformers(raw).dt_limit == (0.0, math.inf)


@pytest.mark.parametrize("family", FAMILIES)
def test_our_own_json_comes_back(family):
    config = parse_config(family, "state-spaces", config_json(family, dt_limit=(0.01, 0.1)))
    assert type(config).from_json(json.loads(json.dumps(config.to_json(), allow_nan=False))) == config
    config = parse_config(family, "state-spaces", config_json(family))
    assert type(config).from_json(json.loads(json.dumps(config.to_json(), allow_nan=False))) == config


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "change",
    [
        {"d_model": None},
        {"n_layer": 0},
        {"d_state": "16"},
        {"d_conv": 1},
        {"tie_embeddings": 1},
        {"norm_eps": -1.0},
        {"extra": 1},
        {"true_vocab_size": 10**6},
        {"d_inner": True},
    ],
    ids=str,
)
def test_a_bundles_dimensions_are_checked(family, change):
    config = parse_config(family, "state-spaces", config_json(family))
    with pytest.raises(BadBundle, match=next(iter(change))):
        type(config).from_json(config.to_json() | change)
    for raw in ([], None, {k: v for k, v in config.to_json().items() if k not in change} | {"x": 1}):
        with pytest.raises(BadBundle):
            type(config).from_json(raw)


REFUSED = [
    # (family, layout, key in the object or in its ssm_cfg, value, what the message says)
    ("mamba", "state-spaces", "attn_layer_idx", [3], "attention"),
    ("mamba2", "state-spaces", "attn_layer_idx", [3], "attention"),
    ("mamba2", "state-spaces", "d_intermediate", 1024, "MLP"),
    ("mamba", "state-spaces", "rms_norm", False, "LayerNorm"),
    ("mamba", "state-spaces", "d_model", None, "whole number"),
    ("mamba", "state-spaces", "d_model", -64, "whole number"),
    ("mamba", "state-spaces", "d_model", 64.0, "whole number"),
    ("mamba", "state-spaces", "d_model", True, "whole number"),
    ("mamba", "state-spaces", "vocab_size", "many", "whole number"),
    ("mamba", "state-spaces", "tie_embeddings", "yes", "true or false"),
    ("mamba", "state-spaces", "ssm_cfg", [], "object"),
    ("mamba", "state-spaces", "ssm_cfg.bias", True, "bias"),
    ("mamba2", "state-spaces", "ssm_cfg.conv_bias", False, "bias"),
    ("mamba2", "state-spaces", "ssm_cfg.D_has_hdim", True, "per head"),
    ("mamba2", "state-spaces", "ssm_cfg.rmsnorm", False, "gated norm"),
    ("mamba2", "state-spaces", "ssm_cfg.norm_before_gate", True, "before the gate"),
    ("mamba2", "state-spaces", "ssm_cfg.d_ssm", 64, "part of their channels"),
    ("mamba2", "state-spaces", "ssm_cfg.headdim", 48, "divisor of d_inner 128"),
    ("mamba2", "state-spaces", "ssm_cfg.ngroups", 3, "divisor of the 8 heads"),
    ("mamba2", "state-spaces", "ssm_cfg.dt_limit", [1, 0], "low < high"),
    ("mamba2", "state-spaces", "ssm_cfg.dt_limit", 3, "two numbers"),
    ("mamba2", "state-spaces", "ssm_cfg.dt_limit", [0, math.nan], "low < high"),
    ("mamba2", "state-spaces", "ssm_cfg.layer", "Mamba1", "Mamba2"),
    ("mamba2", "state-spaces", "ssm_cfg.mimo_rank", 4, "mimo_rank"),
    ("mamba", "state-spaces", "ssm_cfg.expand", 1.01, "whole number of d_model"),
    ("mamba", "state-spaces", "ssm_cfg.dt_rank", "half", "whole number"),
    ("mamba", "transformers", "use_bias", True, "bias"),
    ("mamba2", "transformers", "use_conv_bias", False, "bias"),
    ("mamba", "transformers", "hidden_act", "gelu", "activation"),
    ("mamba2", "transformers", "num_heads", 9, "head_dim"),
    ("mamba2", "transformers", "intermediate_size", 64, "d_inner"),
    ("mamba2", "transformers", "layer_norm_epsilon", 0, "positive"),
]


@pytest.mark.parametrize("family, layout, key, value, says", REFUSED, ids=lambda v: str(v)[:20])
def test_what_is_not_supported_is_refused_by_name(family, layout, key, value, says):
    raw = config_json(family, layout)
    parse_config(family, layout, raw)  # fine without the change
    *inner, last = key.split(".")
    (raw[inner[0]] if inner else raw)[last] = value
    with pytest.raises(BadCheckpoint, match=last) as caught:
        parse_config(family, layout, raw)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_architectures_are_folders():
    assert models.known() == ["mamba", "mamba2"]
    with pytest.raises(WrongArchitecture, match="mamba, mamba2"):
        models.find("rwkv", "config")
