"""Our models inside lm-eval, the field's harness, for every task it has:

    python -m quamba_edge.harness --model quamba_edge --model_args bundle=NAME.qedge --tasks arc_easy

is lm-eval's own command line (`pip install 'quamba-edge[eval]'`) that knows one model more.  lm-eval looks for no plugins, hence the
other door; from Python it is `quamba_edge.harness.register()`, after which "quamba_edge" is a model name everywhere.

model_args: bundle=FILE or checkpoint=DIR_OR_NAME; backend, state_dtype, threads as on our command line; tokenizer=FILE for a
checkpoint without one; max_length=N cuts contexts on their left as lm-eval does for models of limited length (without: whole).
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from quamba_edge.apps.tasks import open_target
from quamba_edge.errors import BadUsage, Missing
from quamba_edge.tasks.run import Target
from quamba_edge.tasks.scoring import score
from quamba_edge.tasks.tokens import Request, shortened

NAME = "quamba_edge"
MAX_GEN_TOKS = 256  # lm-eval's default


def register() -> type:
    """The model class, known to lm-eval as "quamba_edge"; Missing without lm-eval."""
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.api.registry import get_model, register_model
    except ImportError:
        raise Missing("lm-eval is not here: pip install 'quamba-edge[eval]'") from None
    try:
        known: type = get_model(NAME)
    except ValueError:
        known = register_model(NAME)(model_class(TemplateLM))
    return known


def model_class(base: Any) -> type:
    """The class, derived from lm-eval's TemplateLM (its tokenization is ours as well: tests/tasks compare)."""

    class QuambaEdge(base):
        def __init__(
            self,
            bundle: str | None = None,
            checkpoint: str | None = None,
            backend: str | None = None,
            state_dtype: str | None = None,
            threads: int | None = None,
            tokenizer: str | None = None,
            max_length: int | None = None,
            batch_size: Any = None,  # lm-eval always gives these three; batches are formed by length here
            max_batch_size: Any = None,
            device: Any = None,
        ):
            super().__init__()
            if (bundle is None) == (checkpoint is None):
                raise BadUsage("model_args need either bundle=FILE.qedge or checkpoint=DIR_OR_NAME")
            if bundle is not None and not Path(bundle).is_file():
                raise BadUsage(f"bundle={bundle} is no file; expected one that `quamba-edge pack` wrote")
            self.opened = ExitStack()
            words = Path(tokenizer) if tokenizer else None
            name = str(bundle or checkpoint)
            self.target: Target = open_target(self.opened, name, backend, state_dtype, threads, words)
            self.max_length = max_length

        @property
        def eot_token_id(self) -> int:
            return self.prefix_token_id if not self.target.ends else min(self.target.ends)

        @property
        def prefix_token_id(self) -> int:
            if self.target.prefix is None:
                raise BadUsage("this model has no token that begins texts, and the task has texts without a context")
            return self.target.prefix

        @property
        def tokenizer_name(self) -> str:
            return NAME

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return self.target.tokenizer.encode(string)

        def _loglikelihood_tokens(
            self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
        ) -> list[tuple[float, bool]]:
            asked = [shortened(Request(tuple(c), tuple(a)), self.max_length) for _, c, a in requests]
            found = [(s.logp, s.greedy) for s in score(self.target.reader, asked)]
            for (words, _, _), answer in zip(requests, found, strict=True):
                if words is not None:
                    self.cache_hook.add_partial("loglikelihood", words, answer)
            return found

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            """log p of each whole text after the token that begins texts; in windows only where max_length asks for them."""
            sums = []
            for (text,) in (r.args for r in requests):
                ids = self.tok_encode(text)
                pieces = _windows(ids, self.prefix_token_id, self.max_length or len(ids))
                sums.append(sum(s.logp for s in score(self.target.reader, pieces)))
                self.cache_hook.add_partial("loglikelihood_rolling", (text,), sums[-1])
            return sums

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            said = []
            for context, settings in (r.args for r in requests):
                said.append(self._continue(context, dict(settings)))
                self.cache_hook.add_partial("generate_until", (context, settings), said[-1])
            return said

        def _continue(self, context: str, settings: dict[str, Any]) -> str:
            """The greedy continuation, up to the first of the stop texts."""
            if settings.get("do_sample") and settings.get("temperature", 1.0):
                raise BadUsage("only greedy decoding here: give the task do_sample=False, or temperature=0")
            until = settings.get("until") or []
            stops = [s for s in ([until] if isinstance(until, str) else until) if s]
            limit = int(settings.get("max_gen_toks", MAX_GEN_TOKS))
            ids = self.tok_encode(context) or [self.prefix_token_id]
            reader, written, text = self.target.reader, [], ""  # type: Any, list[int], str
            states, logits = reader.read(np.array([ids]), None)
            reader.begin(1, states)
            while len(written) < limit:
                token = int(logits[0].argmax())
                if token in self.target.ends:
                    break
                written.append(token)
                text = self.target.tokenizer.decode(written)
                if any(s in text for s in stops):
                    break
                logits = reader.step(np.array([[token]]), "last")[:, -1]
            return min((text.split(s, 1)[0] for s in stops), key=len, default=text)

    return QuambaEdge


def _windows(ids: list[int], prefix: int, length: int) -> list[Request]:
    """Every token is predicted once: the first `length` after `prefix`, the others after as much as the length allows."""
    pieces = [Request((prefix,), tuple(ids[:length]))] if ids else []
    for start in range(length, len(ids), length):
        stop = min(start + length, len(ids))
        pieces.append(Request(tuple(ids[stop - length - 1 : start]), tuple(ids[start:stop])))
    return pieces


def main() -> None:
    """lm-eval's command line."""
    try:
        register()
    except Missing as e:
        sys.exit(f"quamba-edge: {e}")
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
