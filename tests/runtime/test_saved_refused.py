"""Session files that are refused: of something else, damaged in any way, of another version, or where none can be written."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge.errors import BadSession, BadUsage, ForeignSession, Missing
from quamba_edge.runtime import saved
from quamba_edge.runtime.model import load
from quamba_edge.runtime.session import Session
from tests.apps import tiny_bundle


@pytest.fixture(scope="module", params=["mamba", "mamba2"])
def model(request, tmp_path_factory):
    return load(tiny_bundle.write(tmp_path_factory.mktemp("s") / "tiny.qedge", request.param), "reference")


def held(model, length=20):
    session = model.session()
    session.prefill(np.random.default_rng(0).integers(0, 57, length))
    return session


def test_what_it_does_not_belong_to_refuses_it(model, tmp_path):
    saved.save(held(model), "a.qsession")
    family = model.bundle.manifest.family
    for changes, state, expected in [
        ({}, "f32", r"of state dtype f16, this is state dtype f32: open the bundle with --state-dtype f16"),
        (
            {"producer": "another"},
            "f16",
            r"of bundle [0-9a-f]{16}, this is bundle [0-9a-f]{16}: use it with the bundle",
        ),
        ({"tokenizer_json": tiny_bundle.TOKENIZER + " "}, "f16", r"of tokenizer [0-9a-f]{16}, this is tokenizer"),
    ]:
        other = load(tiny_bundle.write(tmp_path / "o.qedge", family, **changes), "reference", state_dtype=state)
        with pytest.raises(ForeignSession, match=expected):
            saved.load("a.qsession", other.engine)
    foreign = {"mamba": "mamba2", "mamba2": "mamba"}[family]
    other = load(tiny_bundle.write(tmp_path / "o.qedge", foreign), "reference")
    with pytest.raises(ForeignSession, match=f"of family {family}, this is family {foreign}"):
        saved.load("a.qsession", other.engine)


def test_every_damaged_byte_is_seen(model, tmp_path):
    """A flipped bit anywhere is one error that names the file, and never another session."""
    path = tmp_path / "a.qsession"
    saved.save(held(model), path)
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    rng = np.random.default_rng(0)
    places = [*range(0, 8), *rng.integers(8, 1200, 60), *rng.integers(header, len(whole), 40)]
    for at in places:
        changed = bytearray(whole)
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        with pytest.raises(BadSession, match=r"a\.qsession"):
            saved.load(path, model.engine)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELD = st.sampled_from(
    ["dtype", "shape", "data_offsets", "format", "count", "link", "digest", "family", "sha256", "tokens"]
)


@given(where=st.sampled_from(["whole", "__metadata__", "tokens", "logits"]), field=FIELD, value=JSON)
def test_any_header_is_a_session_or_an_error_of_ours(model, where, field, value):
    path = Path("f.qsession")
    facts = saved.save(held(model, 3), path)
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    table = json.loads(whole[8 : 8 + length])
    if where == "whole":
        table = value
    else:
        table[where][field] = value
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    for look in (saved.examine, lambda p: saved.load(p, model.engine)):
        with pytest.raises(BadSession, match=r"f\.qsession"):
            look(path)
    assert facts.tokens == 3


@pytest.mark.parametrize("length", [0, 7, 8, 100, 5000, -1])
def test_a_cut_file_is_seen(model, tmp_path, length):
    path = tmp_path / "a.qsession"
    saved.save(held(model), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    with pytest.raises(BadSession, match=r"a\.qsession"):
        saved.load(path, model.engine)
    path.write_bytes(whole + b"x")
    with pytest.raises(BadSession, match="something was appended"):
        saved.load(path, model.engine)


def test_other_files_and_places_are_named(model, tmp_path):
    for path, expected in [
        (tmp_path, "is no regular file"),
        (tmp_path / "nothing", "does not exist"),
        (model.bundle.path, "no saved session"),
    ]:
        with pytest.raises(BadSession, match=expected):
            saved.load(path, model.engine)
    os.mkfifo(tmp_path / "pipe.qsession")
    assert saved.listing(tmp_path) == []
    with pytest.raises(BadUsage, match="there is no folder"):
        saved.save(held(model), tmp_path / "none" / "a.qsession")
    with pytest.raises(Missing, match="cannot write"):
        saved.save(held(model), tmp_path)
    with pytest.raises(BadUsage, match="nothing to save"):
        saved.save(Session(model.engine), tmp_path / "a.qsession")


def test_a_version_to_come_is_told_from_damage(model, tmp_path):
    path = tmp_path / "a.qsession"
    saved.save(held(model), path)
    path.write_bytes(path.read_bytes().replace(b"quamba_edge session 1", b"quamba_edge session 2", 1))
    with pytest.raises(BadSession, match="written as 'quamba_edge session 2', expected 'quamba_edge session 1'"):
        saved.load(path, model.engine)


def test_what_was_there_stays_when_writing_fails(model, tmp_path, monkeypatch):
    path = tmp_path / "a.qsession"
    saved.save(held(model), path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Missing, match="no room to write"):
        saved.save(held(model, 30), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir() if "qsession" in p.name] == [
        "a.qsession"
    ]
