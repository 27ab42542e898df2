"""Perplexity against a model whose probabilities are a table, counted by hand; bundle and checkpoint share the convention."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge.apps import evaluate as app
from quamba_edge.errors import BadCheckpoint, BadText, BadUsage
from quamba_edge.runtime.session import Engine, Session
from tests.apps import tiny_bundle

V, ROWS = 57, 64
TEXT = "It was a fine day in the wood. A fox ran by: it was red.\nThe end."


def table(seed=0):
    """(ROWS, ROWS) logits of the next token given the last one; the padded ones are the likeliest, if anybody asks them."""
    logits = np.random.default_rng(seed).normal(0, 2, (ROWS, ROWS))
    logits[:, V:] = 50.0
    return logits


def by_hand(ids, window):
    """(sum of -log p, count), one token after the other."""
    total, count, logits = 0.0, 0, table()
    for at, (before, after) in enumerate(zip(ids[:-1], ids[1:], strict=True)):
        if (at + 1) % window:  # the token at `at + 1` is not the first of its window
            row = logits[before, :V]
            total -= row[after] - math.log(sum(math.exp(x) for x in row))
            count += 1
    return total, count


class TableEngine:
    def __init__(self):
        self.batches = []

    def score(self, tokens):
        self.batches.append(tokens.shape)
        logits = table()[tokens[:, :-1], :V]
        chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return np.take_along_axis(chances, tokens[:, 1:, None], -1)[..., 0]


IDS = st.lists(st.integers(0, V - 1), min_size=2, max_size=60).map(lambda v: np.array(v, np.int64))


@given(IDS, st.integers(2, 20))
def test_bundles_are_scored_as_by_hand(ids, window):
    engine, told = TableEngine(), []
    found = list(app.of_bundle(engine, app.windows(ids, window), V, lambda *now: told.append(now[:2])))
    total, count = by_hand(ids, window)
    assert sum(map(len, found)) == count and sum(f.sum() for f in found) == pytest.approx(total)
    assert all(n == min(window, len(ids)) or i == len(engine.batches) - 1 for i, (_, n) in enumerate(engine.batches))
    assert told[-1] == (len(found), len(found))


@given(IDS, st.integers(2, 20))
def test_checkpoints_are_scored_as_by_hand_and_alike(ids, window):
    torch = pytest.importorskip("torch")
    logits = torch.from_numpy(table()).float()

    class LM:
        @classmethod
        def from_checkpoint(cls, checkpoint, dtype):
            assert dtype == torch.float32
            return lambda ids: (logits[ids], None)

    checkpoint = SimpleNamespace(family="table", config=SimpleNamespace(true_vocab_size=V))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app.models, "find", lambda family, part: SimpleNamespace(LM=LM))
        found = list(app.of_checkpoint(checkpoint, app.windows(ids, window), lambda *now: None))
    total, count = by_hand(ids, window)
    assert sum(map(len, found)) == count and sum(f.sum() for f in found) == pytest.approx(total, rel=1e-5)


@given(st.integers(0, 50), st.integers(2, 12))
def test_windows_hold_every_token_once_but_a_lonely_last(count, window):
    ids = np.arange(count)
    if count < 2:
        with pytest.raises(BadText, match=f"has {count} tokens"):
            app.windows(ids, window)
        return
    cut = app.windows(ids, window)
    assert np.concatenate(cut).tolist() == ids[: count - (count % window == 1)].tolist()
    assert all(len(w) == window for w in cut[:-1]) and 2 <= len(cut[-1]) <= window


def test_large_vocabularies_take_smaller_batches():
    engine = TableEngine()
    list(app.of_bundle(engine, app.windows(np.zeros(40, np.int64), 4), 60_000, lambda *now: None))
    assert {shape[0] for shape in engine.batches} == {4, 2}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.write(tmp_path_factory.mktemp("e") / "tiny.qedge")


@pytest.fixture
def text():
    Path("text.txt").write_text(TEXT)
    return Path("text.txt")


def test_a_bundle_by_its_session_token_by_token(bundle, text):
    result = app.evaluate(str(bundle), text, window=20, backend="reference", state_dtype="f32")
    engine = Engine(app.Bundle.open(bundle), "reference", "f32")
    ids = app.Tokenizer(tiny_bundle.TOKENIZER).encode(TEXT)
    nll = []
    for start in range(0, len(ids), 20):
        session = Session(engine)
        for before, after in zip(ids[start : start + 19], ids[start + 1 : start + 20], strict=False):
            logits = session.decode(before).astype(np.float64)
            nll.append(math.log(np.exp(logits).sum()) - logits[after])
    assert result.tokens == len(nll) == len(ids) - math.ceil(len(ids) / 20)
    assert result.nll == pytest.approx(np.mean(nll), rel=1e-5) and result.perplexity == pytest.approx(
        math.exp(result.nll)
    )
    assert result.backend == "reference" and "windows of 20 tokens" in app.summary(result)


def test_a_storyteller_by_the_torch_reference(storyteller_mamba2):
    torch = pytest.importorskip("torch")
    text = (
        "User: Tell me a story about a dog named Tim.\nAssistant: Once upon a time, there was a little dog named Tim.\n"
    )
    Path("story.txt").write_text(text)
    result = app.evaluate(str(storyteller_mamba2), Path("story.txt"), window=16)
    # It was trained on such text: far better than the 4096 of a guess, and not better than the text is predictable.
    assert (
        1.05 < result.perplexity < 60
        and result.backend == "torch reference"
        and torch.get_default_dtype() == torch.float32
    )


def test_bad_requests(bundle, text, storyteller_mamba2, tmp_path):
    for options in ({"window": 1}, {"limit_tokens": 1}, {"tokenizer": text}):
        with pytest.raises(BadUsage):
            app.evaluate(str(bundle), text, **options)
    for options in ({"backend": "reference"}, {"state_dtype": "f32"}, {"threads": 2}):
        with pytest.raises(BadUsage, match="are for bundles"):
            app.evaluate(str(storyteller_mamba2), text, **options)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BadText, match="no UTF-8 text at byte 3"):
        app.evaluate(str(bundle), tmp_path / "latin.txt")
    with pytest.raises(BadText, match="No such file"):
        app.evaluate(str(bundle), tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(BadText, match="has 0 tokens"):
        app.evaluate(str(bundle), tmp_path / "empty.txt")


def test_another_models_tokenizer_is_noticed():
    with pytest.raises(BadText, match="has token 56, m has ids up to 55"):
        app.encode(tiny_bundle.TOKENIZER, "Z" + "aZ", 56, "m")
    with pytest.raises(BadCheckpoint, match="--tokenizer FILE"):
        app.encode(None, "a", 56, "m")
