"""The command line as a person and a script meet it: exit codes, one-line errors, JSON on the last line, streams."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import quamba_edge
from quamba_edge import backends, cli
from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadRecipe
from tests.apps import tiny_bundle

REPO = Path(__file__).resolve().parent.parent
AUTO = next(name for name in backends.known() if backends.why_not(name) is None)  # what runs without --backend


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return tiny_bundle.write(tmp_path_factory.mktemp("bundle") / "tiny.qedge")


@pytest.fixture
def call(capsys):
    """call(*words) -> (exit code, stdout, stderr) of the command in this process."""

    def run(*words):
        code = cli.main([str(w) for w in words])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def process(*words, **options):
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "quamba_edge", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def is_one_line(err: str) -> bool:
    return err.startswith("quamba-edge: ") and err.endswith("\n") and err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frob"],
        ["run"],
        ["run", "x.qedge"],
        ["run", "x.qedge", "--prompt", "a", "--top-k", "many"],
        ["run", "x.qedge", "--prompt", "a", "--logit-bias", "7"],
        ["run", "x.qedge", "--prompt", "a", "--temp", "1"],  # no abbreviations: a later flag would change their meaning
        ["run", "x.qedge", "--prompt", "a", "--top-p", "7"],
        ["pack", "somewhere", "-o", "no/such/folder/x.qedge"],
        ["pack", "somewhere", "-o", "."],
        ["pack", "somewhere", "-o", "x.qedge", "--method", "magic"],
        ["eval", "x.qedge"],
        ["eval", "x.qedge", "--ppl", "x.txt", "--window", "1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_and_one_line(call, words):
    code, out, err = call(*words)
    assert (code, out) == (2, "") and is_one_line(err)


def test_usage_errors_say_where_help_is(call):
    assert "`quamba-edge run --help`" in call("run")[2]
    assert "`quamba-edge --help`" in call("frob")[2]


@pytest.mark.parametrize("verb", [["inspect"], ["verify"], ["run", "--prompt", "a"]])
def test_a_bad_file_is_3(call, verb, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    for name in ("nothing.qedge", "model.gguf"):
        code, out, err = call(verb[0], name, *verb[1:])
        assert (code, out) == (3, "") and is_one_line(err) and name in err


def test_errors_are_json_too(call):
    code, out, err = call("inspect", "nothing.qedge", "--json")
    told = json.loads(out.splitlines()[-1])
    assert code == 3 and told["exit_code"] == 3 and is_one_line(err) and told["error"] in err


def test_tracebacks_only_on_demand(call, monkeypatch):
    monkeypatch.setattr(cli.command, "VERBS", (cli.verb.Verb("boom", "", lambda args: 1 / 0),))
    code, _, err = call("boom")
    assert code == 1 and is_one_line(err) and "ZeroDivisionError" in err and "report" in err
    code, _, err = call("boom", "-v")
    assert code == 1 and "Traceback" in err and err.splitlines()[-1].startswith("quamba-edge: ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (MemoryError(), 4),
        (FileNotFoundError(2, "No such file or directory", "calib.txt"), 3),
        (BadRecipe("two\nlines"), 3),
        (ValueError(), 1),
    ],
)
def test_any_failure_is_a_line_and_a_code(call, monkeypatch, error, code):
    def fail(args):
        raise error

    monkeypatch.setattr(cli.command, "VERBS", (cli.verb.Verb("boom", "", fail),))
    found, _, err = call("boom")
    assert found == code and is_one_line(err)


def test_run_streams_text_and_says_its_numbers_beside_it(call, bundle):
    code, out, err = call("run", bundle, "--prompt", "Once", "--max-tokens", 12)
    assert code == 0 and out.endswith("\n") and len(out) > 5
    assert err.count("\n") == 1 and "12 tokens (length)" in err and f"{AUTO} backend" in err


def test_run_json_is_the_documented_object(call, bundle):
    code, out, _ = call("run", bundle, "--prompt", "Once", "--max-tokens", 12, "--json")
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and {
        "text",
        "tokens",
        "prompt_tokens",
        "reused_tokens",
        "ttft_ms",
        "decode_tps",
        "backend",
    } <= set(told)
    assert (told["tokens"], told["prompt_tokens"], told["reused_tokens"], told["backend"]) == (12, 4, 0, AUTO)
    assert (
        call("run", bundle, "--prompt", "Once", "--max-tokens", 12)[1] == told["text"] + "\n" and told["decode_tps"] > 0
    )


def test_run_flags_reach_the_sampler(call, bundle):
    def text(*words):
        code, out, err = call("run", bundle, "--prompt", "Once", "--max-tokens", 16, "--json", *words)
        assert code == 0, err
        return json.loads(out)

    hot = ("--temperature", 3, "--seed", 5)
    assert text(*hot)["text"] == text(*hot)["text"] != text("--temperature", 3, "--seed", 6)["text"]
    assert text(*hot, "--top-k", 1)["text"] == text()["text"] == text(*hot, "--min-p", 1, "--top-p", 0.001)["text"]
    only_a = ("--logit-bias", "5=1000")
    assert text(*only_a)["text"] == "a" * 16
    or_b = (*only_a, "--logit-bias", "6=900")  # a leads by far more than the model's own opinion
    assert text(*or_b)["text"] == "a" * 16
    assert text(*or_b, "--presence-penalty", 200)["text"] == "ab" + "a" * 14
    assert set(text(*or_b, "--frequency-penalty", 30)["text"]) == {"a", "b"}
    assert text(*only_a, "--logit-bias", "6=600", "--repetition-penalty", 2)["text"] != "a" * 16
    assert text(*only_a, "--stop", "zz", "--stop", "aaa")["text"] == ""
    assert text(*only_a, "--stop", "zz", "--stop", "aaa")["reason"] == "stop"
    assert text("--logit-bias", "0=1000")["reason"] == "eos"


def test_run_chat_goes_through_the_template(call, bundle):
    chat = json.loads(call("run", bundle, "--prompt", "hi", "--chat", "--json", "--max-tokens", 2)[1])
    assert chat["prompt_tokens"] == len("user: hi\nassistant:")


def test_run_refuses_what_it_cannot_do(call, bundle, tmp_path):
    plain = tiny_bundle.write(tmp_path / "plain.qedge", chat_template=None, tokenizer={"eos": [], "bos": None})
    code, _, err = call("run", plain, "--prompt", "hi", "--chat")
    assert code == 2 and "--chat-template" in err
    assert call("run", plain, "--prompt", "")[0] == 2
    assert call("run", bundle, "--prompt", "")[0] == 0  # this one has a beginning-of-text token
    assert call("run", bundle, "--prompt", "hi", "--backend", "reference", "--threads", 2)[0] == 2
    assert call("run", bundle, "--prompt", "hi", "--threads", 0)[0] == 2
    assert call("run", bundle, "--prompt", "hi", "--backend", "abacus")[0] == 2
    assert call("run", bundle, "--prompt", "hi", "--state-dtype", "f12")[0] == 2
    assert call("run", bundle, "--prompt", "hi", "--max-tokens", 0)[0] == 2
    assert call("run", bundle, "--prompt", "\udcff")[0] == 2
    silent = tiny_bundle.write(tmp_path / "silent.qedge", tokenizer_json=None)
    assert call("run", silent, "--prompt", "hi")[0] == 3


def test_inspect_and_verify(call, bundle):
    assert call("inspect", bundle)[0] == 0
    assert json.loads(call("inspect", bundle, "--json")[1])["family"] == "mamba2"
    code, out, err = call("verify", bundle, "--backend", "reference")
    assert code == 0 and err == "" and "nothing to compare" in out
    assert json.loads(call("verify", bundle, "--json")[1])["ok"] is True


def test_verify_exits_1_when_the_answer_differs_and_3_when_the_file_does(call, tmp_path):
    good = tiny_bundle.golden(tiny_bundle.in_memory())
    wrong = {**good, "tokens": [*good["tokens"][:3], (good["tokens"][3] + 1) % 50, *good["tokens"][4:]]}
    code, out, err = call("verify", tiny_bundle.write(tmp_path / "a.qedge", golden=[wrong]), "--json")
    assert code == 1 and is_one_line(err) and "golden prompt 1, position 3" in err
    assert json.loads(out)["ok"] is False
    path = tiny_bundle.write(tmp_path / "b.qedge")
    with Bundle.open(path) as written:
        place = written.places["layers.1.out_proj.codes"].start
    raw = bytearray(path.read_bytes())
    raw[place + 100] ^= 4
    path.write_bytes(raw)
    code, _, err = call("verify", path)
    assert code == 3 and "layers.1.out_proj.codes" in err


def test_eval_json(call, bundle):
    Path("text.txt").write_text("it is a text. it is a text.\n")
    code, out, _ = call("eval", bundle, "--ppl", "text.txt", "--window", 8, "--json")
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and told["tokens"] == 28 - 4 and told["perplexity"] > 1
    assert json.loads(call("eval", bundle, "--ppl", "text.txt", "--limit-tokens", 9, "--json")[1])["tokens"] == 8
    assert call("eval", bundle, "--ppl", "missing.txt")[0] == 3


def test_doctor(call, monkeypatch):
    code, out, _ = call("doctor", "--json")
    told = json.loads(out)
    assert (
        code == 0
        and told["ok"]
        and {"python", "numpy", "torch", "compiler", "backend reference"} <= {f["name"] for f in told["findings"]}
    )
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "apt install g++ make" in call("doctor")[1]
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, out, err = call("doctor")
    assert code == 4 and is_one_line(err) and "pip install jinja2" in err and "cannot run bundles yet" in out


def test_infinity_is_null_in_json(call, monkeypatch):
    monkeypatch.setattr(
        cli.command,
        "VERBS",
        (cli.verb.Verb("v", "", lambda args: cli.verb.Outcome({"a": [float("inf")], "p": Path("x")})),),
    )
    assert json.loads(call("v", "--json")[1], parse_constant=pytest.fail) == {"a": [None], "p": "x"}


def test_running_needs_no_torch_and_help_needs_nothing(bundle):
    code = (
        "import sys\nsys.modules.update(dict.fromkeys(['torch', 'rich', 'transformers', 'huggingface_hub']))\n"
        "from quamba_edge.cli import main\n"
        "assert main(['inspect', sys.argv[1], '--json']) == 0 and 'tokenizers' not in sys.modules\n"
        "assert main(['run', sys.argv[1], '--prompt', 'a', '--max-tokens', '2']) == 0\n"
        "open('t.txt', 'w').write('a b c d')\n"
        "assert main(['eval', sys.argv[1], '--ppl', 't.txt']) == 0\n"
        "assert main(['eval', 'x/y', '--ppl', 't.txt']) == 4\n"
        "assert main(['pack', 'x/y', '-o', 'o.qedge']) == 4\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", code, bundle], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install 'quamba-edge[pack]'" in done.stderr
    code = "import sys\nfrom quamba_edge.cli import parser\nparser().format_help()\nassert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_reader_that_leaves_is_no_error(bundle):
    with process("run", bundle, "--prompt", "Once", "--max-tokens", 100000) as running:
        assert running.stdout.read(3)
        running.stdout.close()
        assert running.wait(60) == 0
        assert running.stderr.read() == ""


def test_control_c_is_130_and_one_line(bundle):
    with process("run", bundle, "--prompt", "Once", "--max-tokens", 1000000) as running:
        assert running.stdout.read(3)
        time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
        assert running.returncode == 130 and err == "quamba-edge: stopped\n"


def test_help_and_version(call, capsys):
    for words in (["--help"], ["--version"], *([verb.name, "--help"] for verb in cli.VERBS)):
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        assert left.value.code == 0
    assert f"quamba-edge {quamba_edge.__version__}" in capsys.readouterr().out


def test_the_reference_is_what_the_parser_says():
    assert (REPO / "docs" / "cli.md").read_text() == cli.reference_markdown(), "run `make docs`"
    for verb in cli.VERBS:
        assert f"\n## {verb.name}\n" in cli.reference_markdown()


def test_public_names_are_lazy_and_real():
    assert set(quamba_edge.__all__) <= set(dir(quamba_edge))
    assert all(getattr(quamba_edge, name) is not None for name in ("load", "generate", "Sampling"))
    with pytest.raises(AttributeError, match="nothing"):
        _ = quamba_edge.nothing
