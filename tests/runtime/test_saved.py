"""Saved sessions: another process or backend goes on with nothing read, and the size is constant."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from quamba_edge.backends import cpu
from quamba_edge.errors import BadSession, BadUsage
from quamba_edge.runtime import saved
from quamba_edge.runtime.generate import generate
from quamba_edge.runtime.model import load
from tests.apps import tiny_bundle


@pytest.fixture(scope="module", params=["mamba", "mamba2"])
def model(request, tmp_path_factory):
    return load(tiny_bundle.write(tmp_path_factory.mktemp("s") / "tiny.qedge", request.param), "reference")


def text(length, seed=0):
    return np.random.default_rng(seed).integers(0, 57, length).tolist()


def held(model, length=20):
    session = model.session()
    session.prefill(text(length))
    return session


def test_a_session_goes_on_where_it_was(model, tmp_path):
    session = held(model)
    facts = saved.save(session, tmp_path / "a.qsession")
    other = saved.load(tmp_path / "a.qsession", model.engine)
    assert (other.logits == session.logits).all() and other.tokens == session.tokens
    assert (other.decode(5) == session.decode(5)).all(), "saving changes nothing, and loading loses nothing"
    assert facts == saved.examine(tmp_path / "a.qsession")
    assert (facts.tokens, facts.family, facts.state_dtype) == (20, model.bundle.manifest.family, "f16")
    assert (facts.bundle, facts.backend) == (model.bundle.digest, model.engine.backend.name)
    assert facts.nbytes == (tmp_path / "a.qsession").stat().st_size


def test_another_process_prefills_nothing_and_says_the_same(model, tmp_path, repo):
    """What the session would have said next, said by a fresh interpreter: bit-equal logits, no token read."""
    session = held(model)
    saved.save(session, tmp_path / "a.qsession")
    steps = list(generate(session, text(20), model.tokenizer, max_tokens=6))
    code = f"""
import json, sys, quamba_edge
from quamba_edge.runtime import saved
model = quamba_edge.load({str(model.bundle.path)!r}, "reference")
session = saved.load("a.qsession", model.engine)
first = session.logits.tobytes().hex()
steps = list(quamba_edge.generate(model, {text(20)}, session=session, max_tokens=6))
print(json.dumps([first, [s.token for s in steps], steps[0].reused_tokens, steps[0].prefilled_tokens, steps[0].reuse_note]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(repo)},
    )
    first, tokens, reused, prefilled, note = json.loads(done.stdout)
    assert first == held(model).logits.tobytes().hex()
    assert tokens == [s.token for s in steps] and (reused, prefilled, note) == (20, 0, None)


def test_the_file_is_safetensors_of_one_size_for_its_owner_only(model, tmp_path):
    from safetensors.numpy import load_file

    session, sizes = held(model, 100), []
    for length in (0, 28, 4100):  # in all 100, 128 and 4228, more than are kept
        if length:
            session.prefill(text(length))
        sizes.append(saved.save(session, tmp_path / "a.qsession").nbytes)
    assert len(set(sizes)) == 1
    assert (tmp_path / "a.qsession").stat().st_mode & 0o777 == 0o600
    arrays = load_file(tmp_path / "a.qsession")
    assert (arrays["logits"] == session.logits).all() and arrays["tokens"].tolist() == session.tokens[-saved.LAST :]
    for name, array in session.state().arrays.items():
        assert (arrays[f"state.{name}"] == array[0]).all() and arrays[f"state.{name}"].dtype == array.dtype
    assert [p.name for p in tmp_path.glob("*.qsession*")] == ["a.qsession"]


def test_a_long_text_proves_its_beginning_by_the_digest(model, tmp_path):
    """Of 4,500 tokens the first 404 are not in the file; the caller sends them all, and nothing is read again."""
    tokens = text(4500)
    session = held(model, 4500)
    saved.save(session, tmp_path / "a.qsession")
    other = saved.load(tmp_path / "a.qsession", model.engine)
    assert other.count == 4500 and len(other.tokens) == saved.LAST and not other.seen.whole
    assert vars(other.seek([*tokens, 1])) == {"tokens": 4500, "note": None}
    assert (other.decode(1) == session.decode(1)).all()
    assert other.seek([*tokens, 1, 2]).tokens == 4501
    assert other.seek([*tokens, 3]).tokens == 4500
    with pytest.raises(BadUsage, match="of 4500 only the last 4096 are known"):
        other.rewind(4000)
    saved.save(other, tmp_path / "b.qsession")
    again = saved.load(tmp_path / "b.qsession", model.engine)
    assert again.seek(tokens).tokens == 4500
    found = again.seek([9, *tokens[1:], 5])
    assert found.tokens == again.count == 0
    assert found.note == "the prompt of 4501 tokens does not begin with the 4500 that the session was loaded with"


def test_a_session_without_its_words_goes_on_anyway(model, tmp_path):
    session = held(model, 4500)
    saved.save(session, tmp_path / "a.qsession")
    other = saved.load(tmp_path / "a.qsession", model.engine)
    one, two = (list(generate(s, [5], model.tokenizer, follows=True, max_tokens=4)) for s in (session, other))
    assert [s.token for s in one] == [s.token for s in two]
    assert (two[-1].prompt_tokens, two[-1].prefilled_tokens) == (4501, 1)


def test_a_branch_is_a_session_of_its_own(model):
    session = held(model)
    session.mark()
    branch = session.branch()
    assert (branch.decode(3) == held(model).decode(3)).all()
    assert (session.decode(4) == held(model).decode(4)).all()
    assert branch.rewind(20) == 0 and branch.tokens == text(20)


def test_a_list_shows_sessions_only_the_latest_first_and_remove_deletes_no_other_file(model, tmp_path):
    for i, name in enumerate(("old", "young")):
        saved.save(held(model, 3 + i), tmp_path / f"{name}.qsession")
        os.utime(tmp_path / f"{name}.qsession", (i, i))
    (tmp_path / "bad.qsession").write_bytes(b"something else")
    (tmp_path / "other").write_bytes(b"else")
    assert [(s.path.name, s.tokens) for s in saved.listing(tmp_path)] == [("young.qsession", 4), ("old.qsession", 3)]
    saved.remove(tmp_path / "old.qsession")
    assert [s.path.name for s in saved.listing(tmp_path)] == ["young.qsession"]
    with pytest.raises(BadSession, match="no saved session"):
        saved.remove(tmp_path / "other")
    assert (tmp_path / "other").exists()


def test_another_backend_takes_it_over(model, tmp_path):
    """The last logits are the saved ones; from there on it rounds its own way, and with itself it is bit-equal."""
    if (why := cpu.why_not()) is not None:
        pytest.skip(why)
    native = load(model.bundle.path, "cpu")
    session = held(model)
    saved.save(session, tmp_path / "a.qsession")
    other, twin = (saved.load(tmp_path / "a.qsession", native.engine) for _ in range(2))
    assert (other.logits == session.logits).all()
    expected, found = session.decode(5), other.decode(5)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert (twin.decode(5) == found).all()
    other.mark()
    saved.save(other, tmp_path / "b.qsession")
    again = saved.load(tmp_path / "b.qsession", native.engine)
    assert (again.prefill(text(40)) == other.prefill(text(40))).all()
    assert other.rewind(21) == 0 and (other.prefill(text(40)) == again.logits).all()
