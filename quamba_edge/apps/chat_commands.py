"""The commands of `quamba-edge chat`: what a line that begins with a slash does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from quamba_edge.apps.terminal import Leave
from quamba_edge.errors import BadUsage
from quamba_edge.runtime import saved

if TYPE_CHECKING:
    from quamba_edge.apps.chat import Chat

HELP = """\
/save FILE      keep the conversation in a file of constant size; /load FILE goes on from there with nothing to read again
/list [FOLDER]  the conversations saved in a folder
/undo           take back the last question and its answer
/retry          another answer to the last question
/reset          begin anew
/system TEXT    begin anew with this system prompt; without a text, with none
/stats          numbers of the conversation
/exit           leave, like Ctrl-D; Ctrl-C stops an answer
A line that ends in \\ goes on in the next; one that begins with // is said with one /."""


class Commands:
    """Each says what it did in a note."""

    def __init__(self, chat: Chat):
        self.chat = chat
        self._known: dict[str, Callable[[str], None]] = {
            "save": self._save,
            "load": self._load,
            "list": self._list,
            "undo": self._undo,
            "retry": self._retry,
            "reset": self._reset,
            "system": self._system,
            "stats": self._stats,
            "help": lambda rest: self.chat.terminal.note(HELP),
            "exit": self._exit,
            "quit": self._exit,
        }

    def do(self, line: str) -> None:
        """A line, without its slash.  QuambaError where it cannot be done, Leave where it says so."""
        word, _, rest = line.partition(" ")
        if word not in self._known:
            raise BadUsage(f"there is no command /{word}: /help lists them; begin with // to say something with a /")
        self._known[word](rest.strip())

    def _save(self, rest: str) -> None:
        facts = self.chat.talk.save(self._named(rest, "save"))
        self.chat.terminal.note(f"saved {facts.path}: {facts.tokens} tokens in {facts.nbytes} bytes")

    def _load(self, rest: str) -> None:
        path = self._named(rest, "load")
        self.chat.talk.load(path)
        self.loaded(path)

    def loaded(self, path: Path) -> None:
        known = len(self.chat.talk.turns)
        self.chat.terminal.note(
            f"loaded {path}: {self.chat.talk.session.count} tokens, nothing read again, "
            + (f"{known} turns to undo" if known else "its words are not beside it, so its turns cannot be undone")
        )

    def _list(self, rest: str) -> None:
        found = saved.listing(Path(rest or "."))
        lines = [f"{s.path.name}  {s.tokens} tokens, {s.nbytes} bytes, {s.family} {s.state_dtype}" for s in found]
        self.chat.terminal.note(
            "\n".join(lines) or f"no saved conversations (*{saved.SUFFIX}) in {rest or 'this folder'}"
        )

    def _undo(self, rest: str) -> None:
        turn = self.chat.talk.undo()
        left, count = len(self.chat.talk.turns), self.chat.talk.session.count
        lost = "" if count == turn.begin else "; what is left is read again with the next question"
        self.chat.terminal.note(f"took back {turn.question!r}: {left} turns left, {turn.begin} tokens{lost}")
        if not lost:
            self.chat.keep()

    def _retry(self, rest: str) -> None:
        self.chat.answer(self.chat.talk.retry(**self.chat.how()))
        if self.chat.settings.sampling.temperature == 0:
            self.chat.terminal.note(
                "the likeliest tokens are the same every time: --temperature above 0 gives other answers"
            )

    def _reset(self, rest: str) -> None:
        self.chat.talk.reset(self.chat.talk.system)
        self.chat.terminal.note("begun anew")

    def _system(self, rest: str) -> None:
        if rest and not self.chat.talk.templated:
            raise BadUsage("this model has no chat template, so it has no place for a system prompt")
        self.chat.talk.reset(rest or None)
        self.chat.terminal.note("begun anew, " + ("with this system prompt" if rest else "without a system prompt"))

    def _stats(self, rest: str) -> None:
        session, r = self.chat.talk.session, self.chat.result
        ring, size = session.snapshots, session.snapshots.nbytes
        places = ", ".join(map(str, reversed(ring.counts()))) or "none"
        lines = [
            f"text       {session.count} tokens in {len(self.chat.talk.turns)} turns",
            f"state      {session.state().nbytes} bytes, {self.chat.model.engine.state_dtype}",
            f"snapshots  {size} bytes, after token {places}",
            f"answers    {r.answers}, {r.tokens} tokens",
            f"prompts    {r.prompt_tokens} tokens, {r.reused_tokens} reused, {r.prefilled_tokens} read",
            f"machine    {', '.join(self.chat.watch.seen()) or 'nothing known'}",
        ]
        self.chat.terminal.note("\n".join(lines))

    def _exit(self, rest: str) -> None:
        raise Leave("/exit")

    def _named(self, rest: str, command: str) -> Path:
        if not rest:
            raise BadUsage(f"/{command} needs a file: /{command} NAME")
        path = Path(rest).expanduser()
        return path if path.suffix else path.with_name(path.name + saved.SUFFIX)
