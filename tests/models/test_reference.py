"""The torch reference against others' implementations, and against itself in every way of cutting a sequence."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quamba_edge import models
from quamba_edge.checkpoint import open_checkpoint
from quamba_edge.models.mamba import reference as mamba
from quamba_edge.models.mamba2 import reference as mamba2
from quamba_edge.models.stack import State
from tests.models.oracle import numpy_mixer, relative, transformers_logits
from tests.tiny import config_json, parse_config, random_weights, write_checkpoint

FAMILIES = ("mamba", "mamba2")
# Every family's plain form, and the forms that are easy to get wrong.
SHAPES = {
    "mamba": ("mamba", {}),
    "falcon": ("mamba", {"layout": "falcon", "tied": False}),
    "mamba2": ("mamba2", {}),
    "grouped": ("mamba2", {"ngroups": 4}),
    "one head a group": ("mamba2", {"ngroups": 8}),
    "dt limited": ("mamba2", {"dt_limit": (0.01, 0.05)}),
    "one head": ("mamba2", {"headdim": 128, "d_state": 8}),
}
TAPS = {
    "mamba": "in_proj z x B C dt_proj dt state y out_proj".split(),
    "mamba2": "in_proj z x B C dt state y out_proj".split(),
}


@pytest.fixture(autouse=True)
def quiet_torch():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def made(shape: str, dtype=torch.float64, seed=0, **more):
    """(config, canonical weights, LM) of a tiny random model."""
    family, options = SHAPES[shape]
    options = {"layout": "state-spaces", **options, **more}
    config = parse_config(family, options["layout"], config_json(family, **options))
    weights = random_weights(config, seed)
    lm = models.find(family, "reference").LM(config)
    lm.load_state_dict(weights)
    return config, weights, lm.to(dtype)


def tokens(batch, length, seed=1):
    return torch.randint(0, 257, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(found, exact, bound):
    error = relative(found, exact)
    assert error < bound, f"differs by {error:.2e} of the largest value, expected less than {bound:.0e}"


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=["f32", "f64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(shape, dtype, bound):
    pytest.importorskip("transformers", reason="the oracle, transformers, is not installed: pip install transformers")
    config, weights, lm = made(shape, dtype, tied=shape != "grouped")
    ids = tokens(2, 75)
    found = lm(ids)[0]
    assert found.dtype == dtype
    close(found, transformers_logits(config, weights, ids, dtype), bound)


@pytest.mark.parametrize("shape", SHAPES)
def test_mixer_is_the_formula_of_the_paper(shape):
    config, weights, lm = made(shape)
    prefix = "backbone.layers.1.mixer."
    leaves = {n.removeprefix(prefix): t.double().numpy() for n, t in weights.items() if n.startswith(prefix)}
    u = torch.randn(1, 70, config.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found, _ = lm.backbone.layers[1].mixer(u)
    close(found[0], torch.from_numpy(numpy_mixer(config, leaves, u[0].numpy())), 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_token_at_a_time_is_the_whole_sequence(shape):
    config, _, lm = made(shape)
    ids = tokens(3, 70)
    whole, after = lm(ids)
    logits, states = lm(ids[:, :1])
    found = [logits[:, 0]]
    for t in range(1, ids.shape[1]):
        logits, states = lm.step(ids[:, t], states)
        found.append(logits)
    close(torch.stack(found, 1), whole, 1e-12)
    for one, other in zip(states, after, strict=True):
        close(one.conv, other.conv, 1e-12)
        close(one.ssm, other.ssm, 1e-12)


@settings(max_examples=15)
@given(
    shape=st.sampled_from(["mamba", "mamba2", "grouped"]), cuts=st.lists(st.integers(1, 139), max_size=5, unique=True)
)
def test_any_split_is_the_whole_sequence(shape, cuts):
    config, _, lm = made(shape, n_layer=1)
    ids = tokens(1, 140)
    whole, after = lm(ids)
    states, found = None, []
    for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), 140], strict=True):
        logits, states = lm(ids[:, a:b], states)
        found.append(logits)
    close(torch.cat(found, 1), whole, 1e-12)
    close(states[0].ssm, after[0].ssm, 1e-12)
    close(states[0].conv, after[0].conv, 1e-12)


@pytest.mark.parametrize("shape", ["mamba", "mamba2", "grouped"])
def test_a_given_state_is_used_and_left_alone(shape):
    config, _, lm = made(shape)
    mixer = lm.backbone.layers[0].mixer
    u = torch.randn(2, 5, config.d_model, dtype=torch.float64)
    zero = mixer.zero_state(u)
    state = State(torch.randn_like(zero.conv), torch.randn_like(zero.ssm))
    kept = State(state.conv.clone(), state.ssm.clone())
    out, _ = mixer(u, state)
    stepped = state
    for t in range(5):
        y, stepped = mixer.step(u[:, t], stepped)
        close(out[:, t], y, 1e-12)
    assert relative(out, mixer(u)[0]) > 1e-3
    assert torch.equal(state.conv, kept.conv) and torch.equal(state.ssm, kept.ssm)


@pytest.mark.parametrize("chunk", [1, 7, 64, 200])
def test_results_do_not_depend_on_the_chunk(chunk):
    generator = torch.Generator().manual_seed(0)
    noise = lambda *shape: torch.randn(shape, dtype=torch.float64, generator=generator)
    dt, initial = noise(2, 50, 8).exp(), noise(2, 8, 4, 6)
    args = (noise(2, 50, 8, 4), dt, -noise(8).exp(), noise(2, 50, 2, 6), noise(2, 50, 2, 6), initial)
    one, other = mamba2.ssd(*args, chunk=chunk), mamba2.ssd(*args, chunk=13)
    close(one[0], other[0], 1e-12)
    close(one[1][:, -1], other[1][:, -1], 1e-12)
    args = (noise(2, 50, 8), dt, -noise(8, 6).exp(), noise(2, 50, 6), noise(2, 50, 6), noise(2, 8, 6))
    one, other = mamba.scan(*args, chunk=chunk), mamba.scan(*args, chunk=13)
    close(one[0], other[0], 1e-12)
    close(one[1][:, -1], other[1][:, -1], 1e-12)


def test_a_long_decay_does_not_blur_a_short_one():
    """In float32 a running sum of 1e4 would leave nothing of decays of 1e-3 that follow it in the same chunk."""
    dt = torch.full((1, 64, 1), 1e-3)
    dt[:, 10] = 1e4
    x, B = torch.ones(1, 64, 1, 1), torch.ones(1, 64, 1, 1)
    args = lambda f: (
        x.to(f),
        dt.to(f),
        torch.tensor([-1.0], dtype=f),
        B.to(f),
        B.to(f),
        torch.zeros(1, 1, 1, 1, dtype=f),
    )
    exact = mamba2.ssd(*args(torch.float64))[0][:, 11:]  # what follows the long step
    found = mamba2.ssd(*args(torch.float32))[0][:, 11:]
    close(found, exact, 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [1, 64, 65])
def test_taps_come_in_order_with_the_shapes_of_the_contract(family, length):
    config, _, lm = made("grouped" if family == "mamba2" else family)
    seen = {}
    tap = lambda name, value: seen.setdefault(name, value)
    block = lm.backbone.layers[0]
    residual = torch.randn(2, length, config.d_model, dtype=torch.float64)
    _, state = block(residual, None, tap)
    assert list(seen) == TAPS[family]
    E, N, chunks = config.d_inner, config.d_state, -(-length // 64)
    gN = N * config.ngroups if family == "mamba2" else N
    widths = {"in_proj": config.d_model, "z": E, "x": E, "B": gN, "C": gN, "y": E, "out_proj": E}
    if family == "mamba2":
        widths["dt"], one = config.n_heads, (config.n_heads, config.headdim, N)
    else:
        widths["dt"], widths["dt_proj"], one = E, config.dt_rank, (E, N)
    for name, width in widths.items():
        assert seen[name].shape == (2, length, width), name
    assert seen["state"].shape == (2, chunks, *one)
    assert torch.equal(seen["state"][:, -1], state.ssm)


@pytest.mark.parametrize("family, name", [(f, n) for f in FAMILIES for n in TAPS[f]])
def test_what_a_tap_changes_is_what_goes_on(family, name):
    config, _, lm = made(family)
    block = lm.backbone.layers[0]
    residual = torch.randn(1, 9, config.d_model, dtype=torch.float64)
    exact, after = block(residual)
    changed, then = block(residual, None, lambda n, v: 2 * v if n == name else v)
    if name == "state":
        assert torch.equal(then.ssm, 2 * after.ssm) and torch.equal(changed, exact)
    else:
        assert relative(changed, exact) > 1e-6


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tied", [True, False])
def test_models_come_from_checkpoints(tmp_path, family, dtype, tied):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, family, tied=tied, dtype=torch.bfloat16, seed=3))
    reference = models.find(family, "reference")
    lm = reference.LM.from_checkpoint(checkpoint, dtype)
    assert all(p.dtype == dtype and not p.requires_grad for p in lm.parameters())
    assert (lm.lm_head.weight is lm.backbone.embedding.weight) == tied
    _, weights, same = made(family, dtype, seed=3, tied=tied)
    rounded = {n: t if n.endswith(("A_log", ".D")) else t.bfloat16() for n, t in weights.items()}
    same.load_state_dict(rounded)
    ids = tokens(1, 12)
    logits, _ = lm(ids)
    assert torch.equal(logits, same(ids)[0])
    assert logits.shape == (1, 12, 272) and checkpoint.config.true_vocab_size == 257
    residual = lm.backbone.embedding(ids)
    for i in range(checkpoint.config.n_layer):
        residual, _ = reference.Block.from_checkpoint(checkpoint, i, dtype)(residual)
    assert torch.equal(lm.lm_head(lm.backbone.norm_f(residual)), logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_state_dicts_carry_the_names_of_the_checkpoint(family):
    config, weights, lm = made(family)
    assert set(lm.state_dict()) == set(weights)
    assert lm.lm_head.weight is lm.backbone.embedding.weight
    untied = made(family, tied=False)[2]
    assert untied.lm_head.weight is not untied.backbone.embedding.weight
    own = {n.removeprefix("backbone.layers.0.") for n in weights if n.startswith("backbone.layers.0.")}
    assert set(models.find(family, "reference").Block(config).state_dict()) == own


def test_padding_rows_do_not_touch_the_others():
    config, weights, lm = made("mamba2", tied=False)
    ids = tokens(1, 10)
    exact = lm(ids)[0]
    lm.backbone.embedding.weight[config.true_vocab_size :] = 1e6
    lm.lm_head.weight[config.true_vocab_size :] = 1e6
    assert torch.equal(lm(ids)[0][..., : config.true_vocab_size], exact[..., : config.true_vocab_size])


def test_dt_is_clamped_after_softplus():
    """A limit of (0, ∞) changes nothing; one that no dt satisfies makes every dt the limit itself."""
    config, weights, lm = made("mamba2")
    u = torch.randn(1, 6, config.d_model, dtype=torch.float64)
    leaves = {n.removeprefix("backbone.layers.0.mixer."): t for n, t in weights.items() if ".0.mixer." in n}
    fixed = mamba2.Mixer(replace(config, dt_limit=(0.5, 0.5 + 1e-12))).double()
    fixed.load_state_dict(leaves)
    other = mamba2.Mixer(config).double()
    other.load_state_dict(leaves)
    other.in_proj.weight[-config.n_heads :] = 0
    other.dt_bias[:] = float(np.log(np.expm1(0.5)))
    close(fixed(u)[0], other(u)[0], 1e-9)
    close(fixed.step(u[:, 0], fixed.zero_state(u))[0], fixed(u[:, :1])[0][:, 0], 1e-12)
    assert relative(fixed(u)[0], lm.backbone.layers[0].mixer(u)[0]) > 1e-3
