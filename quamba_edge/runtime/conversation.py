"""A conversation with a model: what was said, and one session that has read it.

    talk = Conversation(model)
    for step in talk.ask("Tell me a story."):
        print(step.text, end="", flush=True)

Each turn feeds the session only what it has not seen: the text that the chat template puts between an answer and the next one.  A model
without a template has no turns: what is asked is continued as it stands.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quamba_edge.bundle.writer import replacing
from quamba_edge.errors import BadUsage
from quamba_edge.runtime import saved
from quamba_edge.runtime.generate import Prefixes, Step
from quamba_edge.runtime.model import Model, generate
from quamba_edge.runtime.sampling import Sampling


@dataclass
class Turn:
    """One exchange; the answer grows while it is given.

    begin   tokens that the session had seen before it
    unread  tokens chosen before it that it had not: the last one of an answer that was cut off
    asked   tokens up to where the answer begins
    """

    question: str
    answer: str
    begin: int
    unread: list[int]
    asked: int


class Conversation:
    """`turns` so far; `session` has seen all of them.  An iterator of `ask` or `retry` may be left at any step: the answer ends there."""

    def __init__(self, model: Model, system: str | None = None, prefixes: Prefixes | None = None, *, raw: bool = False):
        """raw: continue what is asked as it stands, also where the model has a chat template."""
        self.templated = bool(model.bundle.chat_template) and not raw
        self.model, self.system, self.prefixes = model, system, prefixes
        self.session, self.turns = model.session(), []  # type: Any, list[Turn]
        self._unread: list[int] = []
        self._seen = 0  # what the session has seen, when nothing went wrong

    def reset(self, system: str | None = None) -> None:
        """Begin anew."""
        self.session.reset()
        self.system, self.turns, self._unread, self._seen = system, [], [], 0

    def ask(
        self, text: str, *, sampling: Sampling | None = None, max_tokens: int = 256, stop: Sequence[str] = ()
    ) -> Iterator[Step]:
        """The answer, token by token.  Where it fails or is stopped before the first token, nothing has been asked."""
        begin, unread = self._seen, list(self._unread)
        prompt, follows = self._prompt(text)
        common = 0
        if self.system and self.templated and self.prefixes is not None and not follows:
            common = len(self.model.system_ids([{"role": "system", "content": self.system}]))
        steps = generate(
            self.model,
            prompt,
            session=self.session,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            follows=follows,
            prefixes=self.prefixes,
            prefix_tokens=common,
        )
        return self._answer(steps, Turn(text, "", begin, unread, 0))

    def retry(
        self, *, sampling: Sampling | None = None, max_tokens: int = 256, stop: Sequence[str] = ()
    ) -> Iterator[Step]:
        """Another answer to the last question.  BadUsage where there is none."""
        if not self.turns:
            raise BadUsage("there is no answer to try again: ask something first")
        turn = self.turns[-1]
        options: dict[str, Any] = {"sampling": sampling, "max_tokens": max_tokens, "stop": stop}
        try:
            self.session.rewind(turn.asked)
        except BadUsage:  # the way back is not known, or the state was lost: the question is read again, too
            self.undo()
            return self.ask(turn.question, **options)
        self.turns.pop()
        turn.answer, self._unread, self._seen = "", [], turn.asked
        return self._answer(generate(self.model, [], session=self.session, follows=True, **options), turn)

    def undo(self) -> Turn:
        """Take back the last question and its answer.

        Where the session cannot go back that far, the words that are left are read again with the next question; BadUsage where
        not all of those are known, either, or where there is nothing to undo.
        """
        if not self.turns:
            raise BadUsage("there is nothing to undo")
        turn = self.turns[-1]
        if turn.begin <= self.session.count:
            try:
                self.session.rewind(turn.begin)
            except BadUsage:
                if self.turns[0].begin:
                    raise
                self.session.reset()
        self.turns.pop()
        self._unread, self._seen = list(turn.unread), turn.begin
        return turn

    def save(self, path: Path) -> saved.Saved:
        """The session to `path`, and the words to `path`.json beside it: with them undo and retry work after `load`, too."""
        if self.session.count != self._seen:
            raise BadUsage("an interruption cost the session its state: ask something, so that the text is read again")
        if self._unread:  # so that the state alone is the whole conversation
            self.session.prefill(self._unread)
            self._unread, self._seen = [], self.session.count
        facts = saved.save(self.session, path)
        words = {"digest": facts.digest, "system": self.system, "turns": [asdict(t) for t in self.turns]}
        with replacing(_words(path)) as out:
            os.fchmod(out.fileno(), 0o600)
            out.write(json.dumps(words, ensure_ascii=False).encode())
        return facts

    def open(self, path: Path) -> bool:
        """`load` it if it exists, which this says; BadUsage early if it could not be saved there."""
        if not path.parent.is_dir():
            raise BadUsage(f"there is no folder {path.parent} to keep {path.name} in: mkdir -p {path.parent}")
        if path.exists():
            self.load(path)
            return True
        return False

    def load(self, path: Path) -> None:
        """Go on from there, with nothing to read again.  Raises as saved.load, and then nothing has changed."""
        session = saved.load(path, self.model.engine)
        self.session, self._unread, self._seen = session, [], session.count
        self.system, self.turns = _said(_words(path), session.seen.digest(), session.count)

    def _answer(self, steps: Iterator[Step], turn: Turn) -> Iterator[Step]:
        """The steps, while the turn and what is still unread follow them."""
        begun = False
        try:
            for step in steps:
                if not begun:
                    begun, turn.asked = True, self.session.count
                    self.turns.append(turn)
                turn.answer += step.text
                self._unread = [] if step.reason == "eos" else [step.token]
                self._seen = self.session.count
                yield step
        finally:
            if not begun:
                # Nothing was asked, though a part of the prompt may have been read; without a way back, `ask` reads all again.
                self._unread, self._seen = list(turn.unread), turn.begin
                if self.session.count > turn.begin:
                    with suppress(BadUsage):
                        self.session.rewind(turn.begin)

    def _prompt(self, text: str) -> tuple[Any, bool]:
        """What to give to `generate`, and whether it follows what the session has seen."""
        model = self.model
        if self.session.count != self._seen:  # an interruption cost the session its state
            return self._whole(text), False
        if not self.session.count:
            return (self._messages(text) if self.templated else text), False
        if self.templated:
            try:
                text = model.next_turn(text)
            except BadUsage:
                return model.ids(self._messages(text), self.session), False
        return [*self._unread, *model.tokenizer.encode(text)], True

    def _whole(self, text: str) -> Any:
        if self.templated:
            return self._messages(text)
        return "".join(t.question + t.answer for t in self.turns) + text

    def _messages(self, text: str) -> list[dict[str, str]]:
        talk = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            talk += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
        return [*talk, {"role": "user", "content": text}]


def _words(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _said(path: Path, digest: str, count: int) -> tuple[str | None, list[Turn]]:
    """System prompt and turns of a saved conversation; nothing where the file is not there, or not of this session."""
    try:
        raw = json.loads(path.read_bytes())
        turns = [Turn(**t) for t in raw["turns"]]
        places = [n for t in turns for n in (t.begin, t.asked)] + [count]
        words = [raw["system"] or "", *(w for t in turns for w in (t.question, t.answer))]
        ids = [i for t in turns for i in t.unread]
        if raw["digest"] == digest and all(type(n) is int for n in (*places, *ids)) and places == sorted(places):
            if all(type(w) is str for w in words):
                return raw["system"], turns
    except (OSError, ValueError, LookupError, TypeError):
        pass  # damaged, or not there
    return None, []
