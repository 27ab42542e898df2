"""The command line: a table of verbs.  Each parses, calls one function of apps/, and prints what it returns.

A verb imports only what it needs, so `run` works where there is no torch, and `--help` is instant.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from quamba_edge import __version__
from quamba_edge.errors import BadUsage, CheckFailed, Interrupted, QuambaError

EXIT_CODES = (
    (0, "done"),
    (1, "the thing that was checked failed"),
    (2, "wrong usage"),
    (3, "bad input file"),
    (4, "this machine lacks something"),
    (130, "interrupted"),
)


@dataclass(frozen=True)
class Outcome:
    """What a verb has to say: `json` with --json, else `text` (stdout) and `note` (stderr); a `failure` decides the exit code."""

    json: dict[str, Any]
    text: str = ""
    note: str = ""
    failure: QuambaError | None = None


@dataclass(frozen=True)
class Flag:
    """An argument: `names` and `more` settings as argparse has them, `value` its name in help (None for a switch)."""

    names: tuple[str, ...]
    value: str | None
    help: str
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def positional(self) -> bool:
        return not self.names[0].startswith("-")

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        settings: dict[str, Any] = {"help": self.help.replace("%", "%%"), **dict(self.more)}
        if self.value is None:
            settings["action"] = "store_true"
        elif not self.positional:
            settings.setdefault("metavar", self.value)
        parser.add_argument(*self.names, **settings)

    def usage(self) -> str:
        shown = self.names[0] if self.positional or self.value is None else f"{self.names[0]} {self.value}"
        more = dict(self.more)
        always = more.get("nargs") != "?" if self.positional else more.get("required")
        return shown if always else f"[{shown}]"


@dataclass(frozen=True)
class Verb:
    name: str
    summary: str
    call: Callable[[argparse.Namespace], Outcome]
    flags: tuple[Flag, ...] = ()


def flag(names: str, value: str | None, help: str, **more: Any) -> Flag:
    return Flag(tuple(names.split()), value, help, tuple(more.items()))


def pack(args: argparse.Namespace) -> Outcome:
    from quamba_edge.apps import pack as app

    names = "out recipe calib calib_samples calib_len method seed resume tokenizer chat_template eval_tokens".split()
    options = {"checkpoint_path": args.CHECKPOINT, **{n: getattr(args, n) for n in names}}
    with app.Progress() as progress:
        result = app.pack(options, progress, args.command)
    return Outcome(asdict(result), app.summary(result))


def inspect(args: argparse.Namespace) -> Outcome:
    from quamba_edge.apps import inspect as app

    result = app.inspect(args.BUNDLE)
    return Outcome(result.to_json(), app.text(result))


def verify(args: argparse.Namespace) -> Outcome:
    from quamba_edge.apps import verify as app

    result = app.verify(args.BUNDLE, args.backend, threads=args.threads)
    failure = None if result.ok else CheckFailed(f"{args.BUNDLE}: {'; '.join(result.differences)}")
    return Outcome(asdict(result), app.summary(result) if result.ok else "", failure=failure)


def run(args: argparse.Namespace) -> Outcome:
    from quamba_edge.apps import run as app

    result = app.run(
        args.BUNDLE,
        args.prompt,
        chat=args.chat,
        sampling=_sampling(args),
        max_tokens=args.max_tokens,
        stop=args.stop,
        session=args.session,
        backend=args.backend,
        state_dtype=args.state_dtype,
        threads=args.threads,
        on_text=(lambda text: None) if args.json else _say,
    )
    return Outcome(asdict(result), "" if result.text.endswith("\n") else "\n", note=app.summary(result))


def serve(args: argparse.Namespace) -> Outcome:
    from quamba_edge.serve import server as app
    from quamba_edge.serve.jobs import Limits

    limits = Limits(args.max_sessions, args.max_queue, args.max_tokens, seconds=args.timeout)
    result = app.serve(
        args.BUNDLE,
        host=args.host,
        port=args.port,
        key_file=args.api_key_file,
        sessions=args.sessions,
        limits=limits,
        backend=args.backend,
        state_dtype=args.state_dtype,
        threads=args.threads,
        on_ready=lambda line: print(line, file=sys.stderr, flush=True),
    )
    return Outcome(asdict(result), note=app.summary(result))


def _sampling(args: argparse.Namespace) -> Any:
    from quamba_edge.runtime.sampling import Sampling

    names = "temperature top_k top_p min_p repetition_penalty presence_penalty frequency_penalty seed".split()
    return Sampling(**{n: getattr(args, n) for n in names}, logit_bias=dict(args.logit_bias))


def chat(args: argparse.Namespace) -> Outcome:
    from quamba_edge.apps import chat as app

    result = app.chat(
        args.BUNDLE,
        settings=app.Settings(_sampling(args), args.max_tokens, tuple(args.stop)),
        system=args.system,
        session=args.session,
        backend=args.backend,
        state_dtype=args.state_dtype,
        threads=args.threads,
    )
    return Outcome(app.outcome(result), note=app.summary(result))


def evaluate(args: argparse.Namespace) -> Outcome:
    from quamba_edge.apps.pack import Progress

    names = ["backend", "state_dtype", "threads", "tokenizer"]
    of_tasks = {n: getattr(args, n) for n in ("data", "limit", "seed", "fewshot")}
    of_text = {n: getattr(args, n) for n in ("window", "limit_tokens")}
    if (args.ppl is None) == (args.tasks is None):
        raise BadUsage("eval measures either --ppl TEXT or --tasks A,B --data DIR: give one of them")
    strange = of_tasks if args.ppl is not None else of_text
    if any(v is not None for v in strange.values()):
        given = "--ppl takes no" if args.ppl is not None else "--tasks takes no"
        raise BadUsage(f"{given} {', '.join('--' + n.replace('_', '-') for n, v in strange.items() if v is not None)}")
    common = {n: getattr(args, n) for n in names}
    with Progress() as progress:
        if args.ppl is not None:
            from quamba_edge.apps import evaluate as text_app

            window = 1024 if args.window is None else args.window
            result = text_app.evaluate(
                args.TARGET, args.ppl, window=window, limit_tokens=args.limit_tokens, **common, progress=progress
            )
            return Outcome(asdict(result), text_app.summary(result))
        from quamba_edge.apps import tasks as app

        if args.data is None:
            raise BadUsage("--tasks needs --data DIR, the folder with the tasks' files; docs/evaluation.md lists them")
        found = app.evaluate(args.TARGET, args.tasks, **of_tasks, **common, progress=progress)
    return Outcome(found, app.table(found))


def bench(args: argparse.Namespace) -> Outcome:
    if args.BUNDLE[0] == "compare":
        from quamba_edge.apps import bench_compare

        if len(args.BUNDLE) != 3:
            raise BadUsage(f"bench compare takes two files, not {len(args.BUNDLE) - 1}: bench compare A.json B.json")
        found = bench_compare.compare(Path(args.BUNDLE[1]), Path(args.BUNDLE[2]))
        return Outcome(found.to_json(), bench_compare.text(found))
    if len(args.BUNDLE) != 1:
        raise BadUsage(f"bench takes one bundle, not {len(args.BUNDLE)}; to compare: bench compare A.json B.json")
    path, given = Path(args.BUNDLE[0]), {n: getattr(args, n) for n in ("backend", "state_dtype", "threads")}
    if args.profile or args.trace:
        from quamba_edge.apps import bench_profile

        profiles = bench_profile.profile(path, **given, batch=args.batch[0], trace=args.trace)
        return Outcome(profiles.to_json(), bench_profile.text(profiles))
    from quamba_edge.apps import bench as app
    from quamba_edge.apps import bench_text

    if args.plot:
        from quamba_edge.apps import bench_plot

        bench_plot.check(args.plot)
    given |= {n: getattr(args, n) for n in ("gen_len", "repeats", "idle_s")}
    measured = app.grid(path, prompt_lens=args.prompt_len, batches=args.batch, **given)
    if args.plot:
        bench_plot.plot(measured, args.plot)
    results = [m.result for m in measured]
    return Outcome(bench_text.as_json(results), bench_text.written(results, args.format, _finite))


def plan(args: argparse.Namespace) -> Outcome:
    from quamba_edge.apps import plan as app
    from quamba_edge.apps import plan_text

    given = {"recipe": args.recipe, "sessions": args.sessions, "state_dtype": args.state_dtype}
    if args.TARGET == "published":
        plans = app.plan_published(args.device, **given)
        return Outcome({"plans": [p.to_json() for p in plans]}, plan_text.table(plans))
    result = app.plan(args.TARGET, args.device, threads=args.threads, **given)
    return Outcome(result.to_json(), plan_text.text(result))


def top(args: argparse.Namespace) -> Outcome:
    from quamba_edge.apps import top as app

    known = app.identity(args.root)
    if args.once:
        sample = app.once(args.root, args.source)
        return Outcome({**known, **sample.to_json()}, app.picture(sample, known))
    sample = app.watch(args.root, args.source, hz=args.hz, as_json=args.json)
    return Outcome({**known, **sample.to_json()})


def power(args: argparse.Namespace) -> Outcome:
    if args.ACTION != "sweep" and args.BUNDLE:
        raise BadUsage(f"power {args.ACTION} takes no bundle: only sweep measures one")
    from quamba_edge.apps import power as app

    if args.ACTION == "show":
        state = app.show(args.root)
        return Outcome(state.to_json(), app.show_text(state))
    if args.ACTION == "advise":
        advice = app.advise(args.goal, args.root, args.sweep)
        return Outcome(advice.to_json(), app.advise_text(advice))
    if not args.BUNDLE or args.root != Path("/"):
        raise BadUsage("power sweep measures a bundle on this machine: give BUNDLE, and no --root")
    from quamba_edge.apps import power_sweep

    swept = power_sweep.run(
        args.BUNDLE,
        yes=args.yes,
        names=[n for n in args.modes.split(",") if n],
        backend=args.backend,
        threads=args.threads,
        progress=lambda text: print(text, file=sys.stderr, flush=True),
    )
    return Outcome(swept.to_json(), power_sweep.text(swept))


def doctor(args: argparse.Namespace) -> Outcome:
    from quamba_edge import doctor as app
    from quamba_edge.errors import Missing

    if not args.root.is_dir():
        raise BadUsage(f"--root {args.root} is no folder: expected one that holds sys/, proc/ and etc/")
    report = app.examine(args.root, args.bundle)
    lacking = "; ".join(
        f"{f.name}: {f.found}" + (f" ({f.fix})" if f.fix else "") for f in report.findings if f.state == "missing"
    )
    return Outcome(report.to_json(), app.summary(report), failure=None if report.ok else Missing(lacking))


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    return int(token), float(value)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


_counts.__name__ = "N,N"
_bias.__name__ = "ID=VALUE"  # argparse names the type in its error

# fmt: off
BUNDLE = flag("BUNDLE", "", "a file NAME.qedge that `pack` wrote", type=Path)
BACKEND = flag("--backend", "B", "auto (the fastest this machine has), or a name, which never falls back", default="auto")
THREADS = flag("--threads", "N", "threads of a backend that lets one choose; others refuse the flag", type=int)
STATE = flag("--state-dtype", "TYPE", "how SSM states are kept: f16, f32 or i8 (f16)", default="f16")
ROOT = flag("--root", "DIR", "a recorded tree of another machine's files instead of this machine (/)", type=Path, default=Path("/"))
SESSION = flag("--session", "FILE", "what was said is kept there: loaded if it exists, saved after every answer", type=Path)
SAMPLING = (
    flag("--max-tokens", "N", "stop after so many tokens (256)", type=int, default=256),
    flag("--top-k", "K", "choose among the K likeliest; 0 for all (0)", type=int, default=0),
    flag("--top-p", "P", "choose among the likeliest that together have the share P (1)", type=float, default=1.0),
    flag("--min-p", "M", "drop tokens less than M times as likely as the likeliest (0)", type=float, default=0.0),
    flag("--repetition-penalty", "R", "divide logits of tokens in prompt or answer by R (1)", type=float, default=1.0),
    flag("--presence-penalty", "X", "subtract X from the logits of tokens in the answer (0)", type=float, default=0.0),
    flag("--frequency-penalty", "X", "subtract X for each time the answer has the token (0)", type=float, default=0.0),
    flag("--logit-bias", "ID=X", "add X to a token's logit; may be repeated", type=_bias, action="append", default=[]),
    flag("--seed", "S", "makes sampling repeatable", type=int),
    flag("--stop", "TEXT", "end before this text; may be repeated", action="append", default=[]),
)


def temperature(default: float) -> Flag:
    return flag("--temperature", "T", f"0 always takes the likeliest token ({default:g})", type=float, default=default)


COMMON = (
    flag("--json", None, "the last line of stdout is one JSON object"),
    flag("-v --verbose", None, "on an error, show where it happened"),
)

VERBS = (
    Verb(
        "pack",
        "Quantize a checkpoint and write it as one file.",
        pack,
        (
            flag("CHECKPOINT", "", "a folder with config.json and weights, or a name on the Hugging Face Hub"),
            flag("-o --out", "OUT.qedge", "the file to write", type=Path, required=True),
            flag("--recipe", "R", "w4a8, w4a16, w8a8, w16a16, or a JSON file (w4a8)", default="w4a8"),
            flag("--calib", "FILE", "text or JSON lines to calibrate on; without it, text sampled from the model", type=Path),
            flag("--calib-samples", "N", "windows to calibrate on (128)", type=int),
            flag("--calib-len", "L", "tokens in each window (512)", type=int),
            flag("--method", "M", "gptq or rtn for every site; without it, what the recipe says", choices=("gptq", "rtn")),
            flag("--seed", "S", "of everything random (0)", type=int, default=0),
            flag("--resume", None, "continue an interrupted run of the same command"),
            flag("--tokenizer", "FILE", "tokenizer.json for a checkpoint that comes without one", type=Path),
            flag("--chat-template", "FILE", "Jinja template to store instead of the checkpoint's", type=Path),
            flag("--eval-tokens", "N", "held-out tokens to measure perplexity on; without it, as many as are quick", type=int),
        ),
    ),
    Verb("inspect", "Show what is inside a bundle: sizes by part, recipe, provenance.", inspect, (BUNDLE,)),
    Verb(
        "verify",
        "Check hashes, golden prompts and every op against the reference; name what differs.",
        verify,
        (BUNDLE, BACKEND, THREADS),
    ),
    Verb(
        "run",
        "Continue a prompt.",
        run,
        (
            BUNDLE,
            flag("--prompt", "TEXT", "the text to continue", required=True),
            flag("--chat", None, "take the prompt as a user's message, in the model's chat template"),
            SESSION,
            temperature(0.0),
            *SAMPLING,
            BACKEND,
            STATE,
            THREADS,
        ),
    ),
    Verb(
        "serve",
        "Answer OpenAI's HTTP requests: /v1/chat/completions, /v1/completions, /v1/sessions, /metrics, /health.",
        serve,
        (
            BUNDLE,
            flag("--port", "P", "0 takes a free one (8080)", type=int, default=8080),
            flag("--host", "H", "another than this machine's own needs a key (127.0.0.1)", default="127.0.0.1"),
            flag("--api-key-file", "F", "the key clients must send; without it, QUAMBA_EDGE_API_KEY if set", type=Path),
            flag("--max-sessions", "N", "states kept, and requests answered at once (8)", type=int, default=8),
            flag("--max-queue", "N", "requests that may wait (64)", type=int, default=64),
            flag("--max-tokens", "N", "longest answer (4096)", type=int, default=4096),
            flag("--timeout", "S", "seconds a request may take, waiting included (600)", type=float, default=600.0),
            flag("--sessions", "DIR", "folder of saved sessions; without it, saving is refused", type=Path),
            BACKEND,
            STATE,
            THREADS,
        ),
    ),
    Verb(
        "chat",
        "Talk with a model in the terminal, or line by line through a pipe; /help lists what else it does.",
        chat,
        (
            BUNDLE,
            flag("--system", "TEXT", "system prompt"),
            SESSION,
            temperature(0.7),
            *SAMPLING,
            BACKEND,
            STATE,
            THREADS,
        ),
    ),
    Verb(
        "eval",
        "Measure a bundle or a checkpoint: its perplexity on a text, or its answers to zero-shot tasks.",
        evaluate,
        (
            flag("TARGET", "", "a bundle, a checkpoint folder, or a name on the Hugging Face Hub"),
            flag("--ppl", "TEXT", "text file; cut into windows, the first token of each not scored", type=Path),
            flag("--window", "W", "for --ppl: tokens in a window; each begins with an empty state (1024)", type=int),
            flag("--limit-tokens", "N", "for --ppl: use only the first N tokens of the text", type=int),
            flag("--tasks", "A,B", "lambada, hellaswag, piqa, arc_easy, arc_challenge, winogrande, blimp, mmlu, or all"),
            flag("--data", "DIR", "for --tasks: the folder with their files", type=Path),
            flag("--limit", "N", "for --tasks: only the first N questions of each, and of each subtask", type=int),
            flag("--seed", "S", "for --tasks: with --limit, N random questions instead of the first", type=int),
            flag("--fewshot", "K", "for --tasks: worked examples before each question of mmlu (5)", type=int),
            flag("--tokenizer", "FILE", "tokenizer.json for a checkpoint that comes without one", type=Path),
            flag("--backend", "B", "for a bundle: auto, or a name, which never falls back"),
            flag("--state-dtype", "TYPE", "for a bundle: f16, f32 or i8 (f16)"),
            flag("--threads", "N", "for a bundle: threads of a backend that lets one choose", type=int),
        ),
    ),
    Verb(
        "bench",
        "Measure how fast a bundle reads a prompt and writes an answer on this machine, and what it costs; or compare two such runs.",
        bench,
        (
            flag("BUNDLE", "", "the bundle; or `compare A.json B.json`, two files of what --json printed", nargs="+"),
            flag("--prompt-len", "N,N", "tokens of the prompt, random ones; each length is measured (512)", type=_counts, default=(512,)),
            flag("--gen-len", "N", "tokens decoded after it (128)", type=int, default=128),
            flag("--repeats", "N", "how often, after a warm-up (5)", type=int, default=5),
            flag("--batch", "N,N", "sequences that go on together; each number is measured (1)", type=_counts, default=(1,)),
            flag("--idle-s", "S", "watch the idle machine first, 10 s or more, for joules above idle (0: not)", type=float, default=0.0),
            flag("--format", "F", "text, markdown, csv, json or jsonl (text)", choices=("text", "markdown", "csv", "json", "jsonl"), default="text"),
            flag("--plot", "FILE.png", "draw latency, power, heat and clocks over time (needs matplotlib)", type=Path),
            flag("--profile", None, "time every op of a decode step and of a chunk of prompt instead"),
            flag("--trace", "FILE.json", "with --profile: write Chrome's trace events there (ui.perfetto.dev)", type=Path),
            BACKEND,
            STATE,
            THREADS,
        ),
    ),
    Verb(
        "plan",
        "Predict whether a model fits a board, how fast it will be and what a token costs; from headers only.",
        plan,
        (
            flag("TARGET", "", "a bundle, a checkpoint folder, a Hub name, a published model such as mamba2-2.7b, or `published` for all"),
            flag("--device", "D", "orin-nano-8gb, orin-nano-4gb, orin-nx-16gb, orin-nx-8gb, agx-orin-64gb, agx-orin-32gb, or here, which measures", default="orin-nano-8gb"),
            flag("--recipe", "R", "for what is not packed yet: w4a8, w4a16, w8a8, w16a16, or a JSON file (w4a8)", default="w4a8"),
            flag("--sessions", "N", "conversations kept at the same time (1)", type=int, default=1),
            STATE,
            flag("--threads", "N", "for --device here: threads of the native backend", type=int),
        ),
    ),
    Verb(
        "top",
        "Show power, load, clocks, temperatures and memory of this machine, live; Ctrl-C leaves.",
        top,
        (
            flag("--once", None, "one sample, then end; with --json every field"),
            ROOT,
            flag("--source", "S", "auto, or one of tegra, tegrastats, jtop, nvidia, linux (auto)", default="auto"),
            flag("--hz", "N", "pictures a second, 0.1 to 20 (2)", type=float, default=2.0),
        ),
    ),
    Verb(
        "power",
        "Power modes by name: show them, measure a bundle in each, or say which to take. Only sweep --yes changes anything.",
        power,
        (
            flag("ACTION", "", "show, sweep or advise", choices=("show", "sweep", "advise")),
            flag("BUNDLE", "", "for sweep: the file to measure with", type=Path, nargs="?"),
            flag("--for", "GOAL", "for advise: speed, efficiency or heat (efficiency)", dest="goal", default="efficiency"),
            flag("--sweep", "FILE", "for advise: what `power sweep --json` printed on this board", type=Path),
            flag("--modes", "A,B", "for sweep: only these, by name", default=""),
            flag("--yes", None, "for sweep: switch the board's power mode (needs root), and back at the end"),
            BACKEND,
            THREADS,
            ROOT,
        ),
    ),
    Verb(
        "doctor",
        "Show what this machine has and lacks, each with the command that fixes it.",
        doctor,
        (
            flag("--bundle", "FILE", "look also whether memory and disk suit this bundle", type=Path),
            ROOT,
        ),
    ),
)
# fmt: on


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadUsage(f"{message}; see `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    codes = ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES)
    top = _Parser(
        prog="quamba-edge", description="Quantized Mamba models on small machines.", epilog=f"Exit codes: {codes}."
    )
    top.add_argument("--version", action="version", version=f"quamba-edge {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for verb in VERBS:
        sub = verbs.add_parser(verb.name, help=verb.summary, description=verb.summary, allow_abbrev=False)
        for item in (*verb.flags, *COMMON):
            item.add_to(sub)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character still shows the others
    try:
        return _main(words)
    except BrokenPipeError:
        # The reader (head, less) has had enough.  What Python still flushes at exit must have somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main(words: list[str]) -> int:
    # Looked for here too, because what fails first may be the parsing.
    as_json, verbose = "--json" in words, not {"-v", "--verbose"}.isdisjoint(words)
    try:
        args = parser().parse_args(words)
        args.command = words
        verb = next(v for v in VERBS if v.name == args.verb)
        outcome = verb.call(args)
        if as_json:
            _say(json.dumps(_finite(outcome.json), ensure_ascii=False) + "\n")
        else:
            _say(outcome.text if outcome.text.endswith("\n") or not outcome.text else outcome.text + "\n")
            if outcome.note:
                print(outcome.note, file=sys.stderr)
        if outcome.failure is not None:
            print(_line(outcome.failure), file=sys.stderr)
            return outcome.failure.exit_code
        return 0
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as e:
        if verbose:
            traceback.print_exc()
        error = _explained(e)
        print(_line(error), file=sys.stderr)
        if as_json:
            _say(json.dumps({"error": str(error), "exit_code": error.exit_code}, ensure_ascii=False) + "\n")
        return error.exit_code


def _explained(e: BaseException) -> QuambaError:
    """Any failure as one of ours; what nobody foresaw says so."""
    if isinstance(e, QuambaError):
        return e
    if isinstance(e, KeyboardInterrupt):
        return Interrupted("stopped")
    if isinstance(e, OSError) and e.filename is not None:
        return _coded(f"{e.filename}: {e.strerror}", 3)
    if isinstance(e, MemoryError):
        return _coded("this machine has too little free memory for it: free some, or use a smaller model", 4)
    return QuambaError(
        f"unexpected {type(e).__name__}: {e}; this is a fault of quamba-edge: please report it with the output of -v"
    )


def _coded(text: str, exit_code: int) -> QuambaError:
    error = QuambaError(text)
    error.exit_code = exit_code
    return error


def _line(error: QuambaError) -> str:
    return "quamba-edge: " + " ".join(str(error).split("\n"))


def _finite(value: Any) -> Any:
    """JSON has no infinity: null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def reference_markdown() -> str:
    """docs/cli.md: the table in words, the same from every Python (argparse's own help changes between versions)."""
    out = [
        "# Command line",
        "",
        "Written from the parser by `make docs`; a test compares.",
        "",
        "Every command takes `--json`, with which the last line of stdout is one JSON object (on failure",
        '`{"error": ..., "exit_code": ...}`), and `-v`, with which an error shows where it happened. Errors are one line on stderr.',
        "",
        "| exit code | meaning |",
        "| --- | --- |",
        *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES),
    ]
    for verb in VERBS:
        usage = " ".join([f"quamba-edge {verb.name}", *(f.usage() for f in verb.flags)])
        wrapped = textwrap.wrap(usage, 100, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
        out += ["", f"## {verb.name}", "", verb.summary, "", "```", *wrapped, "```"]
        if verb.flags:
            out += ["", "| argument | meaning |", "| --- | --- |"]
        for item in verb.flags:
            names = ", ".join(
                f"`{n} {item.value}`" if item.value and not item.positional else f"`{n}`" for n in item.names
            )
            out.append(f"| {names} | {item.help} |")
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    sys.exit(main())
