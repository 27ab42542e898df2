"""docs/format.md is enough: a reader written from it alone, with struct, json and zlib, reads what the writer wrote."""

import hashlib
import json
import math
import struct
import zlib

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from quamba_edge.bundle.reader import Bundle
from tests.bundle import build

SIZES = {"F32": 4, "F16": 2, "I32": 4, "U32": 4, "I8": 1, "U8": 1}
LETTERS = {"f32": "f", "f16": "e", "i32": "i", "i8": "b", "u8": "B", "u4": "I"}  # of the struct module


def read_by_the_page(raw: bytes):
    """(manifest, {name: flat list of logical values}), checking what the page says on the way."""
    (H,) = struct.unpack("<Q", raw[:8])
    assert (8 + H) % 64 == 0 and raw[8:].startswith(b'{"__metadata__":{"format":"quamba_edge",')
    header = json.loads(raw[8 : 8 + H])
    metadata = header.pop("__metadata__")
    assert list(metadata) == ["format", "manifest", "manifest_sha256"]
    assert hashlib.sha256(metadata["manifest"].encode()).hexdigest() == metadata["manifest_sha256"]
    manifest = json.loads(metadata["manifest"])
    assert manifest["format"] == 1 and list(header) == list(manifest["tensors"])
    values, end = {}, 0
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        assert start == end and start % 64 == 0 and stop - start == math.prod(entry["shape"]) * SIZES[entry["dtype"]]
        data, end = raw[8 + H + start : 8 + H + stop], stop
        t = manifest["tensors"][name]
        assert hashlib.sha256(data).hexdigest() == t["sha256"]
        values[name] = decode(data, t)
    assert len(raw) == 8 + H + end
    return manifest, values


def decode(data: bytes, t: dict):
    letter, shape, layout = LETTERS[t["dtype"]], t["shape"], t["layout"]
    letter = "B" if layout == "n16k4x6" else letter
    flat = struct.unpack(f"<{len(data) // struct.calcsize(letter)}{letter}", data)
    if layout == "row":
        assert not any(flat[math.prod(shape) :])
        return list(flat[: math.prod(shape)])
    N, K = shape
    up = lambda n, m: -(-n // m)
    values = []
    for n in range(N):
        b, r = n // 16, n % 16
        for k in range(K):
            if layout == "n16k8":
                word = flat[(b * up(K, 8) + k // 8) * 16 + r]
                values.append(word >> (8 * (k % 4) + 4 * (k % 8 // 4)) & 15)
            elif layout == "n16k4x6":
                at = ((b * up(K, 4) + k // 4) * 16 + r) * 3
                number = flat[at] + (flat[at + 1] << 8) + (flat[at + 2] << 16)
                values.append((number >> (6 * (k % 4)) & 63) - 32)
            elif layout == "n16k4":
                values.append(flat[((b * up(K, 4) + k // 4) * 16 + r) * 4 + k % 4])
            else:
                assert layout == "n16"
                values.append(flat[(b * K + k) * 16 + r])
    return values


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits, act", [(4, 8), (4, 16), (6, 8), (8, 8), (16, 16)])
def test_a_reader_written_from_the_page_reads_it(family, tied, bits, act):
    path, logical = build.write(family=family, tied=tied, bits=bits, act=act, edge_bits=bits)
    manifest, values = read_by_the_page(path.read_bytes())
    assert set(values) == set(logical)
    for name, (array, dtype, layout) in logical.items():
        assert values[name] == array.reshape(-1).tolist(), name
        t = manifest["tensors"][name]
        assert (t["dtype"], tuple(t["shape"]), t["layout"]) == (dtype, array.shape, layout)
    assert zlib.decompress(bytes(values["tokenizer.json"])).decode() == build.TOKENIZER


def test_any_safetensors_tool_lists_it():
    path, logical = build.write()
    found = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "np") as file, Bundle.open(path) as bundle:
        assert file.metadata()["format"] == "quamba_edge"
        assert set(file.keys()) == set(found) == set(logical)
        for name in logical:
            assert np.array_equal(
                found[name], bundle.tensor(name)
            )  # no tensor of it is stored narrower than it is read
            assert bundle.tensor(name).ctypes.data % 64 == 0
