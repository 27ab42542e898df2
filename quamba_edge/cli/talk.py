"""Verbs that make a bundle speak: once, in the terminal, over HTTP."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quamba_edge.cli.verb import BACKEND, BUNDLE, STATE, THREADS, Flag, Outcome, Verb, flag, say


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
        on_text=(lambda text: None) if args.json else say,
    )
    return Outcome(asdict(result), "" if result.text.endswith("\n") else "\n", note=app.summary(result))


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


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    return int(token), float(value)


def temperature(default: float) -> Flag:
    return flag("--temperature", "T", f"0 always takes the likeliest token ({default:g})", type=float, default=default)


_bias.__name__ = "ID=VALUE"  # argparse names the type in its error

# fmt: off
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
VERBS = (
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
)
# fmt: on
