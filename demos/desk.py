"""What chat.py does when a button is pressed, without knowing what a button is: open a bundle, answer, save and load conversations.

One engine serves everyone who looks at the page; each conversation has its own state.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panel import Answer, Panel

from quamba_edge.bundle.writer import replacing
from quamba_edge.errors import BadUsage, QuambaError
from quamba_edge.runtime import saved
from quamba_edge.runtime.model import load
from quamba_edge.runtime.sampling import Sampling
from quamba_edge.serve.engine import Service
from quamba_edge.serve.jobs import Cancelled, Done, Job, Limits, Piece
from quamba_edge.serve.pool import Prompt

NAME = re.compile(r"[\w][\w .,'-]{0,60}")
Talk = list[dict[str, str]]  # {"role", "content"} each, the system prompt not among them


def default_folder() -> Path:
    """Where conversations are kept: in the user's state folder."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "quamba_edge" / "conversations"


@dataclass
class Heard:
    """An answer as it grows; `note` tells its numbers, `session` where its state is kept, `ended` why it is over.

    `left`: the reader has begun another conversation meanwhile, and wants nothing of this one.
    """

    text: str = ""
    note: str = ""
    session: str | None = None
    ended: str | None = None
    left: bool = False


class Desk:
    """The open bundle and the folder of conversations."""

    def __init__(self, bundles: list[Path], folder: Path, backend: str = "auto", threads: int | None = None) -> None:
        self.bundles, self._folder, self._how = bundles, folder, (backend, threads)
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._left: set[Job] = set()
        self.service: Service | None = None
        self.open(bundles[0])
        self.panel = Panel(lambda: self.service)

    def open(self, path: Path) -> str:
        """Serve another bundle; what it is, in a line."""
        with self._lock:
            if path not in self.bundles:
                raise BadUsage(f"{path} is not one of the bundles this was started with")
            if self.service is not None:
                old, self.service = self.service, None
                old.close()  # before the other is opened: a small machine has no room for both
            backend, threads = self._how
            self.service = Service(lambda: load(path, backend, threads=threads), Limits(sessions=4))
            self.path = path
        return self.about()

    def about(self) -> str:
        """The open bundle, in a line."""
        service = self._service()
        manifest, engine = service.model.bundle.manifest, service.model.engine
        size = self.path.stat().st_size
        shown = f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
        return f"{manifest.family} · {manifest.recipe.get('name', 'mixed')} · {shown} · {engine.backend.name} backend"

    def answer(self, who: str, talk: Talk, system: str, sampling: Sampling, max_tokens: int) -> Iterator[Heard]:
        """Answer the conversation's last message, piece by piece.  `who` can `stop` it."""
        service, begun = self._service(), time.monotonic_ns()
        model = service.model
        messages = ([{"role": "system", "content": system.strip()}] if system.strip() else []) + talk
        if model.bundle.manifest.chat_template:
            text = model.render(messages)
        else:
            text = "".join(m["content"] for m in messages)  # a model without turns continues what stands there
        job = Job([Prompt(model.ids(text), text)], who, sampling, max_tokens)
        self.stop(who)
        self._jobs[who] = job
        heard, last = Heard(), 0.0
        try:
            for event in service.stream(job):
                if isinstance(event, Piece):
                    heard.text += event.step.text
                    heard.ended = event.step.reason
                    if time.monotonic() - last > 0.04:  # a browser draws no more often
                        last = time.monotonic()
                        yield heard
                elif isinstance(event, Done):
                    heard.session = job.usage.session
        except Cancelled:
            heard.ended, heard.session = "stopped", job.usage.session
        except QuambaError as e:
            heard.ended = str(e)
        finally:
            job.cancel()
            if self._jobs.get(who) is job:
                del self._jobs[who]
        usage = job.usage
        self.panel.answer = Answer(begun, time.monotonic_ns(), usage.completion, usage.ttft_ms, usage.decode_tps)
        heard.note, heard.left = _numbers(job, heard), job in self._left
        yield heard
        self._left.discard(job)

    def close(self) -> None:
        """Stop everything: answers, the model, the panel."""
        if self.service is not None:
            self.service.close()
        self.panel.close()

    def stop(self, who: str) -> None:
        """End the answer that `who` is being given, if there is one."""
        job = self._jobs.get(who)
        if job is not None:
            job.cancel()

    def leave(self, who: str) -> None:
        """As `stop`, with its last piece marked as not wanted any more; returns once that has been handed out, or after 5 s."""
        job = self._jobs.get(who)
        if job is not None:
            self._left.add(job)
            job.cancel()
            patience = time.monotonic() + 5
            while job in self._left and time.monotonic() < patience:
                time.sleep(0.01)
            self._left.discard(job)

    # Conversations: NAME.json is what was said, NAME.qsession the state after it, so that nothing is read again

    def saved(self) -> list[str]:
        """Names of the saved conversations, the latest first."""
        files = self._folder.glob("*.json") if self._folder.is_dir() else []
        return [p.stem for p in sorted(files, key=lambda p: -p.stat().st_mtime)]

    def save(self, name: str, talk: Talk, settings: dict[str, Any], session: str | None) -> str:
        """Keep a conversation; what was done, in a sentence."""
        path = self._path(name)
        if not talk:
            raise BadUsage("there is nothing to save yet: say something first")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path) as out:
            os.fchmod(out.fileno(), 0o600)
            kept = {
                "format": "quamba_edge conversation 1",
                "bundle": self.path.name,
                "talk": talk,
                "settings": settings,
            }
            out.write(json.dumps(kept, ensure_ascii=False, indent=1).encode())
        state = path.with_suffix(saved.SUFFIX)
        state.unlink(missing_ok=True)
        if session is None:
            return f"saved “{name.strip()}”"
        service = self._service()
        try:
            service.call(lambda: saved.save(service.pool.find(session).session, state)).result()
        except QuambaError:
            return f"saved “{name.strip()}”, without its state: the text will be read again"
        return f"saved “{name.strip()}” with its state: nothing of it will be read again"

    def load(self, name: str) -> tuple[Talk, dict[str, Any], str]:
        """A saved conversation, its settings, and what was done in a sentence."""
        path = self._path(name)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            talk = [{"role": str(m["role"]), "content": str(m["content"])} for m in kept["talk"]]
            settings, bundle = dict(kept["settings"]), str(kept["bundle"])
        except OSError as e:
            raise BadUsage(f"{path.name}: {e.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise BadUsage(f"{path.name} is no saved conversation") from None
        service, state = self._service(), path.with_suffix(saved.SUFFIX)

        def take() -> int:
            kept = service.pool.add(saved.load(state, service.model.engine, service.keep))
            service.pool.give(kept)
            return kept.session.count

        if not state.is_file():
            return talk, settings, f"loaded “{path.stem}”; its text will be read again"
        try:
            return (
                talk,
                settings,
                f"loaded “{path.stem}” with its state: {service.call(take).result()} tokens need no reading",
            )
        except QuambaError:
            return talk, settings, f"loaded “{path.stem}”, which was held with {bundle}; its text will be read again"

    def delete(self, name: str) -> str:
        """Remove a saved conversation."""
        path = self._path(name)
        for file in (path, path.with_suffix(saved.SUFFIX)):
            file.unlink(missing_ok=True)
        return f"deleted “{path.stem}”"

    def _path(self, name: str) -> Path:
        name = (name or "").strip()
        if not NAME.fullmatch(name):
            raise BadUsage(
                "a name has 1 to 60 letters, digits, spaces and plain punctuation, and begins with a letter or digit"
            )
        return self._folder / f"{name}.json"

    def _service(self) -> Service:
        if self.service is None:
            raise BadUsage("no bundle is open: pick one")
        return self.service


def _numbers(job: Job, heard: Heard) -> str:
    """One line under an answer."""
    usage = job.usage
    reason = {"eos": "", "length": "cut at the longest answer", "stopped": "stopped"}.get(
        heard.ended or "", heard.ended or ""
    )
    parts = [f"{usage.completion} tokens", f"prompt {usage.prompt}, {usage.reused} of it reused"]
    if usage.decode_tps:
        parts.append(f"{usage.decode_tps:.1f} tokens/s")
    if usage.ttft_ms is not None:
        parts.append(f"first after {usage.ttft_ms:.0f} ms")
    return " · ".join([*parts, reason] if reason else parts)
