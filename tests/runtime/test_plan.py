"""Programs of both families in every mode: what they compute, what they bind, what the arena holds."""

import numpy as np
import pytest

from quamba_edge import models
from quamba_edge.backends import reference
from quamba_edge.errors import BadBundle
from quamba_edge.runtime.plan import Arena, Plan, arena_sizes
from quamba_edge.runtime.session import Engine
from quamba_edge.runtime.state import LiveState
from tests.runtime.plain import VOCAB, bundle_of, forward, random_model

FAMILIES = ["mamba", "mamba2"]
TEXT = np.random.default_rng(5).integers(0, VOCAB, 23)


def logits_of(bundle, tokens, state: str = "f32") -> np.ndarray:
    """(T, vocab) of one text in one chunk of its own size."""
    engine = Engine(bundle, backend="reference", state_dtype=state)
    program = engine.program(1, len(tokens), "all")
    live = LiveState(engine.backend, program.states, 1, state)
    plan = Plan(engine.backend, program, bundle, Arena(engine.backend, [program]), live.blocks)
    plan.run(np.asarray(tokens)[None])
    return plan.logits()[:, : bundle.manifest.vocab_size]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("rotate", "d_model"), [(False, 48), (True, 48), (True, 80)])
def test_w16a16_is_the_model(family: str, tied: bool, rotate: bool, d_model: int) -> None:
    """Against the papers' formulas in f64: only f16 rounding lies between.  d_model 48 and 80 rotate by bases 12 and 20."""
    model = random_model(family, tied=tied, d_model=d_model)
    exact = forward(model, TEXT.tolist())[:, :VOCAB]
    found = logits_of(bundle_of(model, rotate=rotate), TEXT)
    assert np.abs(found - exact).max() < 2e-3 * np.abs(exact).max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_torch_definition_agrees(family: str, tied: bool) -> None:
    """Three ways to say the same model: torch and the plain loops to f64, the bundle to f16 rounding."""
    torch = pytest.importorskip("torch", reason="the board side runs without torch")
    model = random_model(family, tied=tied)
    weights = {"backbone.embedding.weight": model.ends["embedding"], "backbone.norm_f.weight": model.ends["norm_f"]}
    weights["lm_head.weight"] = model.ends.get("head", model.ends["embedding"])
    names = {"A": "A_log", "dt_bias": "dt_bias" if family == "mamba2" else "dt_proj.bias", "D": "D"}
    names |= {"conv.weight": "conv1d.weight", "conv.bias": "conv1d.bias"}
    for i, layer in enumerate(model.layers):
        at = f"backbone.layers.{i}"
        weights[f"{at}.norm.weight"] = np.ones(model.config.d_model)
        if family == "mamba2":
            weights[f"{at}.mixer.norm.weight"] = np.ones(model.config.d_inner)
        for name, value in layer.items():
            value = np.log(-value) if name == "A" else value[:, None] if name == "conv.weight" else value
            weights[f"{at}.mixer.{names.get(name, name + '.weight')}"] = value
    lm = models.find(family, "reference").LM(model.config).double()
    lm.load_state_dict({n: torch.tensor(v) for n, v in weights.items()})
    exact = lm(torch.tensor(TEXT)[None])[0][0, :, :VOCAB].numpy()
    assert np.allclose(exact, forward(model, TEXT.tolist())[:, :VOCAB], rtol=1e-9, atol=1e-9)
    assert np.abs(logits_of(bundle_of(model, rotate=True), TEXT) - exact).max() < 2e-3 * np.abs(exact).max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("bits", "act", "bound"), [(8, 16, 0.03), (8, 8, 0.1), (4, 16, 0.35), (4, 8, 0.35)])
@pytest.mark.parametrize("rotate", [False, True])
def test_quantized_modes_stay_near(family: str, tied: bool, bits: int, act: int, bound: float, rotate: bool) -> None:
    """Relative error of the logits, in all modes; a mis-bound scale or a missing rotation gives more than 1."""
    model = random_model(family, tied=tied)
    exact = forward(model, TEXT.tolist())[:, :VOCAB]
    found = logits_of(bundle_of(model, bits, act, rotate=rotate), TEXT)
    assert np.linalg.norm(found - exact) < bound * np.linalg.norm(exact)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("state", "bound"), [("f16", 0.001), ("i8", 0.03)])
def test_state_dtypes_stay_near(family: str, state: str, bound: float) -> None:
    """Token by token, so that the state is rounded after every one."""
    model = random_model(family)
    exact = forward(model, TEXT.tolist())[:, :VOCAB]
    engine = Engine(bundle_of(model), backend="reference", state_dtype=state)
    engine.slot(1)
    found = []
    for token in TEXT:
        engine.plan(1, 1, "last").run(np.array([[token]]))
        found.append(engine.plan(1, 1, "last").logits()[0, :VOCAB])
    assert np.linalg.norm(np.array(found) - exact) < bound * np.linalg.norm(exact) + 4e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize("sequences", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_last_logits_are_those_of_each_sequence(family: str, sequences: int) -> None:
    """ "last" reads the last token of every sequence out of the residual stream of all tokens."""
    engine = Engine(bundle_of(random_model(family), 4, 8, rotate=True), backend="reference")
    tokens = np.random.default_rng(1).integers(0, VOCAB, (sequences, 5))
    got = {}
    for logits in ("all", "last", "none"):
        engine.slot(sequences).state.write(None)
        program = engine.program(sequences, 5, logits)
        plan = Plan(
            engine.backend,
            program,
            engine.bundle,
            Arena(engine.backend, [program]),
            engine.slot(sequences).state.blocks,
        )
        plan.run(tokens)
        got[logits] = None if logits == "none" else plan.logits()
    assert got["last"].shape == (sequences, 64)
    assert (got["all"].reshape(sequences, 5, -1)[:, -1] == got["last"]).all()


def test_dt_proj_may_be_int8() -> None:
    model = random_model("mamba")
    exact = forward(model, TEXT.tolist())[:, :VOCAB]
    found = logits_of(bundle_of(model, 8, 8, dt_act=8), TEXT)
    assert np.linalg.norm(found - exact) < 0.12 * np.linalg.norm(exact)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_share_buffers(family: str) -> None:
    """The arena is that of one layer, whatever the depth, and serves chunks of all sizes from the largest."""
    bundle = bundle_of(random_model(family), 4, 8, rotate=True)
    program = models.find(family, "program").program
    shallow = program(bundle.manifest, 1, 16, "last")
    bundle.manifest.config["n_layer"] = 1
    assert arena_sizes([shallow]) == arena_sizes([program(bundle.manifest, 1, 16, "last")])
    small = program(bundle.manifest, 1, 1, "last")
    both = arena_sizes([shallow, small])
    assert all(both[n] >= size for p in (shallow, small) for n, size in arena_sizes([p]).items())
    arena = Arena(reference.make(), [small, shallow])
    assert arena.nbytes == sum(both.values())
    bound = [arena.bind(p)["residual"] for p in (small, shallow)]
    assert np.shares_memory(*map(reference.array_of, bound))
    assert {b.name for b in small.buffers} == {b.name for b in shallow.buffers}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mix_of_modes_per_layer(family: str) -> None:
    """W4AX: one layer's sites int8-fed, the other's f16-fed, over the same buffers' names."""
    model = random_model(family)
    low, high = bundle_of(model, 8, 8, rotate=True), bundle_of(model, 8, 16, rotate=True)
    for name, site in low.manifest.sites.items():
        if name.startswith("layers.0."):
            high.manifest.sites[name] = site
    for name, spec in low.manifest.tensors.items():
        if name.startswith("layers.0."):
            high.manifest.tensors[name], high._stored[name] = spec, low._stored[name]
    exact = forward(model, TEXT.tolist())[:, :VOCAB]
    errors = [np.linalg.norm(logits_of(b, TEXT) - exact) / np.linalg.norm(exact) for b in (high, low)]
    assert errors[0] < errors[1] < 0.09


def test_a_bundle_that_lacks_something_is_refused() -> None:
    bundle = bundle_of(random_model("mamba"), 8, 8)
    del bundle.manifest.tensors["layers.1.ssm.D"]
    with pytest.raises(BadBundle, match="no tensor layers.1.ssm.D, which scan_i8 at layers.1.ssm reads"):
        logits_of(bundle, TEXT)
    bundle = bundle_of(random_model("mamba"), 8, 8)
    bundle.manifest.sites["layers.0.x_proj"]["act"] = 16
    with pytest.raises(BadBundle, match="convolution writes i8, which x_proj"):
        logits_of(bundle, TEXT)
    bundle = bundle_of(random_model("mamba2"), 8, 8)
    del bundle.manifest.sites["layers.0.out_proj"]
    with pytest.raises(BadBundle, match="no site 'layers.0.out_proj'"):
        logits_of(bundle, TEXT)
