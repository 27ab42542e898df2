"""The public API and `run` on a real (random) bundle: text, chat, ids, sessions that are reused."""

import pytest

import quamba_edge
from quamba_edge.apps.run import run, summary
from quamba_edge.errors import BadUsage
from tests.apps import tiny_bundle


@pytest.fixture(scope="module", params=["mamba", "mamba2"])
def model(request, tmp_path_factory):
    return quamba_edge.load(tiny_bundle.write(tmp_path_factory.mktemp("r") / "tiny.qedge", request.param), "reference")


def text(steps):
    return "".join(step.text for step in steps)


def test_text_ids_and_messages_are_the_same_prompt(model):
    talk = [{"role": "user", "content": "hi"}]
    said = text(quamba_edge.generate(model, talk, max_tokens=9))
    assert said == text(quamba_edge.generate(model, "user: hi\nassistant:", max_tokens=9))
    assert said == text(quamba_edge.generate(model, model.tokenizer.encode("user: hi\nassistant:"), max_tokens=9))
    assert model.ids("") == [0] and model.eos == {0}


def test_a_conversation_reuses_its_session_and_answers_alike(model):
    session, fresh = model.session(), model.session()
    first = list(quamba_edge.generate(model, "Once", session=session, max_tokens=5))
    prompt = model.ids("Once") + [s.token for s in first] + model.ids(" upon")
    second = list(quamba_edge.generate(model, prompt, session=session, max_tokens=5))
    assert second[-1].reused_tokens == len(model.ids("Once")) + 4
    again = list(quamba_edge.generate(model, prompt, session=fresh, max_tokens=5))
    assert again[-1].reused_tokens == 0 and [s.token for s in again] == [s.token for s in second]


def test_ids_beyond_the_vocabulary_are_refused(model):
    for prompt in ([57], [-1, 3]):  # 57 is a padded row
        with pytest.raises(BadUsage, match=r"expected ids from 0 to 56"):
            quamba_edge.generate(model, prompt)


def test_run_gives_what_it_streamed(model):
    pieces = []
    result = run(model.bundle.path, "Once", max_tokens=7, backend="reference", on_text=pieces.append)
    assert (
        "".join(pieces) == result.text == model.tokenizer.decode(result.ids) and result.tokens == len(result.ids) == 7
    )
    assert "7 tokens (length)" in summary(result) and "tokens/s" in summary(result)
    short = run(model.bundle.path, "Once", max_tokens=1, backend="reference")
    assert short.decode_tps is None and "tokens/s" not in summary(short)
