"""The cuda backend with pycuda itself, down to the calls of libcuda; only what is below those is the emulator (csrc/emu/driver).

So argument packing, names, threads, contexts, streams that are late, graph capture and the ends of processes are tested as they are.
"""

import json
import re

import pytest

from quamba_edge.errors import Missing
from tests.cuda import driver
from tests.cuda.test_cubins import why_not as no_cubins
from tests.gpu import own_pycuda
from tests.native.build import why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.skipif(no_cubins() is not None, reason=str(no_cubins())),
    pytest.mark.skipif(not own_pycuda.headers(), reason="no cuda.h: pip install nvidia-cuda-runtime-cu12==12.6.77"),
]
GOLDEN = "tests/golden/mamba2.qedge"


@pytest.fixture(scope="module", autouse=True)
def built():
    try:
        driver.pycuda()
    except Missing as e:
        pytest.skip(str(e))


def clean(ran):
    """It ended as it should, the driver had nothing to complain of, and everything was given back."""
    assert ran.rc == 0, ran.err
    assert not ran.complaints and ran.held == 0 and ran.retained == 0, (ran.complaints, ran.held, ran.retained)
    assert "out-of-thread" not in ran.err and "clean-up" not in ran.err
    return ran


@pytest.mark.parametrize("gpu", ["", "early=1", "integrated=1 backwards=1"])
@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_golden_tokens(family, gpu):
    """Work that waits in the stream as long as it may, and work that is done at once."""
    ran = clean(driver.run("verify", f"tests/golden/{family}.qedge", "--backend", "cuda", gpu=gpu))
    assert "as recorded on the cuda backend" in ran.out and "ops as the reference" in ran.out
    assert ran.calls["cuGraphLaunch"] > 20 and ran.calls["cuGraphExecDestroy"] == ran.calls["cuStreamEndCapture"]
    sources = len(list((driver.CSRC / "cuda").glob("*.cu")))
    assert ran.calls["cuModuleLoadDataEx"] == ran.calls["cuModuleUnload"] == sources, "each cubin is loaded once"


def test_cubins_of_a_hopper():
    clean(driver.run("verify", GOLDEN, "--backend", "cuda", arch=90, gpu="driver=13000"))


def test_talking_and_measuring():
    """Tokens chosen on the device; single launches timed; auto says nothing where all is well."""
    words = ["run", GOLDEN, "--prompt", "hello", "--max-tokens", "4", "--temperature", "0.8", "--seed", "3"]
    ran = clean(driver.run(*words))
    assert "cuda backend" in ran.err and "passed over" not in ran.err
    arguments = ["--backend", "cuda", "--profile", "--prompt-len", "17", "--gen-len", "2", "--repeats", "1", "--json"]
    clean(driver.run("bench", GOLDEN, *arguments))


BROKEN = {
    "too little memory": ("memory=3000000", "GPU memory .*can be had"),
    "an image that the driver refuses": ("fail=cuModuleLoadDataEx:200:3", "cuModuleLoadDataEx failed"),
    "a first launch that fails": ("fail=cuLaunchKernel:209:1", "cuLaunchKernel failed"),
    "no graphs": ("fail=cuStreamEndCapture:901:1", "capture: CUDA_ERROR"),
    "a fault in the middle": ("fail=cuLaunchKernel:700:40", "cuLaunchKernel failed"),
    "a fault in a graph": ("fail=cuGraphLaunch:719:3", "failed|graph launch"),
    "too little memory later": ("fail=cuMemAlloc_v2:2:20", "^$"),  # pycuda collects garbage and asks again
}


@pytest.mark.parametrize("what", BROKEN)
def test_failures_are_one_line_and_an_orderly_end(what):
    gpu, said = BROKEN[what]
    ran = driver.run("run", GOLDEN, "--prompt", "hello", "--max-tokens", "3", "--backend", "cuda", gpu=gpu)
    lines = [x for x in ran.err.splitlines() if x.startswith("quamba-edge: ")]
    if said == "^$":
        assert ran.rc == 0 and not lines
        return
    assert ran.rc == 4 and len(lines) == 1 and "unexpected" not in ran.err and "Traceback" not in ran.err, ran.err
    assert re.search(said, lines[0]), lines
    assert ran.retained == 0 and ran.held == 0


PASSED_OVER = {
    "another GPU": ("sm=86", "no kernels for sm_86 .*make -C csrc cuda ARCHS=86"),
    "an older driver of a board": ("driver=12020 integrated=1", "built with CUDA 12.6, this driver is CUDA 12.2"),
    "a first launch that fails": ("fail=cuLaunchKernel:209:1", "cuLaunchKernel failed"),
    "no GPU": ("devices=0", None),
}


@pytest.mark.parametrize("what", PASSED_OVER)
def test_auto_says_why_it_does_not_take_the_gpu(what):
    gpu, said = PASSED_OVER[what]
    ran = driver.run("run", GOLDEN, "--prompt", "hello", "--max-tokens", "2", gpu=gpu)
    assert ran.rc == 0 and ("cpu backend" in ran.err or "reference backend" in ran.err), ran.err
    told = [x for x in ran.err.splitlines() if "cuda is passed over" in x]
    assert len(told) == (said is not None) and (said is None or re.search(said, told[0])), ran.err
    named = driver.run("run", GOLDEN, "--prompt", "hello", "--max-tokens", "2", "--backend", "cuda", gpu=gpu)
    assert named.rc == 4 and "Traceback" not in named.err


def test_cards_take_cubins_of_a_newer_minor_version():
    clean(driver.run("run", GOLDEN, "--prompt", "hello", "--max-tokens", "1", "--backend", "cuda", gpu="driver=12020"))


CHUNK = """
import json, sys
from pathlib import Path
import numpy as np
from quamba_edge import backends
from tests.cuda.test_whole_model import logits_of
tokens = np.random.default_rng(5).integers(0, 4096, 131)
found, expected = (logits_of(Path(sys.argv[1]), backends.open_backend(n), tokens, prompt=129) for n in ("cuda", "reference"))
print(json.dumps(float(np.abs(found - expected).max() / np.abs(expected).max())))
"""


def test_a_long_chunk():
    """8-bit products of 64 tokens want more shared memory than every block may have."""
    ran = clean(driver.Ran(CHUNK, "tests/golden/mamba.qedge"))
    assert ran.last < 0.08 and ran.calls["cuFuncSetAttribute"] > 0


PIECES = """
import gc, json
import numpy as np
from quamba_edge.backends import cuda
cuda.SEGMENT = 2 << 20
backend = cuda.make()
block = backend.alloc((5 << 20,), "i8")
values = np.random.default_rng(1).integers(-99, 99, 5 << 20).astype(np.int8)
zeros = bool((backend.download(block) == 0).all())
backend.upload(block, values)
same = bool((backend.download(block) == values).all())
speed = backend.copy_bandwidth(None, 1)
del block
gc.collect()
backend.sync()
print(json.dumps([zeros, same, speed > 0]))
"""


def test_large_memory_is_several_pieces():
    ran = clean(driver.Ran(PIECES))
    assert json.loads(ran.out) == [True, True, True]
    assert 3 < ran.calls["cuMemCreate"] == ran.calls["cuMemUnmap"] == ran.calls["cuMemRelease"]
    assert ran.calls["cuMemAddressReserve"] == ran.calls["cuMemAddressFree"] == 3


def test_a_driver_that_cannot_map_after_all_gives_one_piece():
    ran = driver.Ran(PIECES, gpu="fail=cuMemMap:801:1")
    assert ran.rc == 0 and json.loads(ran.out) == [True, True, True] and ran.calls["cuMemMap"] == 1
    assert ran.held == 0 and ran.calls["cuMemAddressReserve"] == ran.calls["cuMemAddressFree"] == 1


CHECK = """
import sys
from pathlib import Path
from tests.gpu import steps
from tests.gpu.check import check_all
from tests.gpu.test_check import tiny
steps.WAYS = steps.WAYS[-1:]
check = steps.Check(
    Path(sys.argv[1]) / "work", Path(sys.argv[1]) / "gpu.md", models=(tiny("mamba"),), large=tiny("mamba2"), recipes=("w16a16", "w4a8"),
    layers=None, prompt=20, tokens=2, text=3, repeats=1, bundles=(Path("tests/golden/mamba2.qedge"),),
)
sys.exit(not check_all(check, ["sampling", "kernels", "speed"]))
"""


def test_the_steps_of_gpu_check(tmp_path):
    """As `make gpu-check` takes them on a GPU, on models of one small layer."""
    ran = clean(driver.Ran(CHECK, str(tmp_path)))
    assert "to w16a16" in (tmp_path / "gpu.md").read_text() and ran.calls["cuMemcpyDtoDAsync_v2"] > 0


def test_sessions_keep_their_promises():
    """Splits of a prompt, several sessions at once, saving and going on, all on the device, to the bit where that is said."""
    ran = clean(driver.Ran("import pytest\nfrom tests.gpu.steps import SESSIONS\nsys.exit(pytest.main(SESSIONS[2:]))"))
    assert " passed" in ran.out
