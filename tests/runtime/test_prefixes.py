"""States of prompts' beginnings on disk: read once, found by any process, bounded, and damage is dropped and told."""

import os
import subprocess
import sys

import numpy as np
import pytest

from quamba_edge.runtime import prefixes, saved
from quamba_edge.runtime.generate import generate
from quamba_edge.runtime.model import load
from quamba_edge.runtime.prefixes import Prefixes
from tests.apps import tiny_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(tiny_bundle.write(tmp_path_factory.mktemp("p") / "tiny.qedge"), "reference")


@pytest.fixture
def store(tmp_path):
    return Prefixes(tmp_path / "store", shortest=8)


def text(length, seed=0):
    return np.random.default_rng(seed).integers(0, 57, length).tolist()


def ask(model, store, ids, keep=0, session=None, **options):
    return next(
        generate(session or model.session(), ids, model.tokenizer, prefixes=store, prefix_tokens=keep, **options)
    )


def names(store):
    return sorted(p.name for p in store.folder.iterdir())


def test_a_beginning_is_read_once(model, store):
    first = ask(model, store, text(20) + [1], keep=20)
    assert (first.reused_tokens, first.prefilled_tokens) == (0, 21) and len(names(store)) == 1
    second = ask(model, store, text(20) + [2, 3], keep=20)
    assert (second.reused_tokens, second.prefilled_tokens, second.reuse_note) == (20, 2, None)
    alone = model.session()
    alone.prefill(text(20))
    alone.prefill([2, 3])
    assert second.token == int(alone.logits.argmax()) and store.notes == []


def test_exactly_the_beginning_needs_no_prefill(model, store):
    ask(model, store, text(20) + [1], keep=20)
    assert ask(model, store, text(20)).prefilled_tokens == 0


def test_the_longest_one_counts_and_other_texts_do_not(model, store):
    for keep in (8, 12, 20):
        ask(model, store, text(30), keep=keep)
    assert ask(model, store, text(30)).reused_tokens == 20
    assert ask(model, store, text(15)).reused_tokens == 12
    assert ask(model, store, text(30, seed=1)).reused_tokens == 0
    other = text(30)
    other[15] = 58 - other[15]
    assert ask(model, store, other).reused_tokens == 12


def test_a_session_that_holds_more_keeps_what_it_has(model, store):
    ask(model, store, text(30), keep=8)
    session = model.session()
    session.prefill(text(20))
    step = ask(model, store, text(30), session=session)
    assert step.reused_tokens == 20
    assert ask(model, store, [*text(30)[:10], 58], session=session).reused_tokens == 8, (
        "where a session cannot go back, the store helps"
    )


def test_short_beginnings_and_other_state_dtypes_are_apart(model, store):
    ask(model, store, text(20), keep=7)
    assert not store.folder.exists()
    ask(model, store, text(20), keep=10)
    other = load(model.bundle.path, "reference", state_dtype="f32")
    assert ask(other, store, text(20)).reused_tokens == 0


def test_the_least_recently_used_goes_first(model, store):
    ask(model, store, text(20, 1), keep=8)
    size = next(store.folder.iterdir()).stat().st_size
    store.nbytes = 2 * size + 10
    ask(model, store, text(20, 2), keep=8)
    for i, path in enumerate(sorted(store.folder.iterdir(), key=lambda p: p.stat().st_mtime_ns)):
        os.utime(path, (1000 + i, 1000 + i))
    assert ask(model, store, text(20, 1)).reused_tokens == 8, "used now, so that the other one goes"
    ask(model, store, text(20, 3), keep=8)
    assert [ask(model, store, text(20, s)).reused_tokens for s in (1, 2, 3)] == [8, 0, 8]
    store.nbytes = size - 1
    ask(model, store, text(20, 4), keep=8)
    assert names(store) == [], "what does not fit is not kept"


def test_damage_is_dropped_and_told(model, store):
    ask(model, store, text(20), keep=10)
    (path,) = store.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    step = ask(model, store, text(20), keep=10)
    assert step.reused_tokens == 0 and len(store.notes) == 1
    assert store.notes[0].startswith("dropped from the prefix store: ") and "is damaged" in store.notes[0]
    assert ask(model, store, text(20)).reused_tokens == 10, "and stored again"


def test_a_file_under_another_s_name_is_not_believed(model, store):
    ask(model, store, text(20, 1), keep=10)
    ask(model, store, text(20, 2), keep=10)
    one, other = store.folder.iterdir()
    one.write_bytes(other.read_bytes())
    found = [ask(model, store, text(20, s)).reused_tokens for s in (1, 2)]
    assert sorted(found) == [0, 10] and "of another text than its name says" in store.notes[0]


def test_a_folder_that_cannot_be_written_costs_only_a_note(model, tmp_path):
    (tmp_path / "file").write_text("")
    store = Prefixes(tmp_path / "file" / "store", shortest=8)
    assert ask(model, store, text(20), keep=10).prefilled_tokens == 20
    assert "was not stored" in store.notes[0]


def test_what_a_killed_process_left_goes_after_an_hour(model, store):
    store.folder.mkdir()
    for age, name in ((7200, "old"), (10, "young")):
        path = store.folder / f".{name}.prefix.1.tmp"
        path.write_bytes(b"")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    ask(model, store, text(20), keep=10)
    assert not (store.folder / ".old.prefix.1.tmp").exists() and (store.folder / ".young.prefix.1.tmp").exists()


def test_two_processes_use_one_folder(model, tmp_path, repo):
    """Room for two states, six texts, two processes that store, find and evict at once: answers stay right, no error, no note."""
    code = f"""
import sys, numpy as np, quamba_edge
from quamba_edge.runtime.prefixes import Prefixes
model = quamba_edge.load({str(model.bundle.path)!r}, "reference")
store = Prefixes("store", nbytes=60000, shortest=8)
rng = np.random.default_rng(int(sys.argv[1]))
texts = [np.random.default_rng(s).integers(0, 57, 20).tolist() for s in range(6)]
plain = [next(quamba_edge.generate(model, t[:10], max_tokens=1)).token for t in texts]
for i in rng.integers(0, 6, 60):
    step = next(quamba_edge.generate(model, texts[i][:10], prefixes=store, prefix_tokens=10))
    assert step.token == plain[i]
assert store.notes == [], store.notes
"""
    env = {**os.environ, "PYTHONPATH": str(repo)}
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], env=env, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    left = list((tmp_path / "store").iterdir())
    assert left and all(saved.examine(p).tokens == 10 for p in left)


def test_the_home_follows_the_xdg_rules(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prefixes.home() == tmp_path / "quamba_edge" / "prefixes"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(prefixes.home()) == "/home/somebody/.cache/quamba_edge/prefixes"
