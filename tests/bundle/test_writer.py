"""Writing bundles: whole or not at all, equal bytes for equal input, one tensor in memory."""

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from quamba_edge import layouts
from quamba_edge.bundle import header, writer
from quamba_edge.bundle.manifest import MAX_SIZE, parse
from quamba_edge.bundle.reader import Bundle
from quamba_edge.bundle.writer import Part, amend, assemble, write_bundle, write_part
from quamba_edge.errors import BadBundle, BadUsage, HashMismatch, Missing
from tests.bundle import build

REPO = Path(__file__).resolve().parents[2]


def parts_of(manifest, count=3):
    """The bundle's tensors as part files, as a packer leaves them."""
    tensors = list(build.stored(build.arrays(manifest)))
    step = -(-len(tensors) // count)
    for i in range(count):
        write_part(f"part-{i}", iter(tensors[i * step : (i + 1) * step]), {"layer": i})
    return [f"part-{i}" for i in range(count)]


def test_parts_become_the_same_bytes_as_one_write():
    manifest = build.described()
    parts = parts_of(manifest)
    digest = assemble("a.qedge", manifest, parts)
    assert write_bundle("b.qedge", manifest, build.stored(build.arrays(manifest))) == digest
    assert assemble("c.qedge", manifest, parts) == digest
    a, b, c = (Path(n).read_bytes() for n in ("a.qedge", "b.qedge", "c.qedge"))
    assert a == b == c
    with Bundle.open("a.qedge") as bundle:
        assert bundle.digest == digest and list(bundle.places) == list(build.arrays(manifest))
    assert sorted(os.listdir()) == ["a.qedge", "b.qedge", "c.qedge", *parts]


def test_a_part_is_a_safetensors_file_with_a_note():
    parts = parts_of(build.described())
    part = Part.open(parts[1])
    assert part.note == {"layer": 1}
    found = safetensors.numpy.load_file(parts[1])
    assert set(found) == set(part.tensors)
    for name, t in part.tensors.items():
        assert found[name].shape == layouts.stored_spec(t.layout, t.dtype, t.shape)[1]


def test_a_manifest_comes_back_as_it_was():
    path, _ = build.write(family="mamba", bits=8)
    with Bundle.open(path) as bundle:
        again = bundle.manifest
    assert replace(again, tensors={}) == build.described(family="mamba", bits=8)
    assert parse(again.text()) == again


def test_amend_changes_the_manifest_and_keeps_the_data():
    path, logical = build.write()
    with Bundle.open(path) as before:
        measured = {**before.manifest.perplexity, "bundle": 13.0}
        digest = amend(path, lambda m: replace(m, perplexity=measured), "out.qedge")
        assert digest != before.digest and amend(path, lambda m: m) == before.digest
        assert amend(path, lambda m: replace(m, perplexity=measured)) == digest
    assert path.read_bytes() == Path("out.qedge").read_bytes()
    with Bundle.open(path) as after:
        assert after.verify() and after.manifest.perplexity["bundle"] == 13.0
        assert np.array_equal(after.logical("embedding.codes"), logical["embedding.codes"][0])


def test_a_damaged_part_is_named_and_nothing_is_written():
    manifest = build.described()
    parts = parts_of(manifest)
    raw = bytearray(Path(parts[2]).read_bytes())
    raw[-1] ^= 1
    Path(parts[2]).write_bytes(raw)
    with pytest.raises(HashMismatch, match=r"part-2: the bytes of tokenizer\.json"):
        assemble("a.qedge", manifest, parts)
    with pytest.raises(BadBundle, match="part-0: tensor .* earlier part"):
        assemble("a.qedge", manifest, [parts[0], parts[0]])
    Path(parts[1]).write_bytes(Path(parts[1]).read_bytes()[:-64])
    with pytest.raises(BadBundle, match="part-1"):
        assemble("a.qedge", manifest, parts)
    assert sorted(os.listdir()) == parts


def test_what_the_reader_would_refuse_is_not_written():
    manifest = build.described()
    parts = parts_of(manifest)
    with pytest.raises(BadBundle, match="layers.0"):
        assemble("a.qedge", manifest, parts[:1])
    with pytest.raises(BadBundle, match="vocab_size"):
        assemble("a.qedge", replace(manifest, vocab_size=MAX_SIZE + 1), parts)
    with pytest.raises(BadBundle, match="shorten the chat template"):
        assemble("a.qedge", replace(manifest, chat_template="x" * header.MAX_HEADER), parts)
    assert sorted(os.listdir()) == parts


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("failure", ["disk", "interrupt", "quota", "read-only"])
def test_a_write_that_fails_leaves_no_trace(monkeypatch, failure, existing):
    manifest = build.described()
    parts = parts_of(manifest)
    if existing:
        Path("a.qedge").write_text("what was there")
    before = {n: Path(n).read_bytes() for n in os.listdir()}
    errors = {
        "disk": (
            OSError(errno.ENOSPC, "No space left"),
            Missing,
            r"no room to write a\.qedge: it needs \d+ bytes, \. has \d+ free",
        ),
        "quota": (OSError(errno.EDQUOT, "Quota exceeded"), Missing, "no room"),
        "read-only": (OSError(errno.EROFS, "Read-only file system"), Missing, "cannot write a.qedge .*Read-only"),
        "interrupt": (KeyboardInterrupt(), KeyboardInterrupt, None),
    }
    raised, expected, words = errors[failure]
    copy, calls = writer._copy, []

    def fail_later(*args):
        calls.append(args)
        if len(calls) == 4:
            raise raised
        copy(*args)

    monkeypatch.setattr(writer, "_copy", fail_later)
    with pytest.raises(expected, match=words):
        assemble("a.qedge", manifest, parts)
    assert {n: Path(n).read_bytes() for n in os.listdir()} == before


def test_a_full_disk_is_seen_before_copying(monkeypatch):
    manifest = build.described()
    parts = parts_of(manifest)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: namedtuple("usage", "free")(1000))
    monkeypatch.setattr(writer, "_copy", None)
    with pytest.raises(Missing, match="a.qedge: it needs 2.... bytes, . has 1000 free"):
        assemble("a.qedge", manifest, parts)
    assert sorted(os.listdir()) == parts


def test_a_source_that_fails_leaves_no_trace():
    manifest = build.described()

    def tensors():
        yield from list(build.stored(build.arrays(manifest)))[:5]
        raise KeyboardInterrupt

    for write in (lambda: write_part("part", tensors()), lambda: write_bundle("a.qedge", manifest, tensors())):
        with pytest.raises(KeyboardInterrupt):
            write()
        assert os.listdir() == []


def test_names_that_cannot_be_written():
    tensors = list(build.stored(build.arrays(build.described())))
    with pytest.raises(BadUsage, match="there is no folder nowhere.*mkdir -p nowhere"):
        write_part("nowhere/part", tensors)
    os.mkdir("folder")
    with pytest.raises(BadUsage, match="folder is a folder"):
        write_bundle("folder", build.described(), tensors)
    assert os.listdir() == ["folder"]


def test_stored_arrays_are_checked_against_their_shape():
    codes = layouts.pack("n16k8", np.zeros((32, 16), np.uint8))
    for shape, layout in (((48, 16), "n16k8"), ((32, 16), "n16k4"), ((32, 16), "row")):
        with pytest.raises(AssertionError):
            write_part("part", [("w.codes", shape, layout, codes)])
    assert os.listdir() == []


def test_memory_stays_at_one_tensor():
    """Eight tensors of 32 MB, packed, joined and opened in a process that may not grow by 100 MB."""
    code = """if True:
        import resource, numpy as np
        from pathlib import Path
        from quamba_edge.bundle import header, writer
        def tensors():
            for i in range(8):
                yield f"t{i}", (1 << 23,), "row", np.full(1 << 23, i, np.float32)
        used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        before = used()
        writer.write_part("part", tensors())
        part = writer.Part.open("part")
        with open("copy", "wb") as out, open("part", "rb") as source:
            for name, entry in part.places.items():
                writer._copy(source, entry, out, part, name)
        assert Path("copy").stat().st_size == 8 << 25
        print(used() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(REPO)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100e6
