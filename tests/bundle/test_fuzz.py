"""Damaged and hostile files: always an error of ours, never a crash, a hang, or much memory."""

import json
import random
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quamba_edge.bundle import header
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadBundle, HashMismatch, NotABundle, Truncated
from tests.bundle import build

OPENING = b'{"__metadata__":{"format":"quamba_edge",'
KINDS = [dict(family="mamba", bits=4, act=8, tied=False), dict(family="mamba2", bits=8, act=16, tied=True)]


@pytest.fixture(scope="module", params=KINDS, ids=lambda k: k["family"])
def whole(request, tmp_path_factory):
    """(bytes, header) of a good bundle."""
    path, _ = build.write(tmp_path_factory.mktemp("fuzz") / "good.qedge", **request.param)
    return path.read_bytes(), header.read(path)


def open_and_verify(raw: bytes):
    Path("bad.qedge").write_bytes(raw)
    with Bundle.open("bad.qedge") as bundle:
        bundle.verify()
        for name in bundle.places:
            bundle.logical(name)


def at_any_byte(raw, found, position, value, insert):
    """Put `value` at (or over) a byte: BadBundle, and if that is in the data the tensor is named."""
    if not insert and raw[position] == value:
        value ^= 0xFF
    changed = raw[:position] + bytes([value]) + raw[position + (not insert) :]
    with pytest.raises(BadBundle) as caught:
        open_and_verify(changed)
    tensor = next((n for n, e in found.entries.items() if e.start <= position < e.stop), None)
    if tensor is not None and not insert:
        assert caught.type is HashMismatch and f"bytes of {tensor} are not" in str(caught.value)
    if insert and tensor is not None:
        assert caught.type is Truncated


@settings(max_examples=300)
@given(
    where=st.floats(0, 1, exclude_max=True),
    part=st.sampled_from(["length", "header", "data"]),
    value=st.integers(0, 255),
    insert=st.booleans(),
)
@example(where=0.0, part="length", value=0, insert=False)
@example(where=0.999, part="header", value=ord("\n"), insert=False)  # white space is no less a change
@example(where=0.9999, part="data", value=1, insert=False)
def test_no_changed_byte_goes_unseen(whole, where, part, value, insert):
    raw, found = whole
    data = min(e.start for e in found.entries.values())
    low, high = {"length": (0, 8), "header": (8, data), "data": (data, len(raw))}[part]
    at_any_byte(raw, found, low + int(where * (high - low)), value, insert)


def test_no_flipped_bit_of_the_header_goes_unseen(whole):
    """Bytes all over the header, one of the bits each."""
    raw, found = whole
    rng = random.Random(0)
    for position in range(0, min(e.start for e in found.entries.values()), 11):
        at_any_byte(raw, found, position, raw[position] ^ 1 << rng.randrange(8), insert=False)


def test_every_tensor_is_named_when_any_of_its_ends_is_damaged(whole):
    raw, found = whole
    for entry in found.entries.values():
        for position in (entry.start, (entry.start + entry.stop) // 2, entry.stop - 1):
            at_any_byte(raw, found, position, raw[position] ^ 0x10, insert=False)


@given(where=st.floats(0, 1, exclude_max=True))
def test_cut_anywhere(whole, where):
    raw, _ = whole
    with pytest.raises((Truncated, NotABundle)):
        open_and_verify(raw[: int(where * len(raw))])


@given(garbage=st.binary(min_size=1, max_size=200))
def test_garbage_behind_the_end(whole, garbage):
    with pytest.raises(Truncated, match="appended"):
        open_and_verify(whole[0] + garbage)


@settings(max_examples=200)
@given(raw=st.one_of(st.binary(max_size=300), st.binary(max_size=200).map(lambda b: struct.pack("<Q", len(b)) + b)))
def test_any_bytes(raw):
    with pytest.raises(BadBundle):
        open_and_verify(raw)


def framed(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


ENTRY = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.lists(st.integers(-(2**70), 2**70), max_size=9), st.sampled_from(["F32", "U8", "BF16", "BOOL"]),
)  # fmt: skip


@settings(max_examples=300)
@given(data=st.data())
def test_absurd_headers(data):
    """A header of the right opening whose table is nonsense, over a file of some size."""
    table = {"a": dict(ENTRY), "b": dict(ENTRY, data_offsets=[64, 128])}
    for _ in range(data.draw(st.integers(1, 3))):
        entry = table[data.draw(st.sampled_from("ab"))]
        entry[data.draw(st.sampled_from([*ENTRY, "more"]))] = data.draw(VALUES)
    text = json.dumps(
        {"__metadata__": {"format": "quamba_edge", "manifest": "{}", "manifest_sha256": ""}, **table},
        separators=(",", ":"),
    )
    with pytest.raises(BadBundle):
        open_and_verify(framed(text.encode()) + bytes(data.draw(st.sampled_from([0, 64, 128, 1000]))))


BOMBS = {
    "lists": OPENING + b"[" * (4 << 20),
    "objects": OPENING + b'"a":{' * (1 << 20),
    "digits": OPENING + b'"a":' + b"9" * (7 << 20) + b"}}",
    "exponent": OPENING + b'"a":1e999}}',
    "many lists": OPENING + b'"a":[' + b"[]," * (2 << 20) + b"[]]}}",
    "not utf-8": OPENING + b'"a":"\xff"}}',
    "surrogate": OPENING + b'"a":"\\ud800"}}',
    "duplicates": OPENING + b'"format":"x"}}',
    "nan": OPENING + b'"a":NaN}}',
    "no text": OPENING + b'"a":1}}',
    "nothing in it": OPENING[:-1] + b"}}",
    "size": OPENING + b'"a":"b"},"t":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,73786976294838206464]}}',
    "huge": OPENING + b'"a":"b"},"t":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}}',
    "product": OPENING + b'"a":"b"},"t":{"dtype":"U8","shape":[' + b"9999999999999999999," * 9999 + b'1],"data_offsets":[0,1]}}',
    "overlap": OPENING + b'"a":"b"},"t":{"dtype":"U8","shape":[64],"data_offsets":[0,64]},"u":{"dtype":"U8","shape":[64],"data_offsets":[0,64]}}',
    "hole": OPENING + b'"a":"b"},"t":{"dtype":"U8","shape":[64],"data_offsets":[64,128]}}',
    "backwards": OPENING + b'"a":"b"},"t":{"dtype":"U8","shape":[64],"data_offsets":[64,0]}}',
    "negative": OPENING + b'"a":"b"},"t":{"dtype":"U8","shape":[-64],"data_offsets":[0,-64]}}',
    "true": OPENING + b'"a":"b"},"t":{"dtype":"U8","shape":[64,true],"data_offsets":[false,64]}}',
    "empty tensor": OPENING + b'"a":"b"},"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_cost_little(bomb):
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(BadBundle) as caught:
        open_and_verify(framed(BOMBS[bomb]) + bytes(128))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300e6 and time.process_time() - began < 20
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 39, 10**9, 2**63, 2**64 - 1])
def test_absurd_lengths(length):
    with pytest.raises(BadBundle):
        open_and_verify(framed(OPENING + b'"a":"b"}}' + b" " * 99, length))


def test_a_header_of_gigabytes_is_not_read():
    with open("bad.qedge", "wb") as file:
        file.write(framed(OPENING, 3 << 30))
        file.truncate(4 << 30)  # sparse: takes no room
    tracemalloc.start()
    with pytest.raises(BadBundle, match="at most 8388608"):
        Bundle.open("bad.qedge")
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "manifest",
    ["[" * 10**6, "9" * 10**6, '{"format":' + "1" * 10**6 + "}", "[]", "null", "", '{"format":true}', '{"a":' * 10**5],
)
def test_bombs_inside_the_manifest(manifest):
    from quamba_edge.bundle.manifest import digest

    metadata = {"format": "quamba_edge", "manifest": manifest, "manifest_sha256": digest(manifest)}
    with pytest.raises(BadBundle, match="manifest") as caught:
        open_and_verify(header.emit(metadata, {"a": ("u8", (64,))}) + bytes(64))
    assert len(str(caught.value)) < 400
