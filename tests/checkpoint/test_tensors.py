"""Reading tensors from files, and files that are damaged or something else."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge.checkpoint import open_checkpoint
from quamba_edge.checkpoint.tensors import open_file
from quamba_edge.errors import BadCheckpoint
from tests.checkpoint.refusal import refused
from tests.tiny import write_checkpoint

CONV = "backbone.layers.1.mixer.conv1d.weight"


@given(data=st.data())
@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
def test_rows_are_the_slice(tmp_path_factory, bin, data):
    folder = tmp_path_factory.getbasetemp() / f"rows-{bin}"
    if not folder.exists():
        write_checkpoint(folder, "mamba2", bin=bin)
    checkpoint = open_checkpoint(folder)
    name = data.draw(st.sampled_from(["lm_head.weight", CONV, "backbone.norm_f.weight"]))
    whole = checkpoint.tensor(name)
    bound = st.none() | st.integers(-2 * len(whole), 2 * len(whole))
    rows = slice(data.draw(bound), data.draw(bound))
    assert torch.equal(checkpoint.tensor(name, rows), whole[rows])


@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_tensors_keep_their_dtype_and_are_the_readers_own(tmp_path, dtype, bin):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, "mamba", dtype=dtype, bin=bin))
    found = checkpoint.tensor(CONV)
    assert found.dtype == dtype and checkpoint.tensor("backbone.layers.0.mixer.A_log").dtype == torch.float32
    found.zero_()
    assert checkpoint.tensor(CONV).abs().sum() > 0


def test_a_bin_is_mapped_anew_after_much_reading(tmp_path, monkeypatch):
    monkeypatch.setattr("quamba_edge.checkpoint.tensors.REMAP", 1000)
    write_checkpoint(tmp_path, "mamba", bin=True)
    file = open_file(tmp_path / "pytorch_model.bin")
    first = file.read(CONV, None)
    file.read("backbone.embedding.weight", None)
    assert file._tensors is None
    assert torch.equal(file.read(CONV, None), first)


@pytest.mark.parametrize("bin", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("keep", [0, 5, 300, -100, -1])
def test_truncated_files(tmp_path, keep, bin):
    write_checkpoint(tmp_path, "mamba", bin=bin)
    path = tmp_path / ("pytorch_model.bin" if bin else "model.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    refused(tmp_path, path, "again")


def with_header(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


F32 = lambda begin, end, shape: {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content, says",
    [
        (with_header({"a": F32(0, 8, [2])}, bytes(9)), "promises"),
        (with_header({"a": F32(0, 8, [3])}, bytes(8)), "a: lies at bytes 0 to 8"),
        (with_header({"a": F32(0, 8, [2]), "b": F32(4, 12, [2])}, bytes(12)), "b: lies"),
        (with_header({"a": F32(0, 8, [2]), "b": F32(12, 20, [2])}, bytes(20)), "b: lies"),
        (with_header({"a": F32(8, 0, [2])}, bytes(8)), "a: lies"),
        (with_header({"a": F32(-8, 0, [2])}, bytes(8)), "data_offsets"),
        (with_header({"a": F32(0, 8, [-2])}, bytes(8)), "shape"),
        (with_header({"a": F32(0, 8, [True, 2])}, bytes(8)), "shape"),
        (with_header({"a": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "F31"),
        (with_header({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "dtype"),
        (with_header({"a": 3}), "data_offsets"),
        (with_header([1]), "no object"),
        (with_header(b'{"a": 1, "a": 2}'), "twice"),
        (with_header(b"{" + b'"a":[' * 100000), "not JSON"),
        (with_header(b"\xff\xfe"), "not JSON"),
        (struct.pack("<Q", 2**60), "header"),
        (b"GGUF" + bytes(100), "safetensors"),
        (b"", "safetensors"),
    ],
    ids=range(18),
)
def test_damaged_safetensors_headers(tmp_path, content, says):
    write_checkpoint(tmp_path, "mamba")
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(tmp_path, tmp_path / "model.safetensors", says)


@given(data=st.data())
def test_no_single_changed_header_byte_passes_or_crashes(tmp_path_factory, data):
    """Either it is refused, or the file still says what config.json expects (a byte of padding, of the metadata)."""
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not folder.exists():
        write_checkpoint(folder, "mamba", n_layer=1)
        (folder / "original").write_bytes((folder / "model.safetensors").read_bytes())
    content = bytearray((folder / "original").read_bytes())
    length = int.from_bytes(content[:8], "little")
    at, value = data.draw(st.integers(0, 8 + length - 1)), data.draw(st.integers(0, 255))
    content[at] = value
    (folder / "model.safetensors").write_bytes(content)
    try:
        checkpoint = open_checkpoint(folder)
    except BadCheckpoint as e:
        assert "model.safetensors" in str(e) or str(folder) in str(e)
    else:
        assert all(checkpoint.tensor(n).shape == checkpoint.shape(n) for n in checkpoint.names())


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    write_checkpoint(tmp_path, "mamba")
    checkpoint = open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"gone")
    with pytest.raises(BadCheckpoint, match="shorter"):
        checkpoint.tensor(CONV)


class Trap:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize(
    "content", [{"a": Trap()}, [1, 2], {"model": {"a": torch.zeros(2)}}], ids=["code", "list", "nested"]
)
def test_a_pickle_of_something_else(tmp_path, content, capsys):
    write_checkpoint(tmp_path, "mamba", bin=True)
    torch.save(content, tmp_path / "pytorch_model.bin")
    refused(tmp_path, tmp_path / "pytorch_model.bin")
    assert "never" not in capsys.readouterr().out
