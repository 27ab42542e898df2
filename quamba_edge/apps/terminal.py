"""Lines in, text out, and what Ctrl-C means: the terminal of `quamba-edge chat`, or a pipe in its place.

On a terminal, lines are edited and remembered by readline, and notes are dim.  Through a pipe, answers go to stdout, notes to stderr,
and there is not one escape sequence.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

# What a model writes may not steer the terminal: control characters other than tab and line feed are left out.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
REMEMBERED = 1000  # lines of history


class Leave(Exception):
    """The conversation is over; `why` says what ended it."""

    def __init__(self, why: str):
        super().__init__(why)
        self.why = why


class Stopped:
    """True once the answer should stop; whoever gives it says when it has `begun`."""

    def __init__(self) -> None:
        self.begun, self.now = False, False

    def __bool__(self) -> bool:
        return self.now


class Terminal:
    """Use it in a `with` block: signals are its own meanwhile."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.dim = self.interactive and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._answer: Stopped | None = None
        self._waiting, self._leaving = False, ""
        self._fresh = True  # whether the cursor is at the beginning of a line
        self._before: dict[int, Any] = {}
        self._history: Path | None = None

    def __enter__(self) -> Terminal:
        for number, handler in ((signal.SIGINT, self._on_interrupt), (signal.SIGTERM, self._on_terminate)):
            self._before[number] = signal.signal(number, handler)
        if self.interactive:
            self._remember()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._keep_history()

    def line(self) -> str | None:
        """The next line, or several that end in a backslash; None when the input has ended.  Ctrl-C twice is the end, too."""
        parts: list[str] = []
        interrupted = False
        while True:
            self._waiting = True
            try:
                if self._leaving:
                    raise Leave(self._leaving)
                part = self._read("> " if not parts else ". ")
            except KeyboardInterrupt:
                if interrupted or not self.interactive:
                    raise Leave("Ctrl-C") from None
                parts, interrupted = [], True
                self.note("\nCtrl-C again, or Ctrl-D, leaves")
                continue
            finally:
                self._waiting = False
            if part is None:
                return "\n".join(parts) if parts else None
            if not part.endswith("\\"):
                return "\n".join([*parts, part])
            parts.append(part[:-1])

    def say(self, text: str) -> None:
        """A piece of an answer."""
        if self.interactive:
            text = CONTROLS.sub("", text)
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._fresh = text.endswith("\n")

    def end(self) -> None:
        """The answer is over: what comes next begins its own line."""
        if not self._fresh:
            self.say("\n")

    def note(self, text: str) -> None:
        """Something that the model did not say."""
        out = sys.stdout if self.interactive else sys.stderr
        out.write(f"\x1b[2m{CONTROLS.sub('', text)}\x1b[0m\n" if self.dim else text + "\n")
        out.flush()

    @contextmanager
    def answering(self) -> Iterator[Stopped]:
        """While an answer is given, Ctrl-C and SIGTERM set what this gives, so that the answer ends between two tokens.

        Until `begun` is set, a prompt is being read: then they raise KeyboardInterrupt, so that a long one can be left.
        """
        self._answer = Stopped()
        try:
            yield self._answer
        finally:
            self._answer = None

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._answer is None:
            raise KeyboardInterrupt
        self._answer.now = True
        if not self._answer.begun:
            raise KeyboardInterrupt

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._leaving = "SIGTERM"  # told at the next line; whatever is being saved is saved first
        if self._waiting:
            raise Leave(self._leaving)
        if self._answer is not None:
            self._on_interrupt(number, frame)

    def _read(self, prompt: str) -> str | None:
        if self.interactive:
            try:
                return input(prompt)
            except EOFError:
                self.note("")
                return None
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None

    def _remember(self) -> None:
        """Have readline edit and remember lines, where Python has it."""
        try:
            import readline
        except ImportError:
            return
        base = os.environ.get("XDG_STATE_HOME", "")
        folder = (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state") / "quamba_edge"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._history = folder / "chat_history"
            self._history.touch(mode=0o600)
            readline.read_history_file(self._history)
        except OSError:
            self._history = None
        readline.set_history_length(REMEMBERED)

    def _keep_history(self) -> None:
        if self._history is None:
            return
        import readline

        try:
            readline.write_history_file(self._history)
        except OSError:
            pass  # lines that are not remembered are no reason to fail at the end
