"""The steps of `make gpu-check`: each does its part and returns Markdown; what fails or misses a target is noted in the Check."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quamba_edge.apps.bench import bench
from quamba_edge.apps.evaluate import evaluate
from quamba_edge.backends import cpu as cpu_backend
from quamba_edge.backends import cuda, open_backend
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import Missing
from quamba_edge.runtime.engine import CHUNKS, Engine
from quamba_edge.runtime.model import generate, load
from quamba_edge.runtime.sampling import Sampling
from tests.gpu import measures, own_pycuda, random_bundle, tables

ROOT = Path(__file__).resolve().parents[2]
EQUAL = 2e-3  # relative difference of perplexities: int8 codes at ties round either way


@dataclass
class Check:
    """What the steps are told.  `open` gives the backend that is checked; `layers` shortens the models for kernels."""

    folder: Path
    document: Path
    open: Callable[[], Any] = lambda: open_backend("cuda")
    name: str = "cuda"
    models: tuple[Any, ...] = ("mamba2-2.7b", "mamba-2.8b")
    large: Any = "mamba2-8b"
    recipes: tuple[str, ...] = ("w16a16", "w4a8", "w4a16", "w8a8")
    layers: int | None = 8
    prompt: int = 512
    tokens: int = 64
    text: int = 1500
    repeats: int = 3
    bundles: tuple[Path, ...] = ()
    command: str = "python -m tests.gpu.check"
    failed: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)


def run(command: list[str], check: Check, what: str) -> str:
    """The last line of what a command said; its failure is the check's."""
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = (ran.stdout + ran.stderr).strip().splitlines()
    if ran.returncode:
        check.failed.append(f"{what}: {' '.join(command)} ended with {ran.returncode}: " + " / ".join(said[-3:]))
    return said[-1] if said else ""


def cubins(check: Check) -> list[str]:
    """With CUDA 12.6's compiler; for a card, which is no board, with any nvcc where that is not here; else what is there already."""
    _, sm, board = cuda._machine(cuda._driver())
    ways = [[]] if board or sm == 87 else [[], ["--any"]]
    for way in ways:
        command = [sys.executable, "csrc/cubins.py", str(cuda.CUBINS), "--arch", str(sm), *way]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        said = (ran.stdout + ran.stderr).strip()
        if ran.returncode != 3:  # 3: no compiler for it
            break
    if ran.returncode not in (0, 3):
        check.failed.append(f"cubins: {said[-400:]}")
    file = cuda.CUBINS / f"sm_{sm}" / "cubins.json"
    if not file.exists():
        raise Missing(
            f"there are no cubins for sm_{sm} ({said}): make -C csrc cuda ARCHS={sm} on a machine that can, and bring {file.parent}"
        )
    record = json.loads(file.read_text())
    spilled = sum(k.get("spilled", 0) for f in record["files"].values() for k in f["kernels"].values())
    return [f"{len(record['files'])} cubins for sm_{sm} with {record['toolkit']}; spilled bytes: {spilled}.", ""]


def site(check: Check) -> Path:
    """Where a pycuda that was compiled for this check is unpacked: no environment is changed."""
    return check.folder / f"site-{sys.version_info[0]}.{sys.version_info[1]}"


def use_own_pycuda(check: Check) -> None:
    """Let this process and those that it starts find it, if there is one."""
    place = str(site(check))
    if site(check).is_dir() and place not in sys.path:
        sys.path.insert(0, place)
        os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (place, os.environ.get("PYTHONPATH")) if p)
        invalidate_caches()


def pycuda(check: Check) -> list[str]:
    if subprocess.run([sys.executable, "-c", "import pycuda.driver"], capture_output=True).returncode:
        libcuda = own_pycuda.library()
        if libcuda is None:
            raise Missing("there is no libcuda.so.1")
        shutil.rmtree(site(check), ignore_errors=True)
        shutil.unpack_archive(own_pycuda.wheel(check.folder / "pycuda", libcuda), site(check), "zip")
        use_own_pycuda(check)
    if reason := cuda.why_not():
        check.failed.append(f"the cuda backend cannot run here: {reason}")
    opened = "from quamba_edge.backends import cuda; cuda.make(); import pycuda; print('pycuda', pycuda.VERSION_TEXT)"
    return [
        f"{run([sys.executable, '-c', opened], check, 'pycuda')}: a context, the kernels, a first launch and a graph.",
        "",
    ]


TESTS = ["-m", "pytest", "-q", "tests/ops", "tests/golden", "tests/backends", "-k", "cuda"]


# What sessions promise, with engines on the GPU; the models are torch's.
SESSIONS = [
    "-m",
    "pytest",
    "-q",
    "-p",
    "tests.gpu.on_cuda",
    "tests/runtime/test_session.py",
    "tests/runtime/test_saved.py",
]
SESSIONS += ["--deselect", "tests/runtime/test_session.py::test_importing_needs_no_torch"]


def tests(check: Check) -> list[str]:
    lines = [f"* Every op and both golden bundles: {run([sys.executable, *TESTS], check, 'tests')}"]
    sessions = (
        run([sys.executable, *SESSIONS], check, "sessions") if find_spec("torch") else "not run, for want of torch"
    )
    return [*lines, f"* Sessions: splits of a prompt, several at once, saving and going on: {sessions}", ""]


def sanitizer(check: Check) -> list[str]:
    if shutil.which("compute-sanitizer") is None:
        return ["Not run: compute-sanitizer is not here; it comes with the CUDA toolkit.", ""]
    trivial = ["compute-sanitizer", sys.executable, "-c", "from quamba_edge.backends import cuda; cuda.make()"]
    ran = subprocess.run(trivial, cwd=ROOT, capture_output=True, text=True)
    if "not supported" in ran.stdout + ran.stderr:  # some virtual machines
        return ["Not run: compute-sanitizer does not support this device here.", ""]
    lines = []
    for tool in ("memcheck", "racecheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", sys.executable]
        lines += [f"* {tool}: {run([*command, *TESTS[:4], '-k', 'cuda'], check, tool)}"]
    return [*lines, ""]


def perplexity(check: Check) -> list[str]:
    """Of text that the CPU's backend writes: what the model is sure of, and what it is not."""
    if cpu_backend.why_not():
        run([sys.executable, "setup.py", "-q", "build_native", "--build-lib=."], check, "the cpu backend")
    rows = []
    for path in check.bundles or _storytellers(check):
        model, text = load(path, "auto" if cuda.why_not() else "cpu"), check.folder / f"{path.stem}.txt"
        sampling = Sampling(temperature=1.0, seed=5)
        text.write_text("".join(s.text for s in generate(model, "Once", sampling=sampling, max_tokens=check.text)))
        model.bundle.close()
        cpu = evaluate(str(path), text, window=256, backend=model.engine.backend.name).perplexity
        gpu = evaluate(str(path), text, window=256, backend=check.open()).perplexity
        rows.append((path.name, cpu, gpu))
        if not abs(gpu / cpu - 1) < EQUAL:
            check.failed.append(f"perplexity of {path.name}: {gpu:.4f} on the GPU, {cpu:.4f} on the CPU")
        if check.name == "cuda":
            run([sys.executable, "-m", "quamba_edge", "verify", str(path), "--backend", "cuda"], check, "verify")
    return tables.perplexities(rows)[0]


WAYS = (
    Sampling(),
    Sampling(temperature=1.0, seed=1),
    Sampling(temperature=0.8, top_k=40, seed=2),
    Sampling(temperature=1.0, top_p=0.9, min_p=0.02, repetition_penalty=1.1, frequency_penalty=0.2, seed=3),
)


def sampling(check: Check) -> list[str]:
    """The GPU's choice against the host's, from the same kernels' logits and with the same random numbers."""
    told = 0
    for path in check.bundles or _storytellers(check):
        model = load(path, check.open())
        plan = model.engine.plan(1, 1, "last")
        chooser, found = plan.chooser, []
        for way in WAYS:
            for plan.chooser in (chooser, None):
                steps = generate(model, "Once", sampling=way, max_tokens=max(3, check.text // 10))
                found.append([s.token for s in steps])
            told += len(found[-1])
            if found[-1] != found[-2]:
                check.failed.append(f"{path.name}: the GPU chooses other tokens than the host with {way}")
        model.bundle.close()
    return [f"{told} tokens chosen on the GPU, and by the host from the same logits; settings: {len(WAYS)}.", ""]


def _storytellers(check: Check) -> list[Path]:
    found = sorted((ROOT / "tests" / "golden").glob("*.qedge"))
    for name in ("storyteller-mamba2-5m", "storyteller-mamba1-5m"):
        path = check.folder / f"{name}.qedge"
        if not path.exists() and find_spec("torch"):  # without it only what is packed already
            command = [
                sys.executable,
                "-m",
                "quamba_edge",
                "pack",
                str(ROOT / "demos" / "models" / name),
                "-o",
                str(path),
            ]
            run([*command, "--recipe", "w4a8", "--calib-samples", "32", "--calib-len", "256"], check, "pack")
        found += [path] if path.exists() else []
    return found


def kernels(check: Check) -> list[str]:
    lines = []
    for model in (*check.models, *([check.large] if check.large else [])):
        for recipe in ("w4a8", "w4a16", "w8a8"):
            if recipe not in check.recipes:
                continue
            path = _written(check, model, recipe, check.layers)
            with Bundle.open(path, verify=False) as bundle:
                engine = Engine(bundle, check.open())
                copy = engine.backend.copy_bandwidth(min(256 << 20, path.stat().st_size))
                for tokens in (1, CHUNKS[0] if check.layers else CHUNKS[1]):
                    said, missed = tables.kernels(
                        f"{_name(model)} {recipe}", measures.kernels(engine, tokens, copy), copy
                    )
                    lines += said
                    check.missed += missed
                del engine
            path.unlink()
    return lines


def speed(check: Check) -> list[str]:
    lines = []
    for model in check.models:
        found = {}
        for recipe in check.recipes:
            path = _written(check, model, recipe, None)
            one = bench(
                path, prompt_len=check.prompt, gen_len=check.tokens, repeats=check.repeats, backend=_opened(check)
            )
            found[recipe] = one.decode_tps, one.prefill_tps, one.gbps
            path.unlink()
        said, missed = tables.speeds(f"{_name(model)}, prompt of {check.prompt}, {check.tokens} tokens after it", found)
        lines += said
        check.missed += missed
    return lines


def loading(check: Check) -> list[str]:
    path = _written(check, check.large, "w4a8", None)
    if check.name == "cuda":
        said = run([sys.executable, "-m", "tests.gpu.measures", "load", str(path), "cuda"], check, "load")
        if not said.startswith("{"):
            return [f"Failed: {said}", ""]
        found = measures.Load(**json.loads(said))
    else:
        found = measures.load(path, check.open())
    path.unlink()
    lines, missed = tables.loading(f"{_name(check.large)} w4a8", found)
    check.missed += missed
    return lines


def _opened(check: Check) -> Any:
    return check.name if check.name == "cuda" else check.open()


def _name(model: Any) -> str:
    return model if isinstance(model, str) else model[0]


def _written(check: Check, model: Any, recipe: str, layers: int | None) -> Path:
    path = check.folder / "random.qedge"
    random_bundle.write(path, model, recipe, layers)
    return path
