"""`quamba-edge pack`: the face of quamba_edge/pack.py, with a progress bar and a way back from Ctrl-C."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from quamba_edge.apps import card as model_card
from quamba_edge.errors import BadUsage, Interrupted, Missing

EVERY = 5.0  # seconds between lines where there is no terminal to draw a bar on


class Progress:
    """`progress(done, total, text)` as a bar with the time left on a terminal, as a line now and then elsewhere.

    A new total, or a count that falls, begins a new stage with its own clock.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._task: Any = None
        self._stage = (0, 0)  # total, done
        self._began = self._said = 0.0

    def __enter__(self) -> Progress:
        if self._stream.isatty() and find_spec("rich"):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
            self._bar = Bar(*columns, TimeRemainingColumn(), console=Console(file=self._stream), transient=True)
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int, text: str) -> None:
        fresh = total != self._stage[0] or done < self._stage[1]
        self._stage = (total, done)
        if self._bar is not None:
            if self._task is None or fresh:
                if self._task is not None:
                    self._bar.remove_task(self._task)
                self._task = self._bar.add_task(text, total=total)
            self._bar.update(self._task, completed=done, description=text)
            return
        now = time.monotonic()
        if fresh:
            self._began = now
        if self._said and now - self._said < EVERY:
            return
        self._said = now
        left = (now - self._began) / done * (total - done) if done and not fresh else None
        print(f"{done}/{total} {text}" + (f", about {left:.0f} s left" if left else ""), file=self._stream, flush=True)


def pack(options: Mapping[str, Any], progress: Progress, command: list[str], card: Path | None = None) -> Any:
    """Pack with the arguments of quamba_edge.pack.pack; returns its PackResult.  `card` is a file to write the model card to.

    `command` is the command line, for the message that says how to go on after Ctrl-C.
    """
    out = Path(options["out"])
    if out.is_dir() or not out.parent.is_dir():
        found = "is a folder" if out.is_dir() else f"would lie in {out.parent}, which does not exist"
        raise BadUsage(f"{out} {found}: expected the name of a file to write, in a folder that exists")
    if card is not None and (card.is_dir() or not card.parent.is_dir()):
        raise BadUsage(f"--card {card}: expected the name of a file to write, in a folder that exists")
    if not find_spec("torch"):
        raise Missing("packing needs torch, which is not here: pip install 'quamba-edge[pack]'")
    from quamba_edge.pack import pack as quantize

    try:
        result = quantize(**options, progress=progress)
    except KeyboardInterrupt:
        again = command if "--resume" in command else [*command, "--resume"]
        raise Interrupted(
            f"stopped; finished layers are kept, continue with: quamba-edge {shlex.join(again)}"
        ) from None
    if card is not None:
        model_card.write(out, card)
    return result


def summary(result: Any) -> str:
    """A few lines for people."""
    lines = [
        f"{result.bundle}: {_size(result.bytes)} in {result.seconds:.0f} s, peak memory {_size(result.peak_rss_bytes)}"
    ]
    if result.perplexity_bundle is not None and result.perplexity_source is not None:
        lost = result.perplexity_bundle / result.perplexity_source - 1
        source, bundle = (
            f"{p:.4f}" if p < 1e6 else f"{p:.4g}" for p in (result.perplexity_source, result.perplexity_bundle)
        )
        lines.append(f"perplexity {source} -> {bundle} ({lost:+.2%})")
    if not result.has_tokenizer:
        lines.append("it has no tokenizer, so it cannot be talked to: the checkpoint had none, give --tokenizer FILE")
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
