"""The command line: reads the words, calls the verb, prints what it returns, and ends with an exit code.

A verb imports only what it needs, so `run` works where there is no torch, and `--help` is instant.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from quamba_edge import __version__
from quamba_edge.cli import board, build, search, talk
from quamba_edge.cli.verb import COMMON, finite, say
from quamba_edge.errors import BadUsage, Interrupted, QuambaError

EXIT_CODES = (
    (0, "done"),
    (1, "the thing that was checked failed"),
    (2, "wrong usage"),
    (3, "bad input file"),
    (4, "this machine lacks something"),
    (130, "interrupted"),
)
VERBS = (*build.VERBS, *search.VERBS, *talk.VERBS, *board.VERBS)


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
            say(json.dumps(finite(outcome.json), ensure_ascii=False) + "\n")
        else:
            say(outcome.text if outcome.text.endswith("\n") or not outcome.text else outcome.text + "\n")
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
            say(json.dumps({"error": str(error), "exit_code": error.exit_code}, ensure_ascii=False) + "\n")
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
