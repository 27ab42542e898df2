"""Conversations: each turn reads what is new in it and nothing else, also after undo, retry, save and load, and interruptions."""

import json
from pathlib import Path

import pytest

from quamba_edge.errors import BadUsage
from quamba_edge.runtime import saved
from quamba_edge.runtime.conversation import Conversation
from quamba_edge.runtime.model import load
from quamba_edge.runtime.prefixes import Prefixes
from quamba_edge.runtime.sampling import Sampling
from tests.apps import tiny_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(tiny_bundle.write(tmp_path_factory.mktemp("c") / "tiny.qedge"), "reference")


@pytest.fixture(scope="module", params=["mamba", "mamba2"])
def storyteller(request):
    return load(Path(__file__).parent.parent / "golden" / f"{request.param}.qedge")


def say(steps):
    steps = list(steps)
    return "".join(s.text for s in steps), steps[-1]


def whole(talk):
    """What the session has seen, as text."""
    return talk.model.tokenizer.decode(talk.session.tokens)


def test_ten_turns_read_only_what_is_new(storyteller):
    """Prefilled tokens of each turn are the text between two answers, and a cut answer's last token; all others are reused."""
    talk, seen = Conversation(storyteller), 0
    for turn in range(10):
        question = f"Tell me a story about {turn + 2} dogs."
        new = len(storyteller.tokenizer.encode(storyteller.next_turn(question))) if turn else None
        cut = len(talk._unread)
        _, last = say(talk.ask(question, max_tokens=5 + turn))
        assert last.reused_tokens == seen and last.reuse_note is None
        assert last.prefilled_tokens == last.prompt_tokens - seen == (new + cut if turn else last.prompt_tokens)
        seen = talk.session.count
    texts = [f"User: {t.question}\nAssistant:{t.answer}" for t in talk.turns]
    assert whole(talk).startswith("<|endoftext|>" + "<|endoftext|>".join(texts)[:-20])


def test_undo_and_retry_go_back_for_nothing(model):
    talk = Conversation(model)
    first, _ = say(talk.ask("hi", max_tokens=6))
    before, state = whole(talk), talk.session.count
    second, last = say(talk.ask("and then", max_tokens=6))
    again, retried = say(talk.retry(max_tokens=6))
    assert again == second and retried.prefilled_tokens == 0 and retried.reused_tokens == last.prompt_tokens
    other, _ = say(talk.retry(max_tokens=6, sampling=Sampling(temperature=5.0, seed=1)))
    assert other != second and [t.answer for t in talk.turns] == [first, other]
    undone = talk.undo()
    assert undone.question == "and then" and (whole(talk), talk.session.count) == (before, state)
    assert say(talk.ask("and then", max_tokens=6))[0] == second
    talk.undo(), talk.undo()
    assert talk.session.count == 0 and talk.turns == []
    for act, what in ((talk.undo, "nothing to undo"), (talk.retry, "no answer to try again")):
        with pytest.raises(BadUsage, match=what):
            act()


def test_an_answer_may_be_left_at_any_step(model):
    """What was said of it stays, and the next turn reads on from there."""
    talk, straight = Conversation(model), Conversation(model)
    steps = talk.ask("hi", max_tokens=50)
    for _ in range(4):
        next(steps)
    steps.close()
    say(straight.ask("hi", max_tokens=4))
    assert talk.turns == straight.turns
    a, b = (say(t.ask("go on", max_tokens=5)) for t in (talk, straight))
    assert a[0] == b[0] and a[1].prefilled_tokens == b[1].prefilled_tokens


@pytest.mark.parametrize("raw", [False, True])
def test_a_saved_conversation_goes_on_as_if_it_had_not_stopped(model, tmp_path, raw):
    path = tmp_path / "a.qsession"
    talk = Conversation(model, "be kind" if not raw else None, raw=raw)
    say(talk.ask("hi", max_tokens=5))
    say(talk.ask("more", max_tokens=5))
    talk.save(path)
    other = Conversation(model, raw=raw)
    other.load(path)
    assert other.turns == talk.turns and other.system == talk.system and other.session.logits is not None
    expected, last = say(talk.ask("and", max_tokens=5))
    found, loaded = say(other.ask("and", max_tokens=5))
    assert found == expected and loaded.prefilled_tokens == last.prefilled_tokens
    other.undo()
    other.undo()
    assert len(other.turns) == 1 and whole(other) in whole(talk)
    assert path.with_name("a.qsession.json").stat().st_mode & 0o777 == 0o600


def test_a_long_conversation_without_a_way_back_is_read_again_from_its_words(model, tmp_path):
    """After loading there is one snapshot, and of this text not all tokens are in the file."""
    path, talk = tmp_path / "a.qsession", Conversation(model)
    say(talk.ask("hello " * 800, max_tokens=3))
    say(talk.ask("and then", max_tokens=5))
    talk.save(path)
    assert talk.session.count > saved.LAST
    for act in ("undo", "retry"):
        other = Conversation(model)
        other.load(path)
        if act == "undo":
            assert other.undo().question == "and then" and other.session.count == 0 and len(other.turns) == 1
            _, last = say(other.ask("and then", max_tokens=5))
        else:
            _, last = say(other.retry(max_tokens=5))
        assert last.reused_tokens == 0 and len(other.turns) == 2
        assert whole(other)[:4800] == whole(talk)[:4800]
    path.with_name("a.qsession.json").unlink()
    other.load(path)
    say(other.ask("more", max_tokens=3))
    other.session.snapshots.cut(-1)
    with pytest.raises(BadUsage, match="are known, and no snapshot is that old"):
        other.undo()
    assert len(other.turns) == 1


@pytest.mark.parametrize(
    "change",
    [
        None,
        "no json",
        "[]",
        {"digest": "of another state of it"},
        {"system": 5},
        {"turns": [{"question": "hi"}]},
        {"turns": [{"question": "hi", "answer": "", "begin": "0", "unread": [], "asked": 3}]},
        {"turns": [{"question": "hi", "answer": "", "begin": 0, "unread": [], "asked": 10**9}]},
    ],
)
def test_without_its_words_a_session_still_goes_on(model, tmp_path, change):
    path = tmp_path / "a.qsession"
    talk = Conversation(model)
    say(talk.ask("hi", max_tokens=5))
    talk.save(path)
    side = path.with_name("a.qsession.json")
    words = json.loads(side.read_text())
    assert words["turns"][0]["question"] == "hi"
    side.unlink() if change is None else side.write_text(change if type(change) is str else json.dumps(words | change))
    other = Conversation(model)
    other.load(path)
    assert other.turns == [] and say(other.ask("and", max_tokens=5))[0] == say(talk.ask("and", max_tokens=5))[0]


def test_a_model_without_turns_continues_the_text(model):
    talk = Conversation(model, raw=True)
    first, _ = say(talk.ask("Once", max_tokens=5))
    _, last = say(talk.ask(" upon", max_tokens=5))
    assert whole(talk).startswith("Once" + first + " upon")
    assert last.prefilled_tokens == 1 + len(model.tokenizer.encode(" upon")), "with the last token of the answer"


def test_a_system_prompt_is_read_once_by_all(model, tmp_path):
    store, system = Prefixes(tmp_path / "store", shortest=8), "be kind to all"
    common = len(model.system_ids([{"role": "system", "content": system}]))
    assert (
        model.tokenizer.decode(
            model.ids([{"role": "system", "content": system}, {"role": "user", "content": "hi"}])[:common]
        )
        == f"system: {system}\nuser: "
    )
    first, one = say(Conversation(model, system, store).ask("hi", max_tokens=5))
    second, two = say(Conversation(model, system, store).ask("hi", max_tokens=5))
    _, three = say(Conversation(model, system, store).ask("what is it", max_tokens=5))
    assert first == second and (one.reused_tokens, two.reused_tokens, three.reused_tokens) == (0, common, common)


@pytest.mark.parametrize("every", [20, 256])
def test_an_interrupted_prompt_was_not_asked(model, monkeypatch, every):
    talk, question = Conversation(model), "and then what " * 4
    talk.session.snapshots.every = every
    say(talk.ask("hi", max_tokens=5))
    expected = say(talk.ask(question, max_tokens=5))[0]
    talk.undo()
    before = talk.session.count, whole(talk), list(talk.turns)
    plan, calls = model.engine.plan(1, 16, "none"), []

    def second_fails(*given, run=plan.run):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        run(*given)

    with monkeypatch.context() as patch:
        patch.setattr(plan, "run", second_fails)
        with pytest.raises(KeyboardInterrupt):
            say(talk.ask(question, max_tokens=5))
    assert (talk.session.count, whole(talk), talk.turns) == before
    assert say(talk.ask(question, max_tokens=5))[0] == expected
    talk.undo()
    talk.session.reset()  # as an interruption without any snapshot leaves it
    _, last = say(talk.ask(question, max_tokens=5))
    assert last.reused_tokens == 0 and whole(talk).count("user: ") == 2, "read again as a whole"


@pytest.mark.parametrize("act", ["ask", "retry"])
def test_an_answer_that_fails_before_it_begins_was_not_asked(model, act):
    talk, wrong = Conversation(model), Sampling(logit_bias={10_000: 1.0})
    say(talk.ask("hi", max_tokens=5))
    before = whole(talk)
    if act == "retry":
        say(talk.ask("more", max_tokens=5))
    with pytest.raises(BadUsage, match="logit_bias names token 10000"):
        say(talk.retry(sampling=wrong) if act == "retry" else talk.ask("more", sampling=wrong))
    assert whole(talk) == before and [t.question for t in talk.turns] == ["hi"]
    straight = Conversation(model)
    say(straight.ask("hi", max_tokens=5))
    assert say(talk.ask("ho", max_tokens=5))[0] == say(straight.ask("ho", max_tokens=5))[0]


def test_what_the_session_lost_is_not_saved(model, tmp_path):
    talk = Conversation(model)
    say(talk.ask("hi", max_tokens=5))
    talk.session.reset()
    with pytest.raises(BadUsage, match="cost the session its state"):
        talk.save(tmp_path / "a.qsession")
    say(talk.ask("ho", max_tokens=5))
    assert talk.save(tmp_path / "a.qsession").tokens == talk.session.count


def test_a_template_that_rewrites_earlier_turns_is_rendered_whole(tmp_path):
    """Only the last question is in its prompts: there is no text between two answers to read on with."""
    template = "{{ messages|length }}:{{ messages[-1].content }}>"
    model = load(tiny_bundle.write(tmp_path / "t.qedge", chat_template=template), "reference")
    with pytest.raises(BadUsage, match="rewrites earlier turns"):
        model.next_turn("hi")
    talk = Conversation(model)
    say(talk.ask("hi", max_tokens=3))
    _, last = say(talk.ask("ho", max_tokens=3))
    assert last.prompt_tokens == len(model.ids("3:ho>")) and last.reuse_note is not None


def test_ids_follow_a_session_that_says_the_same_in_other_tokens(storyteller):
    """A model may write a word in two tokens where the tokenizer takes one: its state serves anyway."""
    one = storyteller.tokenizer.encode(" story")
    parts = [i for piece in (" st", "ory") for i in storyteller.tokenizer.encode(piece)]
    assert parts != one
    session = storyteller.session()
    session.prefill([*storyteller.ids("Tell me a"), *parts])
    ids = storyteller.ids("Tell me a story about Tim", session)
    assert ids[: session.count] == session.tokens and storyteller.tokenizer.decode(ids) == "Tell me a story about Tim"
    assert storyteller.ids("Tell me a song", session) == storyteller.ids("Tell me a song")
