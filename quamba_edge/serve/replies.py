"""What the engine said, in OpenAI's words: whole answers, chunks of a stream, errors.  Pure."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from quamba_edge.errors import BadSession, BadUsage, QuambaError
from quamba_edge.runtime.tokenizer import Tokenizer
from quamba_edge.serve.chances import Chance
from quamba_edge.serve.fields import BadRequest
from quamba_edge.serve.jobs import Closing, Ended, Event, Piece, Prompted, TimeUp, Usage
from quamba_edge.serve.openai import Ask
from quamba_edge.serve.scheduler import Overloaded


@dataclass
class _Choice:
    text: str = ""
    reason: str | None = None
    chances: list[Chance] = field(default_factory=list)


class Reply:
    """One reply to one request: `push` every event, then `whole`; or send what `push` gives, then `last`."""

    def __init__(self, ask: Ask, model: str, tokenizer: Tokenizer) -> None:
        self._ask, self._tokenizer = ask, tokenizer
        prefix = "chatcmpl-" if ask.chat else "cmpl-"
        self._head = {"id": prefix + secrets.token_hex(12), "created": int(time.time()), "model": model}
        self._choices: dict[int, _Choice] = {}
        self._offset: dict[int, int] = {}

    def push(self, event: Event) -> Iterator[dict[str, Any]]:
        """Take an event in; the chunks that a stream sends for it."""
        ask = self._ask
        if not isinstance(event, (Prompted, Piece, Ended)):
            return
        choice = self._choices.setdefault(event.choice, _Choice())
        text, chances, reason = "", [], None
        if isinstance(event, Prompted):
            if ask.chat:
                yield self._chunk(event.choice, {"role": "assistant", "content": ""}, [], None)
            elif ask.echo:
                text, chances = self._tokenizer.decode(event.ids), list(event.chances)
        elif isinstance(event, Piece):
            text, chances = event.step.text, [event.chance] if event.chance else []
        else:
            reason = choice.reason = event.reason
        if not ask.stream:
            choice.text += text
            choice.chances += chances
        elif text or chances or reason:
            yield self._chunk(event.choice, text, chances, reason)

    def whole(self, usage: Usage) -> dict[str, Any]:
        """The reply that is not a stream."""
        choices = []
        for index, choice in sorted(self._choices.items()):
            said: dict[str, Any] = {"index": index, "finish_reason": choice.reason}
            said["logprobs"] = self._logprobs(index, choice.chances)
            if self._ask.chat:
                said["message"] = {"role": "assistant", "content": choice.text, "refusal": None}
            else:
                said["text"] = choice.text
            choices.append(said)
        kind = "chat.completion" if self._ask.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, **self._numbers(usage)}

    def last(self, usage: Usage) -> dict[str, Any] | None:
        """The chunk with the numbers, for those who asked for it."""
        if not self._ask.include_usage:
            return None
        return {**self._head, "object": self._kind(), "choices": [], **self._numbers(usage)}

    def _kind(self) -> str:
        return "chat.completion.chunk" if self._ask.chat else "text_completion"

    def _chunk(
        self, index: int, text: str | dict[str, str], chances: list[Chance], reason: str | None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": reason, "logprobs": self._logprobs(index, chances)}
        if self._ask.chat:
            choice["delta"] = text if isinstance(text, dict) else {"content": text} if text or not reason else {}
        else:
            choice["text"] = text
        usage = {"usage": None} if self._ask.include_usage else {}
        return {**self._head, "object": self._kind(), "choices": [choice], **usage}

    @staticmethod
    def _numbers(usage: Usage) -> dict[str, Any]:
        total = usage.prompt + usage.completion
        counts = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion, "total_tokens": total}
        own = {"session": usage.session, "queue_ms": usage.queue_ms, "ttft_ms": usage.ttft_ms}
        own |= {"decode_tps": usage.decode_tps, "prefilled_tokens": usage.prompt - usage.reused}
        own |= {"reuse_note": usage.reuse_note}
        return {"usage": {**counts, "prompt_tokens_details": {"cached_tokens": usage.reused}}, "quamba_edge": own}

    def _logprobs(self, index: int, chances: Sequence[Chance]) -> dict[str, Any] | None:
        if self._ask.logprobs is None or not chances:
            return None
        if self._ask.chat:
            return {"content": [self._named(c) for c in chances], "refusal": None}
        out: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        offset = self._offset.get(index, 0)
        for c in chances:
            token = self._text(c.token)
            out["tokens"].append(token)
            out["token_logprobs"].append(c.logprob)
            out["text_offset"].append(offset)
            offset += len(token)
            if c.logprob is None:
                out["top_logprobs"].append(None)
                continue
            top: dict[str, float] = {}
            for rival, logprob in (*c.top, (c.token, c.logprob)):
                top.setdefault(self._text(rival), logprob)  # ids that print alike: the likeliest stands for them
            out["top_logprobs"].append(top)
        self._offset[index] = offset
        return out

    def _named(self, c: Chance) -> dict[str, Any]:
        return {**self._token(c.token, c.logprob), "top_logprobs": [self._token(i, value) for i, value in c.top]}

    def _token(self, i: int, logprob: float | None) -> dict[str, Any]:
        return {"token": self._text(i), "logprob": logprob, "bytes": list(self._tokenizer.piece(i))}

    def _text(self, i: int) -> str:
        return self._tokenizer.piece(i).decode("utf-8", errors="replace")


def models(name: str, created: int) -> dict[str, Any]:
    """GET /v1/models."""
    return {"object": "list", "data": [{"id": name, "object": "model", "created": created, "owned_by": "quamba_edge"}]}


def failure(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and OpenAI's error object.  What nobody foresaw is told without its inner words: they go to the log."""
    status, kind, param, code = 500, "server_error", None, None
    message = str(error)
    if isinstance(error, BadRequest):
        status, kind, param, code = error.status, "invalid_request_error", error.param, error.code
        kind = "authentication_error" if status == 401 else kind
    elif isinstance(error, (BadUsage, BadSession)):
        status, kind = 400, "invalid_request_error"
    elif isinstance(error, Overloaded):
        status, kind, code = 503, "overloaded_error", "queue_full"
    elif isinstance(error, Closing):
        status, kind, code = 503, "overloaded_error", "stopping"
    elif isinstance(error, TimeUp):
        status, kind, code = 504, "timeout_error", "timeout"
    elif not isinstance(error, QuambaError):
        message = f"the server failed ({type(error).__name__}): its log says where"
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}


def sse(value: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + dump(value) + b"\n\n"


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
