"""Cubins for the board, compiled here: what they are, what is refused, what ptxas says of them.  Nothing runs them."""

import importlib.util
import json
import sys

import pytest

from quamba_edge import models
from quamba_edge.backends import cubin, launch
from quamba_edge.bundle.outline import outline
from quamba_edge.models import published
from quamba_edge.ops.op import all_ops
from quamba_edge.quant.recipe import shipped
from quamba_edge.runtime.engine import CHUNKS
from tests.native.build import CSRC
from tests.ops import harness

_spec = importlib.util.spec_from_file_location("cubins", CSRC / "cubins.py")
cubins = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cubins)


def why_not() -> str | None:
    try:
        cubins.compiler()
    except cubins.Absent as e:
        return str(e)
    return None


needs_compiler = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cubins")
    return folder / "sm_87", cubins.build(folder, 87)


@needs_compiler
def test_they_are_what_jetpack_6_takes(built):
    """CUDA 12.6's ELF for sm_87, every kernel of the table in its file, and cubins.json says so."""
    folder, record = built
    assert json.loads((folder / "cubins.json").read_text()) == record
    assert set(record["files"]) == {p.stem for p in (CSRC / "cuda").glob("*.cu")}
    for stem, file in record["files"].items():
        header = cubin.read(folder / f"{stem}.cubin")
        assert (header.abi, header.sm) == (7, 87) and header.toolkit[0] == 12 and header.toolkit <= (12, 6)
        assert cubin.refused(header, (12, 6), 87) is None and cubin.refused(header, (13, 2), 87) is None
        assert sorted(file["kernels"]) == sorted(launch.kernels(stem))
        data = (folder / f"{stem}.cubin").read_bytes()
        assert len(data) == file["bytes"] and all(name.encode() in data for name in file["kernels"])


@needs_compiler
def test_nothing_spills_and_every_block_fits(built):
    """Registers of a whole block within an SM's 65536, and no static shared memory: the launch's is all there is."""
    used = {name: facts for file in built[1]["files"].values() for name, facts in file["kernels"].items()}
    for name, facts in used.items():
        assert facts["spilled"] == 0 and "static_shared" not in facts, f"{name}: {facts}"
    for op in all_ops().values():
        for case in op.cases:
            for state in launch.STATES:
                what = launch.launch(op, harness.sizes_of(op, case)[0], state)
                assert used[what.kernel]["registers"] * what.block <= 65536, f"{what}: {used[what.kernel]}"
    for what, _ in launch.sample(256000):
        assert used[what.kernel]["registers"] * what.block <= 65536


@needs_compiler
def test_published_shapes_are_within_what_a_gpu_has(built):
    """Every launch of every published size and recipe, decoding and in every chunk, for one sequence and for eight."""
    used = {name: facts for file in built[1]["files"].values() for name, facts in file["kernels"].items()}
    for name in published.NAMES:
        family, config = published.config(name)
        program = models.find(family, "program").program
        for recipe in ("w4a8", "w4a16", "w8a8", "w16a16"):
            manifest = outline(family, config, shipped(recipe, small=False))
            steps = {}
            for sequences, tokens in [(s, t) for s in (1, 8) for t in (1, *CHUNKS)]:
                for step in program(manifest, sequences, tokens, "last").steps:
                    steps[step.op.name, tuple(step.sizes.items())] = step
            for step, state in [(s, d) for s in steps.values() for d in launch.STATES]:
                what = launch.launch(step.op, step.sizes, state)
                registers = -(-used[what.kernel]["registers"] // 8) * 8
                assert registers * what.block <= 65536 and what.block <= 1024, f"{name} {recipe}: {what}"
                assert 0 < min(what.grid) and max(what.grid[1:]) <= 65535, f"{name} {recipe}: {what}"


@needs_compiler
def test_what_is_up_to_date_is_left_alone(built):
    folder, record = built
    before = (folder / "linear.cubin").stat().st_mtime_ns
    assert cubins.build(folder.parent, 87) == record
    assert (folder / "linear.cubin").stat().st_mtime_ns == before
    (folder / "sample.cubin").write_bytes(b"")
    assert cubins.up_to_date(folder, record["toolkit"], record["sources"]) is None


@needs_compiler
def test_a_kernel_that_does_not_compile_is_an_error(tmp_path):
    source = tmp_path / "bad.cu"
    source.write_text('#include "../common/device.cuh"\nextern "C" __global__ void bad() { nonsense }\n')
    with pytest.raises(cubins.Broken, match='identifier "nonsense" is undefined'):
        cubins.compiler().compile(source, 87, tmp_path / "bad.cubin")
    assert not (tmp_path / "bad.cubin").exists()


def fake_nvcc(folder, version):
    path = folder / "nvcc"
    path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.0'\n")
    path.chmod(0o755)
    return str(path)


def test_newer_toolkits_are_refused_with_the_reason(tmp_path, monkeypatch, capsys):
    """And a run of the script ends in status 3, having written nothing."""
    monkeypatch.setattr(cubins, "find_spec", lambda name: None)
    for version, suits in (("13.0", False), ("12.8", False), ("12.6", True), ("12.2", True), ("11.4", False)):
        monkeypatch.setenv("NVCC", fake_nvcc(tmp_path, version))
        if suits:
            assert cubins.compiler().name == f"nvcc {version}"
        else:
            with pytest.raises(cubins.Absent, match=f"is CUDA {version}, .*JetPack 6.*pip install nvidia-cuda-nvrtc"):
                cubins.compiler()
    monkeypatch.setattr(sys, "argv", ["cubins.py", str(tmp_path / "out")])
    assert cubins.main() == 3
    assert "cubins skipped" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_what_ptxas_says_is_read():
    log = """ptxas info    : Compiling entry function 'quantize_i8' for 'sm_87'
ptxas info    : Function properties for quantize_i8
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 20 registers, 128 bytes smem, 380 bytes cmem[0]
"""
    assert cubins.resources(log) == {"quantize_i8": {"spilled": 8, "registers": 20, "static_shared": 128}}
