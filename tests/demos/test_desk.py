"""What the chat demo does behind its page: answers, stopping, conversations kept and loaded, and a panel that invents nothing."""

import json
import stat
import sys
import threading
import time

import pytest

from quamba_edge.errors import BadUsage
from quamba_edge.runtime.sampling import Sampling
from quamba_edge.telemetry import Sample
from tests.apps import tiny_bundle

# Without the space after the colon: a random model does not begin its answers with one.
TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
TALK = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    endless = {"eos": [], "bos": 0}
    return [
        tiny_bundle.write(folder / f"{f}.qedge", f, tokenizer=endless, chat_template=TEMPLATE)
        for f in ("mamba2", "mamba")
    ]


@pytest.fixture
def modules(repo, monkeypatch):
    monkeypatch.syspath_prepend(str(repo / "demos"))
    yield
    for name in ("desk", "panel"):
        sys.modules.pop(name, None)


@pytest.fixture
def desk(modules, bundles, tmp_path):
    from desk import Desk

    made = Desk(bundles, tmp_path / "talks", "reference")
    yield made
    made.close()


def ask(desk, talk, tokens=8, seed=0):
    *_, heard = desk.answer("me", talk, "", Sampling(temperature=1, seed=seed), tokens)
    return heard


def test_an_answer_grows_and_tells_its_numbers(desk):
    pieces = [h.text for h in desk.answer("me", TALK, "be kind", Sampling(), 400)]
    assert len(pieces) > 1 and pieces == sorted(pieces, key=len)
    heard = ask(desk, TALK)
    assert "8 tokens" in heard.note and heard.session and desk.panel.answer.tokens == 8


def test_stopping_keeps_what_was_said(desk):
    answer = desk.answer("me", TALK, "", Sampling(), 4000)
    next(answer)
    desk.stop("someone else")
    threading.Timer(0.2, desk.stop, ["me"]).start()
    *_, heard = answer
    assert heard.text and "stopped" in heard.note and heard.session


def test_the_next_question_reads_only_itself(desk):
    first = ask(desk, TALK)
    talk = [*TALK, {"role": "assistant", "content": first.text}, {"role": "user", "content": "and"}]
    assert "prompt 46, 25 of it reused" in ask(desk, talk).note


def test_conversations_are_kept_whole(desk, tmp_path):
    heard = ask(desk, TALK)
    talk = [*TALK, {"role": "assistant", "content": heard.text}]
    assert "with its state" in desk.save("My tale", talk, {"seed": 5}, heard.session)
    assert stat.S_IMODE((tmp_path / "talks" / "My tale.json").stat().st_mode) == 0o600
    assert desk.saved() == ["My tale"]
    desk.open(desk.bundles[0])  # what was in memory is gone
    loaded, settings, note = desk.load("My tale")
    assert (loaded, settings) == (talk, {"seed": 5}) and "with its state" in note
    reused = ask(desk, [*talk, {"role": "user", "content": "and"}]).note
    assert "25 of it reused" in reused
    desk.open(desk.bundles[1])
    assert "will be read again" in desk.load("My tale")[2]
    assert "without its state" in desk.save("other", talk, {}, "s99") and desk.save("third", talk, {}, None)
    desk.delete("My tale")
    assert "My tale" not in desk.saved()


def test_what_cannot_be_done_is_said(desk, tmp_path):
    for name in ("", "../x", "a/b", ".x", None, "x" * 70):
        with pytest.raises(BadUsage, match="a name has"):
            desk.save(name, TALK, {}, None)
    with pytest.raises(BadUsage, match="nothing to save"):
        desk.save("x", [], {}, None)
    with pytest.raises(BadUsage):
        desk.load("nothing")
    (tmp_path / "talks").mkdir(exist_ok=True)
    (tmp_path / "talks" / "bad.json").write_text(json.dumps({"talk": [5]}))
    with pytest.raises(BadUsage, match="no saved conversation"):
        desk.load("bad")
    with pytest.raises(BadUsage, match="not one of the bundles"):
        desk.open(tmp_path / "other.qedge")


class Source:
    name = "fake"

    def __init__(self, **known):
        self.known = known

    def read(self):
        return Sample(time.monotonic_ns(), "fake", **self.known)

    def close(self):
        pass


def test_the_panel_shows_what_is_known_and_no_zero_for_the_rest(modules):
    from panel import Answer, Panel

    bare = Panel(lambda: None, Source())
    assert bare.html().count("not available") >= 4 and "<svg" not in bare.html()
    rich = Panel(lambda: None, Source(power_w=5.0, power_of="VDD_IN", temps_c={"cpu": 51.0}, power_mode="15W <b>"))
    begin = time.monotonic_ns()
    time.sleep(3.2)
    rich.answer = Answer(begin + 500_000_000, time.monotonic_ns() - 500_000_000, 10, 12.0, 34.5)
    page = rich.html()
    for text in ("5.0 <small>W", "51 <small>°C", "15W &lt;b&gt;", "34.5", ">12 <small>ms", "Watts", "<svg"):
        assert text in page, text
    joules = rich.joules_per_token()
    assert joules == pytest.approx(5.0 * 2.2 / 10, rel=0.1)
    bare.close()
    rich.close()
