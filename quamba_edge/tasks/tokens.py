"""Context and continuation to token ids, as lm-eval's TemplateLM does it (lm_eval/api/model.py, `loglikelihood`, `_encode_pair`).

Both are encoded as one text, because words at the seam may share a token; the continuation is what follows the context's own ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quamba_edge.errors import BadText, BadUsage

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Request:
    """How likely is `continuation` after `context`?  Neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


def request(encode: Encode, prefix: int | None, context: str, continuation: str) -> Request:
    """The ids of a pair of texts.

    Spaces at the context's end go to the continuation, whose first word's token has them.  An empty context becomes `prefix`, the
    token that begins texts; BadUsage where the model has none.  BadText where nothing is left to score.
    """
    if not context:
        after = encode(continuation)
        if prefix is None:
            raise BadUsage("this task scores texts from their first word, and the model has no token that begins texts")
        # A text that begins with that token already needs no second one.
        before, after = ([prefix], after) if after[:1] != [prefix] else (after[:1], after[1:])
    else:
        kept = context.rstrip()
        before = encode(kept)
        after = encode(context + continuation)[len(before) :]
    if not before or not after:
        found = f"no token of its own for {continuation!r}" if before else f"no token for the context {context!r}"
        raise BadText(f"the model's tokenizer has {found}: this row cannot be scored")
    return Request(tuple(before), tuple(after))


def shortened(asked: Request, longest: int | None) -> Request:
    """At most `longest` tokens read, the context cut on its left; None leaves it whole, as a recurrent model can."""
    over = len(asked.context) + len(asked.continuation) - 1 - longest if longest else 0
    if over <= 0:
        return asked
    if over >= len(asked.context):
        raise BadUsage(f"a continuation of {len(asked.continuation)} tokens does not fit a length of {longest}")
    return Request(asked.context[over:], asked.continuation)
