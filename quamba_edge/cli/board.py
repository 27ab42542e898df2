"""Verbs that know the machine: how fast it is, what would fit, what it draws, what it lacks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from quamba_edge.cli.verb import BACKEND, STATE, THREADS, Outcome, Verb, finite, flag
from quamba_edge.errors import BadUsage


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
    return Outcome(bench_text.as_json(results), bench_text.written(results, args.format, finite))


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


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


_counts.__name__ = "N,N"  # argparse names the type in its error

# fmt: off
ROOT = flag("--root", "DIR", "a recorded tree of another machine's files instead of this machine (/)", type=Path, default=Path("/"))
VERBS = (
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
