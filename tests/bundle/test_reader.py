"""Opening bundles: what comes back, and one clear error for each way a file is bad."""

import json
import os
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy

from quamba_edge import layouts
from quamba_edge.bundle import expect, header
from quamba_edge.bundle.manifest import digest
from quamba_edge.bundle.reader import Bundle
from quamba_edge.bundle.writer import write_bundle, write_part
from quamba_edge.errors import (
    BadBundle,
    HashMismatch,
    MissingLayout,
    NewerFormat,
    NotABundle,
    Truncated,
    WrongArchitecture,
)
from quamba_edge.models import known
from tests.bundle import build


def forge(path, change):
    """Rewrite a bundle's manifest by `change` (of its JSON object), hashes and all: what a hostile writer can do."""
    found = header.read(path)
    data = path.read_bytes()[min(e.start for e in found.entries.values()) :]
    raw = json.loads(found.metadata["manifest"])
    change(raw)
    text = json.dumps(raw, ensure_ascii=False)
    names = {v: k for k, v in header.SAFETENSORS.items()}
    start = header.emit(
        {"format": "quamba_edge", "manifest": text, "manifest_sha256": digest(text)},
        {n: (names[e.dtype], e.shape) for n, e in found.entries.items()},
    )
    path.write_bytes(start + data)


def test_6_bit_codes_are_handed_out_as_kernels_read_them():
    path, logical = build.write(edge_bits=6, tied=False)
    codes = logical["head.codes"][0]
    with Bundle.open(path) as bundle:
        wide = layouts.pack("n16k4", codes)
        assert (
            bundle.manifest.tensors["head.codes"].layout == "n16k4x6"
            and bundle.places["head.codes"].nbytes < wide.nbytes
        )
        found = bundle.tensor("head.codes")
        assert np.array_equal(found, wide) and not found.flags.writeable and bundle.tensor("head.codes") is found
        assert np.array_equal(bundle.logical("head.codes"), codes)
        assert np.array_equal(bundle.gather("head.codes", np.array([3, 36])), codes[[3, 36]])
        read, into = bundle.stream("head.codes"), np.empty(wide.nbytes, np.uint8)
        for start in range(0, wide.nbytes, 256):
            read(start, into[start : start + 256])
        assert into.tobytes() == wide.tobytes()
    damaged = bytearray(path.read_bytes())
    damaged[bundle.places["head.codes"].start] ^= 1
    path.write_bytes(damaged)
    with Bundle.open(path) as bundle, pytest.raises(HashMismatch, match="head.codes"):
        bundle.tensor("head.codes")


def test_everything_comes_back():
    path, logical = build.write(family="mamba", tied=False)
    with Bundle.open(path) as bundle:
        assert bundle.manifest.family == "mamba" and bundle.config.dt_rank == 3
        assert bundle.manifest.golden[0]["top"] == [[3, 1.5], [4, 0.25]]
        assert bundle.chat_template == build.described().chat_template
        assert bundle.tokenizer_json() == build.TOKENIZER
        for name, (array, _, _) in logical.items():
            assert np.array_equal(bundle.logical(name), array), name
            assert not bundle.tensor(name).flags.writeable
        codes = logical["layers.1.in_proj.codes"][0]
        assert np.array_equal(bundle.rows("layers.1.in_proj.codes", 32, 77), codes[32:77])
        assert np.array_equal(bundle.gather("layers.1.in_proj.codes", np.array([5, 90, 5])), codes[[5, 90, 5]])
        assert bundle.verify() == sum(e.nbytes for e in bundle.places.values())
        kept = bundle.tensor("head.scales")
    assert np.array_equal(kept[:40], logical["head.scales"][0])  # arrays outlive the bundle
    with pytest.raises(AssertionError, match="closed"):
        bundle.tensor("head.scales")


def test_a_damaged_tensor_is_named_on_first_touch_and_by_verify():
    path, _ = build.write()
    with Bundle.open(path) as bundle:
        at = bundle.places["layers.1.ssm.A"].stop - 1  # a byte of padding counts too
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    with Bundle.open(path) as bundle:
        bundle.tensor("layers.0.ssm.A")
        for _ in range(2):
            with pytest.raises(HashMismatch, match=r"layers\.1\.ssm\.A are not"):
                bundle.tensor("layers.1.ssm.A")
        with pytest.raises(HashMismatch, match=r"bytes of layers\.1\.ssm\.A are not"):
            bundle.verify()
    with Bundle.open(path, verify=False) as bundle:
        bundle.tensor("layers.1.ssm.A")
        with pytest.raises(HashMismatch):
            bundle.verify()


def test_verify_names_all_that_is_damaged():
    path, _ = build.write()
    found = header.read(path)
    raw = bytearray(path.read_bytes())
    for entry in found.entries.values():
        raw[entry.start] ^= 0x80
    path.write_bytes(raw)
    with Bundle.open(path) as bundle, pytest.raises(HashMismatch, match=f"and {len(found.entries) - 5} more"):
        bundle.verify()


def test_other_files_are_named_for_what_they_are(tmp_path):
    safetensors.numpy.save_file({"w": np.zeros(4, np.float32)}, "model.safetensors", {"format": "pt"})
    write_part("part", list(build.stored(build.arrays(build.described())))[:2])
    files = {
        "empty": (b"", "is empty"),
        "model.gguf": (b"GGUF\x03\0\0\0" + bytes(99), "GGUF file.*pack"),
        "model.bin": (b"PK\x03\x04" + bytes(99), "PyTorch checkpoint.*quamba-edge pack"),
        "notes.txt": (b"The quick brown fox jumps over the lazy dog." * 9, "not a bundle"),
        "one": (b"\x01", "not a bundle|not even a header"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadBundle, match=message):
            Bundle.open(name)
    for name, message in [
        ("model.safetensors", "no bundle: pack it first"),
        ("part", "unfinished bundle.*--resume"),
        ("absent.qedge", "does not exist"),
        (tmp_path, "is a folder.*pack it first"),
    ]:
        with pytest.raises(NotABundle, match=message):
            Bundle.open(name)
    os.mkfifo("pipe")
    with pytest.raises(NotABundle, match="no regular file"):
        Bundle.open("pipe")


def test_cut_and_lengthened_files():
    path, _ = build.write()
    raw = path.read_bytes()
    (H,) = struct.unpack("<Q", raw[:8])
    for cut in (5, 20, 60, 8 + H - 1, 8 + H, 8 + H + 64, len(raw) - 1):
        path.write_bytes(raw[:cut])
        with pytest.raises(Truncated, match="Copy it again|copy it again"):
            Bundle.open(path)
    path.write_bytes(raw + b"\0")
    with pytest.raises(Truncated, match="appended"):
        Bundle.open(path)


# (change of the manifest's JSON object, error, its words)
FORGED = [
    (lambda m: m.update(format=2), NewerFormat, "format 2, this version reads up to 1: upgrade"),
    (lambda m: m.update(format="1"), BadBundle, "format is '1'"),
    (lambda m: m.pop("sites"), BadBundle, "sites is missing"),
    (lambda m: m.update(rotate=1), BadBundle, "rotate is 1, expected true or false"),
    (lambda m: m.update(family="mamba3"), WrongArchitecture, "'mamba3'.*mamba, mamba2"),
    (lambda m: m.update(family="../bundle"), WrongArchitecture, "family"),
    (lambda m: m["config"].pop("d_state"), BadBundle, "d_state"),
    (lambda m: m["config"].update(d_model=-24), BadBundle, "d_model"),
    (lambda m: m["config"].update(d_model=25), BadBundle, r"sites\['embedding'\] is 40 x 24, expected 40 x 25"),
    (lambda m: m["config"].update(n_layer=10**6), BadBundle, "layers.2.in_proj"),
    (lambda m: m["config"].update(n_layer=1), BadBundle, "layers.1.in_proj"),
    (lambda m: m["config"].update(d_conv=3), BadBundle, r"layers.0.conv.weight is f32 \[64, 4\]"),
    (lambda m: m["config"].update(headdim=24), BadBundle, "in_proj"),
    (lambda m: m["config"].update(tie_embeddings=False), BadBundle, "head|norm_f"),
    (lambda m: m["sites"]["head"].update(bits=3), BadBundle, "bits must be one of"),
    (lambda m: m["sites"]["head"].update(bits=4), BadBundle, "differ in bits"),
    (lambda m: m["sites"]["layers.0.in_proj"].update(group=8), BadBundle, r"in_proj.scales is f16 \[115, 2\]"),
    (lambda m: m["sites"]["layers.0.in_proj"].update(bits=16, act=16), BadBundle, "no tensor layers.0.in_proj.weight"),
    (lambda m: m["sites"]["layers.0.in_proj"].update(act=16), BadBundle, "in_scale, expected none"),
    (lambda m: m["sites"].update(more=m["sites"]["head"]), BadBundle, "sites has 'more'"),
    (lambda m: m.update(vocab_size=41), BadBundle, "vocab_size is 41"),
    (lambda m: m["golden"][0].update(tokens=[40]), BadBundle, "golden has token 40"),
    (lambda m: m["golden"][0].update(prompt=[]), BadBundle, r"golden\[0\].prompt is empty"),
    (lambda m: m["golden"][0].update(top=[[1]]), BadBundle, r"golden\[0\].top"),
    (lambda m: m["tokenizer"].update(eos=[-1]), BadBundle, "tokenizer.eos is -1"),
    (lambda m: m["perplexity"].update(bundle="low"), BadBundle, "perplexity.bundle"),
    (lambda m: m["perplexity"].update(state_i8={"tokens": 9}), BadBundle, "perplexity.state_i8.kl"),
    (lambda m: m.update(chat_template=["x"]), BadBundle, "chat_template is a list, expected text"),
    (lambda m: m["tensors"]["norm_f.weight"].update(layout="n8"), MissingLayout, "norm_f.weight.*'n8'.*upgrade"),
    (lambda m: m["tensors"]["norm_f.weight"].update(dtype="f64"), BadBundle, "f64"),
    (lambda m: m["tensors"]["norm_f.weight"].update(shape=[2**40]), BadBundle, "shape"),
    (lambda m: m["tensors"]["norm_f.weight"].update(shape=[2**20, 2**20, 2**20]), BadBundle, "plausible"),
    (lambda m: m["tensors"]["norm_f.weight"].update(shape=[25]), BadBundle, r"\[25\]"),
    (lambda m: m["tensors"]["tokenizer.json"].update(shape=[65]), BadBundle, "tokenizer.json is stored as"),
    (lambda m: m["tensors"]["norm_f.weight"].update(sha256="0" * 63), BadBundle, "hexadecimal"),
    (lambda m: m["tensors"].pop("tokenizer.json"), BadBundle, "different tensors"),
    (lambda m: m["tensors"].update({"more": m["tensors"]["norm_f.weight"]}), BadBundle, "different tensors"),
    (lambda m: m["tensors"].update({"norm_f.weight": m["tensors"].pop("norm_f.weight")}), BadBundle, "order"),
]


@pytest.mark.parametrize("change, error, words", FORGED)
def test_a_manifest_that_contradicts_itself_is_refused_in_words(change, error, words):
    path, _ = build.write()
    forge(path, change)
    with pytest.raises(error, match=words) as caught:
        Bundle.open(path)
    assert caught.type is error and "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_fields_and_tensors_from_later_writers_are_ignored():
    manifest = build.described()
    logical = {**build.arrays(manifest), "layers.0.note": (np.ones(3, np.float32), "f32", "row")}
    write_bundle("tiny.qedge", manifest, build.stored(logical))
    path, _ = build.write("other.qedge")
    forge(path, lambda m: m.update(later=[1]))
    for name in ("tiny.qedge", "other.qedge"):
        with Bundle.open(name) as bundle:
            assert bundle.verify()


def test_a_mamba1_convolution_writes_what_x_proj_reads():
    for act, scale in ((8, False), (16, True)):
        manifest = build.described("mamba", act=act)
        logical = build.arrays(manifest)
        if scale:
            logical["layers.0.conv.out_scale"] = (np.ones(48, np.float32), "f32", "row")
        else:
            del logical["layers.0.conv.out_scale"]
        with pytest.raises(BadBundle, match=r"layers\.0\.conv\.out_scale"):
            write_bundle("tiny.qedge", manifest, build.stored(logical))


def test_tokenizers_are_decompressed_within_bounds(monkeypatch):
    manifest = build.described()
    logical = build.arrays(manifest)

    def with_tokenizer(raw):
        packed = {**logical, "tokenizer.json": (np.frombuffer(raw, np.uint8), "u8", "row")}
        write_bundle("tiny.qedge", manifest, build.stored(packed))
        with Bundle.open("tiny.qedge") as bundle:
            return bundle.tokenizer_json()

    monkeypatch.setattr("quamba_edge.bundle.reader.MAX_TOKENIZER", 1000)
    assert with_tokenizer(zlib.compress(b"x" * 999)) == "x" * 999
    for raw in (
        zlib.compress(b"x" * 10**6),
        zlib.compress(b"abc")[:-1],
        b"plain",
        zlib.compress(b"\xff"),
        zlib.compress(b"a") * 2,
    ):
        with pytest.raises(BadBundle, match="tokenizer.json cannot be read"):
            with_tokenizer(raw)
    del logical["tokenizer.json"]
    write_bundle("tiny.qedge", manifest, build.stored(logical))
    with Bundle.open("tiny.qedge") as bundle, pytest.raises(BadBundle, match="--tokenizer"):
        bundle.tokenizer_json()


def test_every_architecture_says_what_its_bundles_hold():
    assert sorted(expect.FAMILIES) == known()


def test_a_bundle_replaced_while_open_keeps_its_bytes():
    path, logical = build.write()
    with Bundle.open(path) as bundle:
        build.write(path, seed=1)
        assert np.array_equal(bundle.logical("embedding.scales"), logical["embedding.scales"][0])
        bundle.verify()


def test_a_file_that_shrank_after_opening_is_an_error_not_a_crash():
    path, _ = build.write()
    with Bundle.open(path) as bundle:
        os.truncate(path, header.read(path).size - 64)
        with pytest.raises(Truncated, match="since it was opened"):
            bundle.tensor("tokenizer.json")
        with pytest.raises(HashMismatch):
            bundle.verify()


def test_manifests_with_no_json_form_are_not_written():
    for bad in (float("nan"), object()):
        with pytest.raises(BadBundle, match="manifest"):
            manifest = build.described()
            write_bundle("x", replace(manifest, calibration={"x": bad}), build.stored(build.arrays(manifest)))
    with pytest.raises(BadBundle, match="whole characters"):
        manifest = replace(build.described(), chat_template="\ud800")
        write_bundle("x", manifest, build.stored(build.arrays(manifest)))
    assert os.listdir() == []
