"""What a session knows of its text: digests that go on, and beginnings that are proved."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge.runtime.seen import BLOCK, Seen, closed, digest, digests, link_after, shared

TEXTS = st.integers(0, 3 * BLOCK).flatmap(lambda n: st.just(np.random.default_rng(n).integers(0, 60, n).tolist()))


def of_a_file(tokens: list[int], last: int) -> Seen:
    """What is known after loading a session that keeps the `last` tokens."""
    whole = tokens[: len(tokens) // BLOCK * BLOCK]
    first = max(0, len(tokens) - last)
    return Seen(tokens[first:], first, (len(tokens), link_after(b"", whole), digest(tokens)))


def test_the_digest_is_the_one_that_is_specified() -> None:
    tokens = list(range(300))
    raw, link = np.array(tokens, "<i4").tobytes(), b""
    for a in (0, 512):
        link = hashlib.sha256(link + raw[a : a + 512]).digest()
    assert digest(tokens) == hashlib.sha256(b"end" + link + raw[1024:]).hexdigest()


@given(TEXTS, TEXTS)
def test_a_digest_goes_on_from_a_link_and_the_tokens_since(before: list[int], after: list[int]) -> None:
    seen = of_a_file(before, BLOCK)
    seen.push(after)
    assert seen.count == len(before) + len(after)
    assert seen.digest() == digest(before + after)
    assert closed(seen.link(), (before + after)[seen.count // BLOCK * BLOCK :]) == seen.digest()


@given(TEXTS, st.lists(st.integers(0, 4 * BLOCK), max_size=5))
def test_one_walk_gives_the_digests_of_all_beginnings(tokens: list[int], counts: list[int]) -> None:
    assert digests(tokens, counts) == {n: digest(tokens[:n]) for n in counts if n <= len(tokens)}


def test_shared_is_the_longest_common_beginning() -> None:
    assert [shared([1, 2, 3], b) for b in ([], [1, 2, 3], [1, 2, 3, 4], [1, 2], [1, 9, 3], [9])] == [0, 3, 3, 2, 1, 0]


def test_a_beginning_that_is_not_known_is_proved_by_its_digest() -> None:
    text = [i % 7 for i in range(500)]
    seen = of_a_file(text, 200)
    seen.push([1, 2, 3])
    assert not seen.whole and len(seen.tokens) == 203
    assert seen.shared([*text, 1, 2, 3, 4]) == 503
    assert seen.shared([*text, 1, 9, 3]) == 501
    assert seen.shared(text) == 500
    assert seen.shared(text[:499]) == 0, "shorter than what the digest is of"
    assert seen.shared([9, *text[1:], 1, 2, 3]) == 0


@pytest.mark.parametrize("last", [200, 500])
def test_cutting_keeps_what_is_needed_to_prove(last: int) -> None:
    text = [i % 7 for i in range(500)]
    seen = of_a_file(text, last)
    seen.push([1, 2, 3])
    seen.cut(501)
    assert seen.digest() == digest([*text, 1])
    assert seen.can_cut(500) and seen.can_cut(499) == seen.whole == (last == 500)
    if seen.whole:
        seen.cut(77)
        seen.push([5])
        assert seen.digest() == digest([*text[:77], 5])


def test_a_text_that_was_proved_is_known_from_then_on() -> None:
    text = [i % 7 for i in range(500)]
    seen = of_a_file(text, 200)
    seen.learn(text)
    assert seen.whole and seen.shared(text[:30]) == 30 and seen.digest() == digest(text)
