"""A bundle ready to talk: its engine, its tokenizer and its chat template, for faces and for people's own scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quamba_edge.bundle.reader import Bundle
from quamba_edge.errors import BadUsage
from quamba_edge.runtime import chat_template
from quamba_edge.runtime import generate as generation
from quamba_edge.runtime.sampling import Sampling
from quamba_edge.runtime.seen import shared
from quamba_edge.runtime.session import Engine, Session
from quamba_edge.runtime.snapshots import USUAL, Keep
from quamba_edge.runtime.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Model:
    """What `load` gives."""

    bundle: Bundle
    engine: Engine
    tokenizer: Tokenizer

    @property
    def eos(self) -> frozenset[int]:
        """Ids that end an answer."""
        return frozenset(self.bundle.manifest.tokenizer["eos"])

    def session(self, keep: Keep = USUAL) -> Session:
        """An empty state of its own, that keeps snapshots to go back to; sessions of one model do not know of each other."""
        return Session(self.engine, keep)

    def ids(self, prompt: Prompt, session: Session | None = None) -> list[int]:
        """Token ids of a prompt: text, a conversation ({"role", "content"} each) by the model's template, or ids.

        Text begins with what the tokenizer begins every text with, if anything (`Tokenizer.opened`).  Empty text is the model's
        beginning-of-text token.  Where text begins with what `session` has seen, the ids begin with the session's, so that its
        state serves: a model writes its words in other tokens than the tokenizer would.
        BadUsage without a beginning-of-text token or without a template.
        """
        bos = self.bundle.manifest.tokenizer.get("bos")
        given: Any = prompt
        if not isinstance(given, str) and len(given) and isinstance(given[0], Mapping):
            given = self.render(given)
        ids = self._encoded(given, session) if isinstance(given, str) else [int(i) for i in given]
        if not ids:
            if bos is None:
                raise BadUsage("the prompt is empty and this model has no beginning-of-text token: give it some text")
            ids = [int(bos)]
        size = self.bundle.manifest.vocab_size
        if not 0 <= min(ids) <= max(ids) < size:
            raise BadUsage(
                f"the prompt holds token {max(ids) if max(ids) >= size else min(ids)}, expected ids from 0 to {size - 1}"
            )
        return ids

    def _encoded(self, text: str, session: Session | None) -> list[int]:
        ids = self.tokenizer.opened(text)
        if session is None or not session.seen.whole or session.seen.shared(ids) == session.count:
            return ids
        for count in (session.count, *session.snapshots.counts()):
            said = self.tokenizer.decode(session.tokens[:count])
            if text.startswith(said):
                return session.tokens[:count] + self.tokenizer.encode(text[len(said) :])
        return ids

    def next_turn(self, content: str) -> str:
        """The text between an answer and the next one, with the user's message `content` in it, by the model's template.

        It is what a session that has seen a conversation reads next.  BadUsage without a template, or with one whose turns
        depend on those before (such a conversation is rendered whole).
        """
        answer = "an answer of the assistant"
        talk = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
        before, text = self.render(talk, False), self.render([*talk, {"role": "user", "content": content}])
        if not text.startswith(before) or before.count(answer) != 1:
            raise BadUsage("this model's chat template rewrites earlier turns: give it the whole conversation")
        return text[before.index(answer) + len(answer) :]

    def system_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids that every conversation which begins with these (system) messages begins with."""
        one, other = (self.ids([*messages, {"role": "user", "content": c}]) for c in ("Why?", "0 8 15"))
        return one[: shared(one, other)]

    def render(self, messages: Sequence[Mapping[str, Any]], answers: bool = True) -> str:
        """The conversation as the prompt text that the model was trained on; with `answers` it ends where an answer begins."""
        template, special = self.bundle.manifest.chat_template, self.bundle.manifest.tokenizer
        if not template:
            raise BadUsage(
                "this bundle has no chat template: use a raw prompt, or pack it again with --chat-template FILE"
            )
        bos, eos = special.get("bos"), special["eos"]
        return chat_template.render(
            template,
            messages,
            add_generation_prompt=answers,
            bos_token=(self.tokenizer.token(bos) or "") if bos is not None else "",
            eos_token=(self.tokenizer.token(eos[0]) or "") if eos else "",
        )


def load(
    path: str | Path,
    backend: str = "auto",
    *,
    state_dtype: str = "f16",
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Model:
    """Open a bundle and make it ready to run.

    backend: "auto" takes the fastest this machine has, a name never falls back; `model.engine.backend.name` says which.
    state_dtype: "f16", "f32", "i8" or "auto" (runtime/state.py).  Errors: BadBundle and its kinds for the file, Missing for the machine.
    progress: told (bytes, of all) while weights are copied to a GPU.
    """
    bundle = Bundle.open(Path(path))
    tokenizer = Tokenizer(bundle.tokenizer_json(), f"{path}: tokenizer.json")
    return Model(bundle, Engine(bundle, backend, state_dtype, threads, progress), tokenizer)


def generate(
    model: Model,
    prompt: Prompt,
    *,
    session: Session | None = None,
    sampling: Sampling | None = None,
    max_tokens: int = 256,
    stop: Sequence[str] = (),
    follows: bool = False,
    prefixes: generation.Prefixes | None = None,
    prefix_tokens: int = 0,
) -> Iterator[generation.Step]:
    """Continue a prompt; a session that already holds its beginning reads only the rest.  See runtime/generate.py."""
    session = session or model.session()
    nothing = follows and not len(prompt) and session.count > 0
    return generation.generate(
        session,
        [] if nothing else model.ids(prompt, None if follows else session),
        model.tokenizer,
        sampling=sampling,
        max_tokens=max_tokens,
        stop=stop,
        eos=model.eos,
        follows=follows,
        prefixes=prefixes,
        prefix_tokens=prefix_tokens,
    )
