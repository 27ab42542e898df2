"""Messages to prompt text by the model's own Jinja template, in the dialect of transformers.

A template is a program that came with a download.  It runs in jinja2's immutable sandbox (no attribute tricks, no changes to
what it is given) under a budget of steps and of characters, because the sandbox alone stops neither an endless loop nor a
string that doubles until memory is gone.  Steps are counted by a trace function, which sees Python lines; what C code could
blow up in a single line (products, joins, padding, spelling out a nested list) is measured before it is done.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quamba_edge.errors import BadBundle, BadUsage

MAX_STEPS = (
    500_000  # a conversation of 100 messages takes about 3,000; counting to the end takes about a second on a board
)
MAX_TEXT = 4_000_000  # characters of any text or items of any list: more than a small board reads in a day
# Text methods whose result is as long as a number says, and formats that set a width: by digits, by "*", by a nested field.
WIDENING = frozenset({"ljust", "rjust", "center", "zfill", "expandtabs"})
WIDE_FORMAT = re.compile(r"\d{4}|\*|\{[^{}]*\{")


class _TooMuch(Exception):
    """A budget is used up; the message says which."""


class _Refused(Exception):
    """The template called raise_exception."""


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    bos_token: str = "",
    eos_token: str = "",
    **variables: Any,
) -> str:
    """The prompt text of a conversation.

    messages: {"role": ..., "content": ...} each; `variables` are further names the template may use (tools, documents).
    BadBundle when the template is wrong, refuses to stop, or tries what the sandbox forbids; BadUsage when it rejects the
    conversation itself by calling raise_exception.
    """
    if not messages:
        raise BadUsage("no messages: a chat prompt needs at least one")
    given = {"tools": None, "documents": None, **variables, "bos_token": bos_token, "eos_token": eos_token}
    given |= {"messages": [dict(m) for m in messages], "add_generation_prompt": add_generation_prompt}
    try:
        return _budgeted(_ENVIRONMENT.from_string(template), given)
    except _Refused as e:
        raise BadUsage(f"the model's chat template rejects this conversation: {e}") from None
    except jinja2.TemplateSyntaxError as e:
        raise BadBundle(f"chat template, line {e.lineno}: {e.message}") from None
    except SecurityError as e:
        raise BadBundle(
            f"chat template: it tries what no template may ({e}); read it before you use this bundle"
        ) from None
    except (_TooMuch, MemoryError, RecursionError) as e:
        found = (
            "calls itself without end" if isinstance(e, RecursionError) else str(e) or "needs more memory than there is"
        )
        raise BadBundle(f"chat template: stopped, because it {found}; a template that ends is expected") from None
    except Exception as e:  # a template can fail in every way Python can
        raise BadBundle(f"chat template: it fails on this conversation ({type(e).__name__}: {e})") from None


def _budgeted(compiled: jinja2.Template, given: dict[str, Any]) -> str:
    outer, pieces, length = sys.gettrace(), [], 0
    sys.settrace(_Steps().trace)
    try:
        for piece in compiled.generate(given):
            pieces.append(piece)
            length += len(piece)
            _limit(length)
    finally:
        sys.settrace(outer)
    return "".join(pieces)


class _Steps:
    """A trace function that counts the calls and lines run under it."""

    def __init__(self) -> None:
        self.left = MAX_STEPS

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise _TooMuch(f"takes more than {MAX_STEPS} steps")
        return self.trace


def _limit(length: float) -> None:
    if length > MAX_TEXT:
        raise _TooMuch(f"makes a value of more than {MAX_TEXT} characters or items")


def _weighed(value: Any) -> Any:
    """The value, once a walk through its parts has ended: a list of lists that doubles at each level spells out as 2^n."""
    if isinstance(value, (list, tuple, dict)):
        parts, weight = [value], 0
        while parts:
            part = parts.pop()
            weight += len(part) if isinstance(part, (str, list, tuple, dict)) else 1
            _limit(weight)
            if isinstance(part, dict):
                parts.extend(part.values())
            elif isinstance(part, (list, tuple)):
                parts.extend(part)
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(_weighed(value))


def _sized(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 0


class _Joined(CodeGenerator):
    """jinja2 compiles `a ~ b` to a join that no hook sees: let the environment do it."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "+", "%"})
    code_generator_class = _Joined

    def joined(self, parts: tuple[Any, ...]) -> str:
        return _join([_text(p) for p in parts])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(times, int):
                    _limit(_sized(sequence) * times)
            if isinstance(left, int) and isinstance(right, int):
                _limit(left.bit_length() + right.bit_length())
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _limit(left.bit_length() * right)
        elif operator == "+":
            _limit(_sized(left) + _sized(right))
        elif operator == "%" and isinstance(left, (str, bytes)):
            return _format(left, *(right if isinstance(right, tuple) else (right,)))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, (str, bytes)):
            if name in WIDENING:
                widths = [a for a in (*args, *kwargs.values()) if isinstance(a, int)]
                _limit(max(widths, default=8) * (len(owner) + 1 if name == "expandtabs" else 1))
            elif name == "replace" and len(args) > 1:
                return _replace(owner, *args)
            elif name == "join" and args:
                return _join(args[0], owner)
        if name in ("format", "format_map"):
            text = owner if isinstance(owner, str) else getattr(getattr(obj, "__wrapped__", None), "__self__", "")
            _narrow(text)
            _weighed([*args, kwargs])
        return super().call(context, obj, *args, **kwargs)


def _narrow(form: Any) -> None:
    if not isinstance(form, str) or WIDE_FORMAT.search(form):
        raise SecurityError("a text format with a width")


def _format(form: Any, *args: Any, **kwargs: Any) -> str:
    _narrow(form)
    return str(form % (kwargs or tuple(map(_weighed, args))))


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = _text(text), _text(old), _text(new)
    times = text.count(old)
    _limit(len(text) + len(new) * times)
    return text.replace(old, new, -1 if count is None else count)


def _join(parts: Any, between: Any = "", attribute: str | int | None = None) -> str:
    texts = [_text(p if attribute is None else _ENVIRONMENT.getitem(p, attribute)) for p in parts]
    _limit(sum(map(len, texts)) + _sized(between) * len(texts))
    return _text(between).join(texts)


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    _limit((_text(text).count("\n") + 1) * (width if isinstance(width, int) else len(width)))
    return jinja2.filters.do_indent(_text(text), width, first, blank)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As in transformers: plain JSON, not jinja2's form that is safe in HTML."""
    if isinstance(indent, int) and indent > 16:
        raise _TooMuch(f"indents JSON by {indent}")
    return json.dumps(
        _weighed(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


def _strftime_now(form: str) -> str:
    return time.strftime(form)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training in transformers; for a prompt it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> _Environment:
    made = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], finalize=_weighed)
    made.globals.pop("lipsum")
    made.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    made.filters.update(tojson=_tojson, string=_text, replace=_replace, join=_join, indent=_indent, format=_format)
    for name in (
        "center",
        "wordwrap",
        "pprint",
        "urlize",
        "xmlattr",
    ):  # pad or spell out, and no chat template needs them
        del made.filters[name]
    return made


_ENVIRONMENT = _environment()
