"""Sessions: prefill and decode agree, chunks do not matter, sessions do not disturb each other, scores are probabilities."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quamba_edge.errors import BadUsage
from quamba_edge.runtime.session import CHUNKS, Engine, Session, chunks
from tests.runtime.plain import VOCAB, bundle_of, forward, random_model

FAMILIES = ["mamba", "mamba2"]


@cache
def engine(family: str, bits: int = 4, act: int = 8, state: str = "f32") -> Engine:
    return Engine(bundle_of(random_model(family), bits, act, rotate=True), backend="reference", state_dtype=state)


def text(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() < 1e-4 * max(1.0, np.abs(b).max()))


def test_chunks_make_up_any_prompt() -> None:
    for length in range(1, 300):
        assert sum(chunks(length)) == length and set(chunks(length)) <= set(CHUNKS)
    assert chunks(300) == [128, 128, 16, 16] + [1] * 12


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_gives_the_model_s_logits(family: str) -> None:
    """150 tokens: all three chunk sizes, against the papers' formulas in f64."""
    model = random_model(family)
    found = Session(Engine(bundle_of(model), backend="reference", state_dtype="f32")).prefill(text(150))
    exact = forward(model, text(150))[-1, :VOCAB]
    assert found.dtype == np.float32 and found.shape == (VOCAB,)
    assert np.abs(found - exact).max() < 4e-3 * np.abs(exact).max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("state", ["f32", "f16", "i8"])
def test_decode_continues_what_prefill_began(family: str, state: str) -> None:
    """With an f32 state, to float accuracy; with f16 and i8 each rounding of the state costs a little."""
    whole = Session(engine(family, 8, 16, state))
    expected = whole.prefill(text(20))
    session = Session(engine(family, 8, 16, state))
    session.prefill(text(20)[:15])
    for token in text(20)[15:]:
        found = session.decode(token)
    assert session.tokens == whole.tokens == text(20)
    bound = {"f32": 2e-3, "f16": 5e-3, "i8": 0.1}[state]  # A16 rounds activations to f16 between ops
    assert np.linalg.norm(found - expected) < bound * np.linalg.norm(expected)


@settings(max_examples=15)
@given(data=st.data(), family=st.sampled_from(FAMILIES), length=st.integers(1, 40))
def test_any_split_of_a_prompt_gives_the_same(data: st.DataObject, family: str, length: int) -> None:
    """State and logits, with weights of w16a16 and an f32 state."""
    shared = engine(family, 16, 16)
    prompt = text(length, seed=length)
    whole, split = Session(shared), Session(shared)
    expected, start = whole.prefill(prompt), 0
    while start < length:
        size = data.draw(st.integers(1, length - start))
        found = split.prefill(prompt[start : start + size])
        start += size
    assert np.abs(found - expected).max() < 3e-3 * np.abs(expected).max()
    for name, array in whole.state().arrays.items():
        other = split.state().arrays[name]
        assert np.abs(other - array).max() < 3e-3 * max(1.0, np.abs(array).max()), name


@pytest.mark.parametrize("family", FAMILIES)
def test_sessions_of_an_engine_do_not_disturb_each_other(family: str) -> None:
    """Two texts in turns, and a scoring in between, against each alone: bit-equal."""
    shared = engine(family)
    alone = []
    for seed in (1, 2):
        session = Session(shared)
        session.prefill(text(9, seed))
        alone.append([session.decode(t) for t in text(3, seed + 10)])
    a, b = Session(shared), Session(shared)
    a.prefill(text(9, 1))
    b.prefill(text(9, 2))
    for i in range(3):
        found = a.decode(text(3, 11)[i]), b.decode(text(3, 12)[i])
        shared.score(np.array([text(5)]))
        assert (found[0] == alone[0][i]).all() and (found[1] == alone[1][i]).all()


def test_reset_forgets() -> None:
    session = Session(engine("mamba2"))
    first = session.prefill(text(7))
    session.decode(3)
    session.reset()
    assert session.tokens == []
    assert (session.prefill(text(7)) == first).all()


def test_a_state_can_be_kept_and_continued_elsewhere() -> None:
    """Bit-equal logits from a restored state, with no token consumed again."""
    one = Session(engine("mamba2"))
    one.prefill(text(12))
    kept, tokens = one.state(), list(one.tokens)
    expected = one.decode(5)
    other = Session(Engine(engine("mamba2").bundle, backend="reference", state_dtype="f32"))
    other.restore(kept, tokens)
    assert (other.decode(5) == expected).all() and other.tokens == one.tokens
    foreign = Session(engine("mamba"))
    foreign.prefill(text(4))
    with pytest.raises(BadUsage, match="not one of this model"):
        foreign.restore(kept, tokens)
    assert foreign.tokens == text(4)
    again = Session(engine("mamba"))
    again.prefill(text(4))
    assert (foreign.decode(1) == again.decode(1)).all()


def test_an_interrupted_prompt_leaves_an_empty_session(monkeypatch) -> None:
    session = Session(engine("mamba2"))
    fresh = session.prefill(text(3))
    session.reset()
    session.prefill(text(5))
    plan = session.engine.plan(1, 1, "last")

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(plan, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.prefill(text(2))
    assert session.tokens == []
    assert (session.prefill(text(3)) == fresh).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [2, 3, 16, 17, 18, 40])
def test_scores_are_the_log_probabilities_of_what_follows(family: str, length: int) -> None:
    """Against prefilling every prefix, over the true vocabulary only."""
    shared = engine(family, 16, 16)
    batch = np.array([text(length, 1), text(length, 2)])
    found = shared.score(batch)
    assert found.shape == (2, length - 1) and found.dtype == np.float64
    session = Session(shared)
    for s in range(2):
        session.reset()
        for t in range(length - 1):
            logits = session.decode(int(batch[s, t])).astype(np.float64)
            expected = logits[batch[s, t + 1]] - np.log(np.exp(logits).sum())
            assert abs(found[s, t] - expected) < 5e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_in_a_batch_are_scored_as_if_alone(family: str, monkeypatch) -> None:
    """Also where the logits' memory allows only some at a time."""
    shared = engine(family, 8, 8)
    batch = np.array([text(20, seed) for seed in range(5)])
    together = shared.score(batch)
    assert close(together, np.concatenate([shared.score(row[None]) for row in batch]))
    monkeypatch.setattr("quamba_edge.runtime.engine.LOGITS_BYTES", 2 * 128 * 4 * 64)
    assert close(together, shared.score(batch))


def test_padding_has_no_probability() -> None:
    """Ids 60..63 are rows of the matrices, not of the vocabulary."""
    found = engine("mamba2").score(np.array([[1, 2, VOCAB, 3]]))
    assert np.isfinite(found[0, [0, 2]]).all() and found[0, 1] == -np.inf


def test_wrong_usage_is_named() -> None:
    session = Session(engine("mamba2"))
    with pytest.raises(BadUsage, match="at least one token"):
        session.prefill([])
    for bad in (64, -1):
        with pytest.raises(BadUsage, match=r"whose ids are 0\.\.63"):
            session.prefill([1, bad])
    with pytest.raises(BadUsage, match="integers, not float64"):
        session.prefill([1.5])
    with pytest.raises(BadUsage, match="length of 2 or more"):
        session.engine.score(np.array([[1]]))
    with pytest.raises(BadUsage, match="'f8' is not a state dtype"):
        Engine(session.engine.bundle, backend="reference", state_dtype="f8")
    with pytest.raises(BadUsage, match="'gpu' is not a backend"):
        Engine(session.engine.bundle, backend="gpu")
    assert session.tokens == []


def test_importing_needs_no_torch(repo) -> None:
    """The board has none."""
    import subprocess
    import sys

    code = "import sys; sys.modules['torch'] = None; import quamba_edge.runtime.session, quamba_edge.backends.reference"
    code += "; from quamba_edge import models; [models.find(f, 'program') for f in models.known()]"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repo)


@pytest.mark.parametrize("family", FAMILIES)
def test_read_gives_the_logits_after_every_token_and_goes_on(family: str) -> None:
    ids = text(150)
    session = Session(engine(family))
    logits = np.concatenate([session.read(ids[:7]), session.read(ids[7:])])
    assert logits.shape == (150, VOCAB) and session.tokens == ids
    assert close(logits[-1], Session(engine(family)).prefill(ids))
    chances = logits.astype("f8") - np.log(np.exp(logits.astype("f8")).sum(-1, keepdims=True))
    scored = engine(family).score(np.asarray([ids]))[0]
    assert np.abs(chances[np.arange(149), ids[1:]] - scored).max() < 1e-3
    with pytest.raises(BadUsage, match="at least one token"):
        session.read([])


def test_sessions_that_take_turns_do_not_write_into_each_other() -> None:
    """Parked states hand their memory on; what was copied before stays as it was."""
    sessions = [Session(engine("mamba2")) for _ in range(3)]
    for i, session in enumerate(sessions):
        session.prefill(text(20, i))
    copies = [s.state() for s in sessions]
    branch = sessions[0].branch()
    for round in range(4):
        for i, session in enumerate(sessions):
            session.decode(text(4, 10 + i)[round])
    for i, session in enumerate(sessions):
        alone = Session(engine("mamba2"))
        alone.prefill(text(20, i))
        assert all(np.array_equal(a, copies[i].arrays[n]) for n, a in alone.state().arrays.items())
        for token in text(4, 10 + i):
            alone.decode(token)
        assert all(np.array_equal(a, session.state().arrays[n]) for n, a in alone.state().arrays.items())
    assert all(np.array_equal(a, copies[0].arrays[n]) for n, a in branch.state().arrays.items())
