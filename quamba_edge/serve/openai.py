"""Requests in OpenAI's words to ours.  Pure: JSON objects in, plain facts out; what does not fit is refused by name.

Beyond OpenAI: top_k, min_p, repetition_penalty, ignore_eos, session.  docs/serve.md lists every field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quamba_edge.runtime.sampling import Sampling
from quamba_edge.serve.fields import BadRequest, Fields, is_number
from quamba_edge.serve.jobs import Limits

TOP = 20  # most rivals of a token that may be asked for, as OpenAI has it
HARMLESS = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True)
class Ask:
    """What a request asks for.  Either `messages` (chat) or `prompts`, each a text or token ids.

    logprobs: None, or how many rivals of each token to name.  client: who takes turns with others, where the request says so.
    session: id of a kept session that the prompt follows.
    """

    chat: bool
    messages: Sequence[Mapping[str, str]] = ()
    prompts: Sequence[str | list[int]] = ()
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 16
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    echo: bool = False
    stream: bool = False
    include_usage: bool = False
    ignore_end: bool = False
    client: str | None = None
    session: str | None = None


@dataclass(frozen=True)
class Served:
    """What requests are held against: the model's name, how many token ids it has, and the limits."""

    name: str
    vocab: int
    limits: Limits = field(default_factory=Limits)


def chat(raw: dict[str, Any], served: Served) -> Ask:
    """POST /v1/chat/completions."""
    fields, limits = Fields(raw), served.limits
    client = _common(fields, served)
    messages = _messages(fields.any("messages"))
    most = fields.whole("max_tokens", 1, limits.tokens)
    most = fields.whole("max_completion_tokens", 1, limits.tokens, most)
    wanted = fields.flag("logprobs")
    top = fields.whole("top_logprobs", 0, TOP)
    if top is not None and not wanted:
        raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    fields.only("tools", [])
    fields.only("functions", [])
    fields.only("tool_choice", "none", "auto")
    fields.only("function_call", "none", "auto")
    fields.only("response_format", {"type": "text"})
    fields.only("modalities", ["text"])
    fields.only("audio")
    fields.only("prediction")
    fields.only("web_search_options")
    fields.ignore("parallel_tool_calls", "reasoning_effort", "verbosity")
    return _ask(
        fields,
        served,
        chat=True,
        messages=messages,
        max_tokens=most or limits.tokens,
        logprobs=(top or 0) if wanted else None,
        client=client,
    )


def completion(raw: dict[str, Any], served: Served) -> Ask:
    """POST /v1/completions."""
    fields, limits = Fields(raw), served.limits
    client = _common(fields, served)
    prompts = _prompts(fields.any("prompt"), served)
    most = fields.whole("max_tokens", 0, limits.tokens, 16)
    top = fields.whole("logprobs", 0, TOP)
    echo = fields.flag("echo")
    best = fields.whole("best_of", 1, limits.choices)
    if best is not None and best != (raw.get("n") or 1):
        raise BadRequest("best_of is not supported: leave it out", param="best_of", code="unsupported_parameter")
    fields.only("suffix", "")
    session = fields.text("session")
    if session is not None and (len(prompts) > 1 or echo or raw.get("n") not in (None, 1) or most == 0):
        text = "with session: one prompt, n 1, no echo, and max_tokens of 1 or more"
        raise BadRequest(text, "session", "invalid_value")
    return _ask(
        fields,
        served,
        chat=False,
        prompts=prompts,
        max_tokens=most,
        logprobs=top,
        echo=echo,
        client=client,
        session=session,
    )


def _common(fields: Fields, served: Served) -> str | None:
    asked = fields.text("model") or served.name
    if asked != served.name:
        raise BadRequest(
            f"there is no model {asked[:80]!r} here: this server has {served.name!r}", "model", "model_not_found", 404
        )
    client = fields.text("user")
    fields.ignore(*HARMLESS)
    return client


def _ask(fields: Fields, served: Served, **known: Any) -> Ask:
    """What both kinds of request have in common; nothing may be left after it."""
    limits = served.limits
    n = fields.whole("n", 1, limits.choices, 1)
    answers = n * max(1, len(known.get("prompts", ())))
    if answers > limits.choices:
        raise BadRequest(f"{answers} answers in one request: at most {limits.choices}", "n", "invalid_value")
    stream = fields.flag("stream")
    options = fields.any("stream_options")
    if options is not None and not (stream and isinstance(options, dict)):
        raise BadRequest("stream_options is an object, and only with stream: true", "stream_options", "invalid_value")
    inner = Fields(options or {}, "stream_options.")
    include_usage = inner.flag("include_usage")
    inner.ignore("include_obfuscation")
    inner.rest()
    seed = fields.whole("seed", -(2**63), 2**64 - 1)
    sampling = Sampling(
        temperature=fields.number("temperature", 0, 100, 1.0),
        top_k=max(0, fields.whole("top_k", -1, 2**31, 0)),  # -1 means all to some clients
        top_p=_above_zero(fields, "top_p", 1),
        min_p=fields.number("min_p", 0, 1, 0.0),
        repetition_penalty=_above_zero(fields, "repetition_penalty", 100),
        presence_penalty=fields.number("presence_penalty", -100, 100, 0.0),
        frequency_penalty=fields.number("frequency_penalty", -100, 100, 0.0),
        logit_bias=_bias(fields, served.vocab),
        seed=None if seed is None else seed % 2**64,
    )
    stop = fields.texts("stop", 16, 1000)
    ignore_end = fields.flag("ignore_eos")
    fields.rest()
    return Ask(
        sampling=sampling, stop=stop, n=n, stream=stream, include_usage=include_usage, ignore_end=ignore_end, **known
    )


def _above_zero(fields: Fields, name: str, high: float) -> float:
    value = fields.number(name, 0, high, 1.0)
    if value == 0:
        fields.refuse(name, value, f"more than 0, at most {high}")
    return value


def _bias(fields: Fields, vocab: int) -> dict[int, float]:
    value = fields.any("logit_bias")
    if value is None:
        return {}
    if not isinstance(value, dict):
        fields.refuse("logit_bias", value, "an object of token ids and numbers")
    for key, bias in value.items():
        # isdecimal alone would let other scripts' digits through, and int() refuses thousands of them
        fits = key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocab
        if not fits or not is_number(bias) or not -1000 <= bias <= 1000:
            fields.refuse(f"logit_bias[{key[:20]}]", bias, f"token ids below {vocab} with numbers from -1000 to 1000")
    return {int(key): float(bias) for key, bias in value.items()}


def _prompts(value: Any, served: Served) -> list[str | list[int]]:
    """A text, token ids, or a list of either."""
    expected = f"a text, a list of token ids from 0 to {served.vocab - 1}, or a list of these"
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        found = "absent" if value is None else "an empty list" if value == [] else "something else"
        raise BadRequest(f"prompt is {found}: expected {expected}", "prompt", "invalid_value")
    if _ids(value, served.vocab):
        return [value]
    if not all(isinstance(p, str) or (isinstance(p, list) and p and _ids(p, served.vocab)) for p in value):
        raise BadRequest(f"prompt holds something else than expected: {expected}", "prompt", "invalid_value")
    return value


def _ids(value: list[Any], vocab: int) -> bool:
    return all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocab for i in value)


def _messages(value: Any) -> list[dict[str, str]]:
    """Roles and texts; a content in parts is their text joined."""
    if not isinstance(value, list) or not value:
        raise BadRequest("messages is missing: expected a list of {role, content}", "messages", "invalid_value")
    out = []
    for i, message in enumerate(value):
        at = f"messages[{i}]."
        if not isinstance(message, dict):
            raise BadRequest(f"messages[{i}] is no object: expected {{role, content}}", "messages", "invalid_value")
        fields = Fields(message, at)
        role = fields.text("role")
        if role not in ROLES:
            fields.refuse("role", role, f"one of {', '.join(ROLES)}")
        out.append({"role": "system" if role == "developer" else str(role), "content": _content(fields, at)})
        fields.only("tool_calls", [])
        fields.only("audio")
        fields.ignore("name", "refusal", "annotations", "reasoning_content")
        fields.rest()
    return out


def _content(fields: Fields, at: str) -> str:
    value = fields.any("content")
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [value]
    texts = [p.get("text") for p in parts if isinstance(p, dict) and p.get("type") == "text"]
    if len(texts) != len(parts) or not all(isinstance(t, str) for t in texts):
        raise BadRequest(f"{at}content is not text: this model reads nothing else", at + "content", "invalid_value")
    return "".join(map(str, texts))
