"""Generation over a session that replies from a queue: texts, reasons, reuse and stop strings, without a model."""

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HF
from tokenizers import decoders, models, pre_tokenizers

from quamba_edge.errors import BadUsage
from quamba_edge.runtime.generate import StopWatch, generate
from quamba_edge.runtime.sampling import Sampling
from quamba_edge.runtime.seen import Reuse
from quamba_edge.runtime.tokenizer import Tokenizer

EOS = 0


@lru_cache
def tokenizer() -> Tokenizer:
    """Ids: 0 is <eos>, 1..256 the bytes, then every pair of a and b as one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    hf = HF(models.BPE({p: i for i, p in enumerate(["<eos>", *alphabet, "aa", "ab", "ba", "bb"])}, []))
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    hf.decoder = decoders.ByteLevel()
    return Tokenizer(hf.to_str())


class FakeSession:
    """Replies with the queued tokens, whatever it is told, and remembers what it was told."""

    def __init__(self, reply, tokens=()):
        self.reply, self.tokens, self.read, self.logits, self.marks = list(reply), list(tokens), [], None, []

    @property
    def count(self):
        return len(self.tokens)

    def _logits(self):
        logits = np.zeros(tokenizer().vocab_size, np.float32)
        logits[self.reply.pop(0) if self.reply else EOS] = 9.0
        self.logits = logits
        return logits

    def prefill(self, tokens):
        assert len(tokens), "a prefill of nothing gives no logits"
        self.read = list(tokens)
        self.tokens += tokens
        return self._logits()

    def choose(self, token, request):
        self.tokens.append(token)
        self._logits()

    def seek(self, given):
        if given[: len(self.tokens)] == self.tokens and (len(self.tokens) < len(given) or self.logits is not None):
            return Reuse(len(self.tokens))
        self.tokens = []
        return Reuse(0, "the prompt differs")

    def mark(self):
        self.marks.append(len(self.tokens))


def ids(text: str) -> list[int]:
    return tokenizer().encode(text)


def say(text: str, **options):
    return list(
        generate(FakeSession(ids(text) if isinstance(text, str) else text), [5, 6], tokenizer(), eos={EOS}, **options)
    )


def test_text_streams_until_eos():
    steps = say("Hi 🦊!")
    assert "".join(s.text for s in steps) == "Hi 🦊!"
    assert [s.reason for s in steps] == [None] * (len(steps) - 1) + ["eos"]
    assert steps[-1].token == EOS and steps[-1].tokens == len(steps) == len(ids("Hi 🦊!")) + 1
    assert [s.text for s in steps][3:7] == ["", "", "", "🦊"]


def test_length_ends_it_and_gives_out_what_was_held():
    steps = say("Hi 🦊!", max_tokens=5)
    assert "".join(s.text for s in steps) == "Hi \ufffd"
    assert len(steps) == 5 and steps[-1].reason == "length"
    assert "".join(s.text for s in say("abab", max_tokens=3, stop=["bax"])) == "aba"


def test_eos_wins_over_length_on_the_last_token():
    assert say("a", max_tokens=2)[-1].reason == "eos"


def test_the_last_token_is_left_for_the_next_prompt():
    session = FakeSession(ids("abc"))
    list(generate(session, [5, 6], tokenizer(), max_tokens=3))
    assert session.tokens == [5, 6, *ids("ab")]


def test_numbers():
    steps = say("abc")
    assert {s.prompt_tokens for s in steps} == {2} and {s.reused_tokens for s in steps} == {0}
    assert len({s.ttft_ms for s in steps}) == 1 and steps[0].ttft_ms > 0
    assert steps[0].decode_tps is None and all(s.decode_tps > 0 for s in steps[1:])


@pytest.mark.parametrize(
    ("held", "prompt", "reused"),
    [
        ([], [5, 6, 7], 0),
        ([5, 6], [5, 6, 7], 2),
        ([5, 9], [5, 6, 7], 0),
        ([5, 6, 7], [5, 6, 7], 0),  # all read, but its logits are gone
        ([5, 6, 7, 8], [5, 6, 7], 0),
    ],
)
def test_a_session_that_holds_the_beginning_reads_only_the_rest(held, prompt, reused):
    session = FakeSession([], held)
    step = next(generate(session, prompt, tokenizer()))
    assert (step.reused_tokens, step.prefilled_tokens, session.read) == (reused, 3 - reused, prompt[reused:])
    assert session.tokens == prompt and step.prompt_tokens == 3
    assert step.reuse_note == ("the prompt differs" if held and not reused else None)


def test_a_session_at_the_end_of_the_prompt_reads_nothing():
    session = FakeSession(ids("abc"))
    session.prefill([5, 6])
    session.read = []
    steps = list(generate(session, [5, 6], tokenizer(), max_tokens=2))
    assert [s.token for s in steps] == ids("ab") and session.read == []
    assert steps[0].reused_tokens == steps[0].prompt_tokens == 2 and steps[0].prefilled_tokens == 0


@pytest.mark.parametrize("more", [[], [7]])
def test_what_follows_a_session_is_read_after_its_text(more):
    session = FakeSession(ids("abc"))
    session.prefill([5, 6])
    session.read = []
    first = next(generate(session, more, tokenizer(), follows=True))
    assert session.tokens == [5, 6, *more] and session.read == more
    assert (first.prompt_tokens, first.reused_tokens, first.prefilled_tokens) == (2 + len(more), 2, len(more))


def test_what_follows_nothing_is_some_text():
    with pytest.raises(BadUsage, match="the prompt is empty"):
        generate(FakeSession([]), [], tokenizer(), follows=True)


def test_turns_are_marked_where_they_begin_and_where_the_answer_does():
    session = FakeSession(ids("abcd"), [5])
    list(generate(session, [5, 6, 7], tokenizer(), max_tokens=3))
    assert session.marks == [1, 3]


def test_two_turns_reuse_the_first():
    session = FakeSession(ids("ab"))
    first = list(generate(session, [5, 6], tokenizer(), eos={EOS}))
    second = list(generate(session, [5, 6, *(s.token for s in first), 7], tokenizer(), eos={EOS}))
    assert second[-1].reused_tokens == 4 and session.read == [EOS, 7] and second[-1].reuse_note is None


def test_sampling_reaches_the_tokens():
    steps = say("aaaa", sampling=Sampling(logit_bias={ids("a")[0]: -100.0, ids("b")[0]: 50.0}), max_tokens=3)
    assert "".join(s.text for s in steps) == "bbb"
    penalised = list(
        generate(FakeSession([7, 7, 7]), [5], tokenizer(), sampling=Sampling(presence_penalty=20.0), max_tokens=2)
    )
    assert [s.token for s in penalised] == [7, 0]


@pytest.mark.parametrize("bad", [{"prompt": []}, {"max_tokens": 0}, {"stop": [""]}, {"stop": "ab"}])
def test_bad_requests_are_refused_at_once(bad):
    with pytest.raises(BadUsage):
        generate(FakeSession([]), **{"prompt": [5], "tokenizer": tokenizer(), **bad})


def first_stop(text: str, stops: list[str]) -> int | None:
    """Where the stop string that is complete first begins (of several, the longest): letter by letter."""
    for end in range(1, len(text) + 1):
        begins = [end - len(s) for s in stops if text[:end].endswith(s)]
        if begins:
            return min(begins)
    return None


STOPS = st.lists(st.text("ab🦊", min_size=1, max_size=4), max_size=3)


@given(st.text("ab🦊", max_size=16), STOPS, st.lists(st.integers(1, 5), max_size=16))
@example("abcd", ["bc", "abcd"], [4])
@example("aab", ["ab"], [2, 1])
def test_any_cut_gives_the_text_before_the_first_stop(text, stops, cuts):
    watch, out, rest = StopWatch(stops), "", text
    for n in [*cuts, len(text)]:
        out, rest = out + watch.push(rest[:n]), rest[n:]
        held = len(text) - len(rest) - len(out)
        assert watch.stopped or held < max(map(len, stops), default=1), (
            "it holds back more than a stop string's beginning"
        )
    out += watch.flush()
    place = first_stop(text, stops)
    assert out == text[:place] and watch.stopped == (place is not None)


@given(st.lists(st.integers(1, tokenizer().vocab_size - 1), max_size=12) | st.text("ab🦊", max_size=9).map(ids), STOPS)
@example(ids("aab"), ["ab"])
def test_any_tokens_give_the_text_before_the_first_stop(reply, stops):
    whole = tokenizer().decode(reply)
    place = first_stop(whole, stops)
    steps = say(reply, stop=stops, max_tokens=40)
    assert "".join(s.text for s in steps) == whole[:place]
    assert steps[-1].reason == ("eos" if place is None else "stop")
    if place is not None:  # no token is computed after the one that completed it
        assert first_stop(tokenizer().decode([s.token for s in steps[:-1]]), stops) is None
