"""`quamba-edge chat` as people and scripts meet it: through a pipe, on a terminal, with Ctrl-C and SIGTERM."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from quamba_edge.apps.terminal import CONTROLS
from quamba_edge.runtime import saved
from quamba_edge.runtime.model import load
from tests.apps import tiny_bundle
from tests.apps.screen import Screen

ENDLESS = ["--max-tokens", "100000", "--logit-bias", "0=-100"]  # the model never says that it is done


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.write(tmp_path_factory.mktemp("chat") / "tiny.qedge")


@pytest.fixture
def command(bundle, repo, tmp_path):
    """Arguments of a process, and its environment."""
    env = {**os.environ, "PYTHONPATH": str(repo), "XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "xterm"}
    env |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    env.pop("NO_COLOR", None)

    def make(*options):
        start = [
            sys.executable,
            "-m",
            "quamba_edge",
            "chat",
            str(bundle),
            "--backend",
            "reference",
            "--temperature",
            "0",
        ]
        return [*start, *options], env

    return make


def piped(command, lines, *options):
    argv, env = command(*options)
    return subprocess.run(argv, input="\n".join(lines) + "\n", capture_output=True, text=True, env=env, timeout=120)


def test_a_script_talks_through_a_pipe(command):
    """Answers on stdout, notes on stderr, not one escape sequence; every command answers."""
    lines = ["hi", "/retry", "/stats", "/undo", "go on", "/save tale", "/list", "more", "/load tale", "/undo", "/reset"]
    lines += [
        "/system be kind",
        "hi",
        "/system",
        "/help",
        "/frob",
        "/save",
        "/load none",
        "//slash",
        "two\\",
        "lines",
        "/undo",
        "/undo",
        "/undo",
    ]
    done = piped(command, [*lines, "/exit", "never"], "--max-tokens", "5", "--json")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["answers"], result["ended"], result["backend"]) == (7, "/exit", "reference")
    assert result["prefilled_tokens"] + result["reused_tokens"] == result["prompt_tokens"]
    notes = done.stderr
    for expected in [
        r"\[5 tokens \(length\), \d+\.\d tokens/s, first after \d+ ms, read \d+ of \d+, \d+ MB",
        r"read 0 of 19",
        r"the likeliest tokens are the same every time",
        r"text +\d+ tokens in 1 turns",
        r"took back 'hi': 0 turns left, 0 tokens",
        r"saved tale\.qsession: \d+ tokens in \d+ bytes",
        r"tale\.qsession  \d+ tokens, \d+ bytes, mamba2 f16",
        r"loaded tale\.qsession: \d+ tokens, nothing read again, 1 turns to undo",
        r"begun anew, with this system prompt",
        r"begun anew, without a system prompt",
        r"/save FILE",
        r"there is no command /frob: /help lists them",
        r"/save needs a file: /save NAME",
        r"none\.qsession does not exist",
        r"took back 'two\\nlines'",
        r"took back '/slash'",
        r"there is nothing to undo",
    ]:
        assert re.search(expected, notes), f"{expected}\n{notes}"


def test_a_session_file_is_there_again_next_time(command, tmp_path):
    first = piped(command, ["hi"], "--session", "tale.qsession", "--max-tokens", "5", "--json")
    second = piped(command, ["more"], "--session", "tale.qsession", "--max-tokens", "5", "--json")
    both = piped(command, ["hi", "more"], "--max-tokens", "5", "--json")
    assert first.returncode == second.returncode == both.returncode == 0
    assert first.stdout.splitlines()[:-1] + second.stdout.splitlines()[:-1] == both.stdout.splitlines()[:-1]
    one, two = (json.loads(p.stdout.splitlines()[-1]) for p in (first, second))
    assert two["reused_tokens"] == one["session_tokens"] == two["prompt_tokens"] - two["prefilled_tokens"]
    other = piped(command, ["hi"], "--session", "tale.qsession", "--system", "be kind")
    assert other.returncode == 2 and "not begun with this system prompt" in other.stderr
    undone = piped(command, ["/undo"], "--session", "tale.qsession")
    assert "1 turns left" in undone.stderr
    third = piped(command, ["more"], "--session", "tale.qsession", "--max-tokens", "5")
    assert third.stdout.splitlines() == second.stdout.splitlines()[:-1] and "1 turns to undo" in third.stderr
    nowhere = piped(command, ["hi"], "--session", "none/tale.qsession")
    assert nowhere.returncode == 2 and "mkdir -p none" in nowhere.stderr and nowhere.stdout == ""
    foreign = piped(command, ["hi"], "--session", "tale.qsession", "--state-dtype", "f32")
    assert foreign.returncode == 3 and "open the bundle with --state-dtype f16" in foreign.stderr


def test_run_takes_a_session_file_too(bundle, repo, tmp_path):
    argv = [
        sys.executable,
        "-m",
        "quamba_edge",
        "run",
        str(bundle),
        "--backend",
        "reference",
        "--max-tokens",
        "4",
        "--session",
        "s",
        "--json",
    ]
    found = []
    for prompt in ("Once", " upon"):
        done = subprocess.run(
            [*argv, "--prompt", prompt], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(repo)}
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert (found[0]["reused_tokens"], found[0]["prefilled_tokens"]) == (0, 4)
    assert (found[1]["reused_tokens"], found[1]["prefilled_tokens"], found[1]["reuse_note"]) == (8, 5, None)
    session = saved.load(tmp_path / "s", load(bundle, "reference").engine)
    words = load(bundle, "reference").tokenizer.decode(session.tokens)
    assert words == "Once" + found[0]["text"] + " upon" + found[1]["text"]


def test_a_model_without_a_template_says_so(command, tmp_path):
    plain = tiny_bundle.write(tmp_path / "plain.qedge", chat_template=None)
    argv, env = command("--max-tokens", "3")
    argv[4] = str(plain)
    done = subprocess.run(argv, input="Once\n/system be kind\n", capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "it continues your text as it stands" in done.stderr
    assert "no place for a system prompt" in done.stderr
    refused = subprocess.run([*argv, "--system", "x"], input="", capture_output=True, text=True, env=env)
    assert refused.returncode == 2 and "leave --system away" in refused.stderr


def test_sigterm_in_an_answer_saves_and_leaves(command, bundle, tmp_path):
    """Exit code 0, and the session file holds the answer so far; it was never half a file."""
    argv, env = command(*ENDLESS, "--session", "tale.qsession")
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    process.stdin.write(b"hi\n")
    process.stdin.flush()
    assert len(process.stdout.read(30)) == 30, "the answer has begun"
    process.send_signal(signal.SIGTERM)
    rest, notes = process.communicate(timeout=60)
    assert process.returncode == 0, notes
    assert b"(stopped)" in notes
    model = load(bundle, "reference")
    session = saved.load(tmp_path / "tale.qsession", model.engine)
    assert session.count > 30 and len(model.tokenizer.decode(session.tokens)) >= len(rest) + 30
    assert sorted(p.name for p in tmp_path.glob("*tale*")) == ["tale.qsession", "tale.qsession.json"]


def test_sigterm_while_it_waits_leaves(command):
    argv, env = command()
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert b"/help" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    process.communicate()


def test_sigkill_leaves_the_session_that_was_saved(command, bundle, tmp_path):
    argv, env = command("--max-tokens", "5", "--session", "tale.qsession")
    subprocess.run(argv, input=b"hi\n", env=env, capture_output=True, check=True)
    before = (tmp_path / "tale.qsession").read_bytes()
    argv, env = command(*ENDLESS, "--session", "tale.qsession")
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    process.stdin.write(b"more\n")
    process.stdin.flush()
    process.stdout.read(10)
    process.kill()
    process.communicate()
    assert (tmp_path / "tale.qsession").read_bytes() == before


@pytest.fixture
def screen(command):
    opened = []

    def make(*options):
        opened.append(Screen(*command(*options)))
        return opened[-1]

    yield make
    for each in opened:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def test_ctrl_c_stops_the_answer_and_twice_at_the_prompt_leaves(screen):
    terminal = screen(*ENDLESS)
    terminal.until("> ")
    terminal.type("hi\n")
    terminal.until("[a-zA-Z]{5}")
    terminal.type("\x03")
    assert re.search(r"\d+ tokens \(stopped\)", terminal.until(r"\(stopped\)[^\n]*\n"))
    terminal.until("> ")
    terminal.type("/stats\n")
    assert "in 1 turns" in terminal.until("turns")
    terminal.until("> ")
    terminal.type("half a li")
    terminal.until("half a li")
    terminal.interrupt(lambda: "Ctrl-C again, or Ctrl-D, leaves" in terminal.shown)
    terminal.until("> ")
    terminal.interrupt(lambda: terminal.process.poll() is not None)
    assert terminal.ends() == 0


def test_ctrl_d_leaves_and_lines_are_remembered(screen, tmp_path):
    terminal = screen("--max-tokens", "5")
    assert "\x1b[2m" in terminal.until("> "), "notes are dim on a terminal"
    terminal.type("hi\n")
    terminal.until(r"tokens/s")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.ends() == 0
    history = tmp_path / "state" / "quamba_edge" / "chat_history"
    assert "hi" in history.read_text() and history.stat().st_mode & 0o077 == 0
    terminal = screen("--max-tokens", "5")
    terminal.until("> ")
    terminal.type("\x1b[A\n")  # arrow up
    terminal.until(r"tokens/s")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.ends() == 0


def test_what_a_model_writes_cannot_steer_the_terminal():
    assert CONTROLS.sub("", "a\x1b[31mb\x07\x08c\x9b2J\r\n\td\x7f🦊") == "a[31mbc2J\n\td🦊"
