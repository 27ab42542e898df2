"""Sharing, sorting and batching change what is read when, and no score."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge.runtime.session import Engine
from quamba_edge.tasks import reader, scoring
from quamba_edge.tasks.reader import BLOCK, BundleReader, log_chances
from quamba_edge.tasks.scoring import Score, score, stems
from quamba_edge.tasks.tokens import Request
from tests.runtime.plain import VOCAB as IDS
from tests.runtime.plain import bundle_of, random_model
from tests.tasks.fakes import VOCAB, Tiny, by_hand

TOKEN = st.integers(0, VOCAB - 1)
BEGIN = st.sampled_from([(), (3,), tuple(i % 7 for i in range(BLOCK)), tuple(i % 5 for i in range(2 * BLOCK + 3))])


@st.composite
def requests(draw):
    """Some contexts, many of them beginning alike, each with some continuations."""
    contexts = draw(st.lists(st.tuples(BEGIN, st.lists(TOKEN, max_size=20)), min_size=1, max_size=6))
    contexts = [(*begin, *rest) or (1,) for begin, rest in contexts]
    ends = st.lists(TOKEN, min_size=1, max_size=20).map(tuple)
    pairs = st.tuples(st.sampled_from(contexts), ends)
    return [Request(c, a) for c, a in draw(st.lists(pairs, min_size=1, max_size=16))]


def alike(found, expected):
    assert [s.greedy for s in found] == [g for _, g in expected]
    assert np.allclose([s.logp for s in found], [p for p, _ in expected], rtol=0, atol=1e-9)


@given(requests(), st.randoms(use_true_random=False), st.sampled_from([(1,), (2, 1), (8, 4, 2, 1)]), st.integers(1, 5))
def test_any_order_and_batching_scores_as_by_hand(asked, random, sizes, wave):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "BATCHES", sizes)
        patch.setattr(scoring, "WAVE", wave)
        order = list(range(len(asked)))
        random.shuffle(order)
        told = []
        found = score(Tiny(), [asked[i] for i in order], told.append)
    alike(found, [by_hand(Tiny(), asked[i]) for i in order])
    assert told == list(range(1, len(asked) + 1))


@given(requests())
def test_nothing_is_padded_and_no_chunk_is_larger_than_allowed(asked):
    tiny = Tiny()
    score(tiny, asked)
    assert {s for s, _ in tiny.steps} <= set(reader.BATCHES) and {t for _, t in tiny.steps} <= {BLOCK, 16, 1}
    # The last token of a continuation is read only where that makes fewer chunks.
    most = sum(len(c) for c in {r.context for r in asked}) + sum(len(r.continuation) for r in asked)
    assert tiny.tokens_read <= most


def test_a_context_is_read_once_for_all_its_answers():
    context, tiny = tuple(range(20)), Tiny()
    score(tiny, [Request(context, (i,)) for i in range(4)])
    assert tiny.steps == [(1, 16), (1, 1), (1, 1), (1, 1), (1, 1)]  # one-token answers follow from the context alone
    tiny = Tiny()
    score(tiny, [Request(context, (i, 2, 3)) for i in range(4)])
    assert tiny.steps[5:] == [(4, 1), (4, 1)]


def test_what_contexts_begin_with_is_read_once_in_whole_blocks():
    examples, tiny = tuple(i % 9 for i in range(BLOCK + 10)), Tiny()
    asked = [Request((*examples, i, i + 1), (5,)) for i in range(8)]
    found = score(tiny, asked)
    assert tiny.tokens_read == BLOCK + 8 * 12
    alike(found, [by_hand(Tiny(), r) for r in asked])


@given(requests())
def test_stems_begin_all_of_their_group(asked):
    contexts = {r.context for r in asked}
    groups = list(stems(contexts))
    assert sorted(c for _, group in groups for c in group) == sorted(contexts)
    for stem, group in groups:
        assert len(stem) % BLOCK == 0 and all(c[: len(stem)] == stem and len(c) > len(stem) for c in group)
        assert not stem or len(group) > 1


def test_chances_of_padded_rows_and_ties():
    chances, likeliest = log_chances(np.array([[0.0, 1.0, 1.0]]), np.array([0, 1, 2, 3]))
    assert chances[3] == -np.inf and likeliest.tolist() == [False, True, False, False]
    assert np.allclose(np.exp(chances[:3]), np.exp([0, 1, 1]) / (1 + 2 * np.e))


def test_room_for_states_and_logits():
    small, large = Tiny(), Tiny(vocab=31)
    assert small.batches == reader.BATCHES and small.room > 1000
    large.vocab_size, large.state_bytes = 50_288, 200 << 20
    assert large.batches == (1,) and large.room == 2
    large.state_bytes = 1 << 30
    assert large.room == 1


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_a_bundle_scores_as_its_engine_does(family):
    rng = np.random.default_rng(0)
    bundle = bundle_of(random_model(family), 8, 16, rotate=True)
    engine = Engine(bundle, "reference", "f32")
    begin = tuple(rng.integers(0, IDS, BLOCK).tolist())
    contexts = [begin + (1,), begin + (2, 3), (4,), (5, 6, 7), tuple(range(20))]
    asked = [
        Request(c, tuple(rng.integers(0, IDS, n).tolist()))
        for c, n in zip(contexts * 2, (1, 3, 2, 17, 1, 4, 1, 2, 3, 3))
    ]
    found = score(BundleReader(engine), asked)
    for request, one in zip(asked, found, strict=True):
        whole = engine.score(np.array([request.context + request.continuation]))[0]
        assert one.logp == pytest.approx(whole[-len(request.continuation) :].sum(), abs=2e-3)
        (alone,) = score(BundleReader(engine), [request])
        assert alone.logp == pytest.approx(one.logp, abs=1e-4) and alone.greedy == one.greedy


def test_greedy_is_what_the_engine_would_write():
    engine = Engine(bundle_of(random_model("mamba2"), 8, 16, rotate=True), "reference", "f32")
    one = BundleReader(engine)
    ids = [3, 1]
    for _ in range(4):
        _, logits = one.read(np.array([ids]), None)
        ids.append(int(logits[0].argmax()))
    other = [*ids[2:5], (ids[5] + 1) % IDS]
    found = score(one, [Request((3, 1), tuple(ids[2:])), Request((3, 1), tuple(other)), Request((3, 1), (IDS + 1, 1))])
    assert [s.greedy for s in found] == [True, False, False]
    assert found[2] == Score(-np.inf, False)  # a padded row of the vocabulary has no probability
