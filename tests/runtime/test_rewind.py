"""Going back in a session: what it costs, what is bit-equal, and what is said when nothing could be reused.

Numbers depend on the chunks a text was read in: 40 tokens at once, and 40 one by one, differ in the last bits.  So a session that was
rewound is compared, bit for bit, with one that never was and read the same chunks; and a snapshot with itself when it was taken.
"""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadUsage
from quamba_edge.runtime import saved
from quamba_edge.runtime.session import Engine, Session, chunks
from quamba_edge.runtime.snapshots import NOTHING, USUAL, Keep, Ring, Snapshot
from quamba_edge.runtime.state import State
from tests.apps import tiny_bundle

FAMILIES = ["mamba", "mamba2"]


@cache
def engine(family: str = "mamba2", state: str = "f16") -> Engine:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        return Engine(Bundle.open(tiny_bundle.write(Path(folder) / "m.qedge", family)), "reference", state)


def text(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 57, length).tolist()


def straight(family: str, state: str, tokens: list[int], sizes: list[int]) -> Session:
    """A session that read these chunks, and kept nothing."""
    session, at = Session(engine(family, state), NOTHING), 0
    for size in sizes:
        session.prefill(tokens[at : at + size])
        at += size
    return session


def same(a: Session, b: Session) -> None:
    assert a.count == b.count and a.seen.digest() == b.seen.digest()
    if a.count:
        assert (a.logits == b.logits).all()
        assert all((x == b.state().arrays[n]).all() for n, x in a.state().arrays.items())


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("prefill"), st.integers(1, 45)),
        st.tuples(st.just("decode"), st.integers(1, 5)),
        st.tuples(st.just("rewind"), st.floats(0, 1)),
        st.tuples(st.sampled_from(["mark", "reload", "branch", "other"]), st.just(0)),
    ),
    max_size=8,
)


@settings(max_examples=30)
@given(
    acts=ACTS,
    family=st.sampled_from(FAMILIES),
    state=st.sampled_from(["f16", "f32", "i8"]),
    every=st.sampled_from([5, 20]),
    most=st.sampled_from([0, 2, 9]),
)
def test_any_life_of_a_session_equals_the_straight_run(acts, family, state, every, most, tmp_path_factory) -> None:
    """Reading, rewinding, saving and loading, branching, and another session in between: bit-equal on the same chunks."""
    path = tmp_path_factory.getbasetemp() / "life.qsession"
    keep = Keep(every, most)
    session, sizes, tokens = Session(engine(family, state), keep), [], []
    for i, (act, amount) in enumerate(acts):
        if act in ("prefill", "decode"):
            more = text(amount, seed=i)
            if act == "prefill":
                session.prefill(more)
                sizes += chunks(amount)
            else:
                for token in more:
                    session.decode(token)
                sizes += [1] * amount
            tokens += more
        elif act == "rewind":
            count = int(amount * len(tokens))
            again = session.rewind(count)
            del tokens[count:]
            while sum(sizes) > count - again:
                sizes.pop()
            assert sum(sizes) == count - again, "a snapshot lies where a chunk ended"
            sizes += chunks(again)
        elif act == "mark":
            session.mark()
        elif act == "reload" and session.count:
            saved.save(session, path)
            session = saved.load(path, engine(family, state), keep)
        elif act == "branch":
            session, left = session.branch(), session
            left.prefill(text(3))
        elif act == "other":
            Session(engine(family, state)).prefill(text(4))
        assert session.tokens == tokens
        same(session, straight(family, state, tokens, sizes))


@settings(max_examples=20)
@given(length=st.integers(1, 400), place=st.floats(0, 1), every=st.sampled_from([128, 200]))
def test_a_rewind_reads_at_most_the_distance_of_snapshots_again(length: int, place: float, every: int) -> None:
    session = Session(engine(), Keep(every, 100))
    tokens = text(length)
    session.prefill(tokens)
    count = int(place * length)
    assert session.rewind(count) <= every
    assert session.tokens == tokens[:count]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rewind_between_snapshots_is_close_to_what_was_there(family: str) -> None:
    session = Session(engine(family, "f32"), Keep(every=128))
    tokens = text(300)
    session.prefill(tokens[:201])
    expected = session.logits
    session.prefill(tokens[201:])
    assert session.rewind(201) == 201 - 128
    assert np.abs(session.logits - expected).max() < 0.05 * np.abs(expected).max()  # int8 activations round differently


def test_ends_of_turns_cost_nothing_and_are_bit_equal() -> None:
    session = Session(engine(), USUAL)
    first = session.prefill(text(37))
    session.mark()
    session.prefill(text(20, 1))
    assert session.rewind(37) == 0 and (session.logits == first).all()
    assert (
        session.prefill(text(5, 2)) == straight("mamba2", "f16", text(37) + text(5, 2), [16, 16, *[1] * 10]).logits
    ).all()


def test_seek_goes_to_the_longest_beginning_at_hand_and_says_why_it_is_no_longer_one() -> None:
    session = Session(engine(), Keep(every=128))
    a, b, c = text(20), text(9, 1), text(6, 2)
    assert session.seek(a).tokens == 0 and session.seek(a).note is None
    session.prefill(a)
    session.mark()
    session.prefill(b)
    session.mark()
    session.prefill(c)
    assert vars(session.seek([*a, *b, *c, 5])) == {"tokens": 35, "note": None}
    assert vars(session.seek([*a, *b, *c])) == {"tokens": 35, "note": None}, "its logits are there"
    found = session.seek([*a, *b, *c[:3]])
    assert found.tokens == 29 and found.note == (
        "the prompt ends at token 32, the session's text goes on to 35; the nearest snapshot before it is at token 29"
    )
    session.prefill(c)
    assert vars(session.seek([*a, *b])) == {"tokens": 29, "note": None}, "exactly a snapshot: nothing was lost"
    found = session.seek([*a, *b[:4], 58, 58])
    assert found.tokens == 20 and "differs from the session's text at token 25 of 26" in str(found.note)
    found = session.seek([*a[:4], 58])
    assert found.tokens == session.count == 0
    assert (
        found.note
        == "the prompt differs from the session's text at token 5 of 5, before the oldest snapshot, at token 20"
    )
    session.prefill(a)
    assert session.seek([58, *a]).note == "the prompt differs from the session's text at token 1 of 21"


def test_what_cannot_be_rewound_is_refused() -> None:
    session = Session(engine(), Keep(most=0))
    session.prefill(text(10))
    for count in (-1, 11):
        with pytest.raises(BadUsage, match="the session has seen 10"):
            session.rewind(count)
    assert session.rewind(10) == 0 and session.rewind(4) == 4 and session.rewind(0) == 0 and session.count == 0


def test_a_stopped_prompt_leaves_the_session_at_its_latest_snapshot(monkeypatch) -> None:
    session = Session(engine(), USUAL)
    session.prefill(text(5))
    session.mark()
    expected = session.branch().prefill(text(3))
    plan = session.engine.plan(1, 1, "last")
    with monkeypatch.context() as patch:
        patch.setattr(plan, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            session.prefill(text(2))
    assert session.tokens == text(5)
    assert (session.prefill(text(3)) == expected).all()


def snapshot(count: int, turn: bool = False, logits: bool = True) -> Snapshot:
    state = State({"s": np.zeros(10, np.int8)})
    return Snapshot(count, state, np.zeros(1, np.float32) if logits else None, turn)


def test_the_ring_drops_regular_snapshots_first_and_then_the_oldest_turns() -> None:
    ring = Ring(10, 3)
    for count, turn in ((5, True), (10, False), (15, True), (20, False)):
        ring.add(snapshot(count, turn))
    assert ring.counts() == [20, 15, 5] and ring.nbytes == 3 * (10 + 4)
    ring.add(snapshot(25, True))
    ring.add(snapshot(30, True))
    assert ring.counts() == [30, 25, 15]
    ring.cut(25)
    assert ring.counts() == [25, 15]


def test_the_ring_gives_the_latest_before_and_with_logits_where_they_are_needed() -> None:
    ring = Ring(10, 9)
    ring.add(snapshot(5))
    ring.add(snapshot(10, logits=False))
    assert [s.count if (s := ring.before(n)) else None for n in (4, 5, 9, 10, 11)] == [None, 5, 5, 10, 10]
    assert ring.before(10, logits_at=10).count == 5 and ring.before(11, logits_at=11).count == 10
    assert ring.lacks(10) and not ring.lacks(5) and ring.lacks(7)


def test_room_follows_from_the_state_s_size() -> None:
    keep = Keep(most=32, nbytes=100)
    assert [keep.room(n) for n in (1, 10, 60, 101)] == [32, 10, 1, 0]
    none = Session(engine(), Keep(nbytes=10))
    none.prefill(text(300))
    none.mark()
    assert none.snapshots.counts() == []
