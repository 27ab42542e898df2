"""What one job does with the engine, as a generator: each `yield` is a place where another job may have its turn.

The prompt goes in pieces of the engine's largest chunk.  They are cut as one long prefill would cut them, so that taking turns
changes no number of the answer.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

from quamba_edge.runtime.generate import generate
from quamba_edge.runtime.session import CHUNKS, Reuse, chunks
from quamba_edge.serve.chances import Scored, chance
from quamba_edge.serve.jobs import Ended, Job, Piece, Prompted, TimeUp
from quamba_edge.serve.pool import Kept

if TYPE_CHECKING:
    from quamba_edge.serve.engine import Service


def pieces(tokens: int) -> list[int]:
    """How a prompt of that many unread tokens is cut: whole chunks one by one, what is left of it at once."""
    whole, rest = divmod(tokens, CHUNKS[0])
    assert chunks(tokens)[:whole] == [CHUNKS[0]] * whole
    return [CHUNKS[0]] * whole + [rest] * (rest > 0)


def work(job: Job, service: Service) -> Generator[None, None, None]:
    """All answers of a job, told to its listener."""
    job.usage.queue_ms = 1000 * (job.begun - job.submitted)
    for number, prompt in enumerate(job.prompts):
        if job.session is not None:
            kept, ids = service.pool.find(job.session), prompt.ids
            kept.busy = True
        else:
            kept, ids = service.pool.take(prompt, fresh=job.prompt_logprobs)
        job.usage.session = kept.id
        try:
            yield from _answers(job, service, kept, ids, number * job.n)
        finally:
            if job.prompt_logprobs:
                kept.session.reset()  # a text that was scored is no conversation, and makes no room of those
            service.pool.give(kept)


def _answers(job: Job, service: Service, kept: Kept, ids: list[int], first: int) -> Generator[None, None, None]:
    """`job.n` answers to one prompt: it is read once, and every answer goes on from the snapshot after it."""
    session = kept.session
    reuse = session.seek(ids) if job.session is None else Reuse(session.count)
    session.mark()
    unread = ids[reuse.tokens :] if job.session is None else ids
    service.metrics.prompt_tokens.add(reuse.tokens + len(unread))
    service.metrics.reused_tokens.add(reuse.tokens)
    job.usage.prompt += reuse.tokens + len(unread)
    job.usage.reused += reuse.tokens
    job.usage.reuse_note = reuse.note
    scored = Scored(ids, job.logprobs or 0) if job.prompt_logprobs else None
    start = 0
    for size in pieces(len(unread)) if job.max_tokens or scored else ():
        piece = unread[start : start + size]
        if scored is None:
            session.prefill(piece)
        else:
            scored.read(session.read(piece))
        start += size
        if time.monotonic() - job.submitted > service.limits.seconds:
            raise TimeUp(
                f"the prompt was not read within {service.limits.seconds:g} s: shorten it, or start the server with a larger --timeout"
            )
        yield
    for k in range(job.n):
        job.tell(Prompted(first + k, ids, scored.chances if scored else ()))
        if job.max_tokens:
            yield from _answer(job, service, kept, ids, first + k, k)
        else:
            job.tell(Ended(first + k, "length"))


def _answer(job: Job, service: Service, kept: Kept, ids: list[int], choice: int, k: int) -> Generator[None, None, None]:
    seed = job.sampling.seed
    sampling = job.sampling if seed is None or k == 0 else replace(job.sampling, seed=seed + k)
    eos = () if job.ignore_end else service.model.eos
    first = last = 0.0
    follows = job.session is not None  # then what followed has been read already, like any prompt here
    for step in generate(
        kept.session,
        [] if follows else ids,
        service.model.tokenizer,
        sampling=sampling,
        max_tokens=job.max_tokens,
        stop=job.stop,
        eos=eos,
        follows=follows,
    ):
        now = time.monotonic()
        if step.tokens == 1:
            first = now
            if job.usage.ttft_ms is None:
                job.usage.ttft_ms = 1000 * (now - job.submitted)
                service.metrics.first_token.observe(now - job.submitted)
        else:
            service.metrics.next_token.observe(now - last)
            job.usage.decode_tps = (step.tokens - 1) / max(now - first, 1e-9)
        last = now
        service.metrics.generated_tokens.add()
        job.usage.completion += 1
        logits = kept.session.logits  # still those that this token was chosen from
        found = chance(logits, step.token, job.logprobs) if job.logprobs is not None and logits is not None else None
        job.tell(Piece(choice, step, found))
        if step.reason or now - job.submitted > service.limits.seconds:
            job.tell(Ended(choice, "stop" if step.reason in ("stop", "eos") else "length"))
            return
        yield
