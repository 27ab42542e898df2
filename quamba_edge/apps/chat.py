"""`quamba-edge chat`: a conversation in the terminal, or line by line through a pipe.

Every answer is followed by a line of numbers.  Ctrl-C stops an answer and not the program; what was said of it stays.  With a session
file the conversation is there again next time, nothing of it read twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quamba_edge.apps.chat_commands import Commands
from quamba_edge.apps.loading import bar
from quamba_edge.apps.terminal import Leave, Terminal
from quamba_edge.apps.watch import Watch
from quamba_edge.errors import BadUsage, QuambaError
from quamba_edge.runtime import prefixes
from quamba_edge.runtime.conversation import Conversation
from quamba_edge.runtime.generate import Step
from quamba_edge.runtime.model import Model, load
from quamba_edge.runtime.sampling import Sampling


@dataclass
class ChatResult:
    """What happened: answers given, and the sums over their fields as in runtime/generate.py."""

    backend: str
    answers: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    prefilled_tokens: int = 0
    session_tokens: int = 0
    session: Path | None = None
    ended: str = "end of input"


@dataclass(frozen=True)
class Settings:
    """How to answer."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 256
    stop: tuple[str, ...] = ()


def chat(
    path: Path,
    *,
    settings: Settings | None = None,
    system: str | None = None,
    session: Path | None = None,
    backend: str = "auto",
    state_dtype: str = "f16",
    threads: int | None = None,
    terminal: Terminal | None = None,
) -> ChatResult:
    """Talk until the input ends.  `session` is loaded if it exists, and saved after every answer."""
    terminal = terminal or Terminal()
    with terminal:
        model = load(path, backend, state_dtype=state_dtype, threads=threads, progress=bar())
        return Chat(model, terminal, settings or Settings(), system, session).run()


class Chat:
    """The loop over lines; apps/chat_commands.py has those that begin with a slash."""

    def __init__(self, model: Model, terminal: Terminal, settings: Settings, system: str | None, session: Path | None):
        self.model, self.terminal, self.settings, self.path = model, terminal, settings, session
        self.store = prefixes.Prefixes(prefixes.home())
        self.talk = Conversation(model, system, self.store)
        self.result = ChatResult(model.engine.backend.name, session=session)
        self.watch = Watch()
        self.commands = Commands(self)

    def run(self) -> ChatResult:
        self._greet()
        try:
            while (line := self.terminal.line()) is not None:
                try:
                    self._take(line)
                except QuambaError as e:
                    self.terminal.end()
                    self.terminal.note(str(e))
                except KeyboardInterrupt:
                    self.terminal.note("stopped")
        except Leave as e:
            self.result.ended = e.why
        self.watch.close()
        self.result.session_tokens = self.talk.session.count
        return self.result

    def _greet(self) -> None:
        name, engine = self.model.bundle.path.name, self.model.engine
        self.terminal.note(f"{name}, {engine.backend.name} backend; /help for commands, Ctrl-D to leave")
        if not self.talk.templated:
            self.terminal.note("this model has no chat template: it continues your text as it stands")
            if self.talk.system:
                raise BadUsage(
                    "this bundle has no chat template, so it has no place for a system prompt: leave --system away"
                )
        system = self.talk.system
        if self.path is not None and self.talk.open(self.path):
            if system is not None and system != self.talk.system:
                raise BadUsage(
                    f"{self.path} was not begun with this system prompt: leave --system away, or name another file"
                )
            self.commands.loaded(self.path)

    def _take(self, line: str) -> None:
        if line.startswith("/") and not line.startswith("//"):
            self.commands.do(line[1:])
        elif line.strip():
            self.answer(self.talk.ask(line.removeprefix("/") if line.startswith("//") else line, **self.how()))

    def how(self) -> dict[str, Any]:
        """Settings of the next answer.  A seed makes a conversation repeatable, and yet another try another one."""
        sampling = self.settings.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + self.result.answers)
        return {**vars(self.settings), "sampling": sampling}

    def answer(self, steps: Iterator[Step]) -> None:
        """Show an answer as it comes, its numbers after it."""
        last: Step | None = None
        try:
            with self.watch, self.terminal.answering() as stopped:
                try:
                    for step in steps:
                        last = step
                        stopped.begun = True
                        self.terminal.say(step.text)
                        if stopped:
                            break
                finally:
                    steps.close()  # type: ignore[attr-defined]
        except KeyboardInterrupt:
            self.terminal.note("stopped before the answer began: nothing was asked")
        self.terminal.end()
        if last is not None:
            self._count(last)
            self.terminal.note(self._numbers(last, bool(stopped)))
        for note in self.store.notes:
            self.terminal.note(note)
        self.store.notes.clear()
        self.keep()

    def keep(self) -> None:
        """The conversation as it is now, in its file."""
        if self.path is not None and self.talk.session.count:
            self.talk.save(self.path)

    def _count(self, last: Step) -> None:
        r = self.result
        r.answers, r.tokens = r.answers + 1, r.tokens + last.tokens
        r.prompt_tokens += last.prompt_tokens
        r.reused_tokens += last.reused_tokens
        r.prefilled_tokens += last.prefilled_tokens

    def _numbers(self, last: Step, stopped: bool) -> str:
        parts = [
            f"{last.tokens} tokens" + ("" if last.reason == "eos" else f" ({'stopped' if stopped else last.reason})")
        ]
        if last.decode_tps is not None:
            parts.append(f"{last.decode_tps:.1f} tokens/s")
        parts.append(f"first after {last.ttft_ms:.0f} ms")
        parts.append(f"read {last.prefilled_tokens} of {last.prompt_tokens}")
        parts += self.watch.seen()
        return f"[{', '.join(parts)}]" + (f"\nread again because {last.reuse_note}" if last.reuse_note else "")


def summary(result: ChatResult) -> str:
    """One line, when it is over."""
    kept = f", kept in {result.session}" if result.session is not None and result.session_tokens else ""
    return (
        f"{result.answers} answers of {result.tokens} tokens; prompts {result.prompt_tokens}, of these "
        f"{result.reused_tokens} reused and {result.prefilled_tokens} read{kept}"
    )


def outcome(result: ChatResult) -> dict[str, Any]:
    """For --json."""
    return {**vars(result), "session": str(result.session) if result.session is not None else None}
