"""Two files on a board that has Python and nothing else: install without a network, the first token, the words an x86 says.

`make test-arm64-root`.  The root is real, the processor is emulated: what works here works on a board, and takes other times there.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quamba_edge.apps.run import run
from quamba_edge.bundle.reader import Bundle
from quamba_edge.runtime.sampling import Sampling
from quamba_edge.runtime.session import Engine, Session
from quamba_edge.runtime.tokenizer import Tokenizer
from tests.arm64root import root
from tests.arm64root.conftest import MODELS, VENV, Report
from tests.arm64root.root import Board, Ran

PROMPT = "<|endoftext|>User: Tell me a story about a dog named Tim.\nAssistant:"
TOKENS = 96
OLD = "cortex-a57"  # of the first Jetson Nano: no dot products, so the plain kernels

# Where a code rounds the other way at a tie the logits differ by this much (tests/golden), and what follows may differ.
NEAR = 0.5

pytestmark = pytest.mark.arm64


def test_the_root_has_python_and_nothing_else(board: Board) -> None:
    for name in ("numpy", "tokenizers", "safetensors", "jinja2", "quamba_edge"):
        assert board.run("python3", "-c", f"import {name}").code != 0, name
    for program in ("gcc", "g++", "make", "pip"):
        assert board.run("which", program).code != 0, program
    network = "import socket; socket.create_connection(('1.1.1.1', 80), 3)"
    assert "Network is unreachable" in board.run("python3", "-c", network).err
    assert board.must("uname", "-m").out == "aarch64\n"


def test_doctor(installed: Board, report: Report) -> None:
    ran = installed.must(f"{VENV}/quamba-edge", "doctor", "--json", "--bundle", "/root/mamba2.qedge")
    report.add("quamba-edge doctor", ran)
    said = json.loads(ran.out.splitlines()[-1])
    states = {f["name"]: f["state"] for f in said["findings"]}
    assert said["ok"] and "missing" not in states.values(), ran.out
    for name in ("python", "numpy", "tokenizers", "safetensors", "jinja2", "backend cpu", "backend reference"):
        assert states[name] == "ok", (name, said["findings"])


def test_importing_takes_no_more_than_it_should(installed: Board, report: Report) -> None:
    report.add("python -c pass", installed.must(f"{VENV}/python", "-c", "pass"))
    report.add("quamba-edge --version", installed.must(f"{VENV}/quamba-edge", "--version"))


def said_here(bundle: Path) -> dict:
    return vars(run(bundle, PROMPT, sampling=Sampling(temperature=0), max_tokens=TOKENS, backend="cpu"))


def said_there(board: Board, family: str, cpu: str | None = None) -> tuple[dict, Ran]:
    command = [
        f"{VENV}/quamba-edge",
        "run",
        f"/root/{family}.qedge",
        "--json",
        "--backend",
        "cpu",
        "--temperature",
        "0",
    ]
    whole = [*command, "--prompt", PROMPT, "--max-tokens", str(TOKENS)]
    ran = root.enter(whole, changes=board.changes, cpu=cpu or board.cpu)
    assert ran.code == 0, ran.out + ran.err
    return json.loads(ran.out.splitlines()[-1]), ran


@pytest.mark.parametrize("cpu", [None, OLD], ids=["neon", "plain"])
@pytest.mark.parametrize("family", MODELS)
def test_the_same_words_as_on_x86(installed: Board, bundles, family: str, cpu: str | None, report: Report) -> None:
    here = said_here(bundles[family])
    there, ran = said_there(installed, family, cpu)
    assert there["backend"] == "cpu" and there["tokens"] >= 64
    same = next((i for i, (a, b) in enumerate(zip(here["ids"], there["ids"])) if a != b), len(here["ids"]))
    step = f"run: {same} of {TOKENS} tokens as on x86 ({family}, {'plain' if cpu else 'neon'})"
    report.add(step, ran, ttft_ms=there["ttft_ms"], text=there["text"])
    if here["ids"] != there["ids"]:
        assert_a_tie(bundles[family], here["ids"][:same], there["ids"][same])


def assert_a_tie(bundle: Path, said: list[int], other: int) -> None:
    """After the words both said, the other token is as likely here as the one that is likeliest, within rounding."""
    with Bundle.open(bundle) as opened:
        prompt = Tokenizer(opened.tokenizer_json()).encode(PROMPT)
        logits = Session(Engine(opened, "cpu")).prefill(np.array([*prompt, *said]))
    assert logits.max() - logits[other] < NEAR, f"token {len(said)}: {other} instead of {int(np.argmax(logits))}"


@pytest.mark.parametrize("family", MODELS)
def test_verify(installed: Board, family: str, report: Report) -> None:
    """The recorded tokens and logits, and every op against the reference, on the board itself."""
    ran = installed.must(f"{VENV}/quamba-edge", "verify", f"/root/{family}.qedge", "--backend", "cpu")
    report.add(f"quamba-edge verify ({family})", ran)
