"""What a verb of the command line is: a name, a sentence, its arguments, one function, and what that has to say."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quamba_edge.errors import QuambaError


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


def say(text: str) -> None:
    """To stdout at once: a reader that has gone is noticed here and not at exit."""
    sys.stdout.write(text)
    sys.stdout.flush()


def finite(value: Any) -> Any:
    """JSON has no infinity: null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


# fmt: off
BUNDLE = flag("BUNDLE", "", "a file NAME.qedge that `pack` wrote", type=Path)
BACKEND = flag("--backend", "B", "auto (the fastest this machine has), or a name, which never falls back", default="auto")
THREADS = flag("--threads", "N", "threads of a backend that lets one choose; others refuse the flag", type=int)
STATE = flag("--state-dtype", "TYPE", "how SSM states are kept: f16, f32, i8, or auto: i8 where pack found it good enough (f16)", default="f16")
COMMON = (
    flag("--json", None, "the last line of stdout is one JSON object"),
    flag("-v --verbose", None, "on an error, show where it happened"),
)
# fmt: on
