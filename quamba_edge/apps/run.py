"""`quamba-edge run`: one answer to one prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quamba_edge.apps.loading import bar
from quamba_edge.runtime.conversation import Conversation
from quamba_edge.runtime.generate import Step
from quamba_edge.runtime.model import generate, load
from quamba_edge.runtime.sampling import Sampling


@dataclass(frozen=True)
class RunResult:
    """An answer and its numbers; fields as in runtime/generate.py, `tokens` counts the answer's, `ids` are they."""

    text: str
    tokens: int
    prompt_tokens: int
    reused_tokens: int
    prefilled_tokens: int
    ttft_ms: float
    decode_tps: float | None
    backend: str
    reason: str
    ids: list[int]
    reuse_note: str | None = None


def run(
    path: Path,
    prompt: str,
    *,
    chat: bool = False,
    sampling: Sampling | None = None,
    max_tokens: int = 256,
    stop: Sequence[str] = (),
    session: Path | None = None,
    backend: str = "auto",
    state_dtype: str = "f16",
    threads: int | None = None,
    on_text: Callable[[str], None] = lambda text: None,
) -> RunResult:
    """Answer `prompt`, as it stands or with `chat` as one user message; `on_text` gets each piece of text as it comes.

    session: a file that holds what was said before, if it exists, and this exchange too afterwards; only the prompt is read.
    """
    model = load(path, backend, state_dtype=state_dtype, threads=threads, progress=bar())
    steps: list[Step] = []
    if session is None:
        asked = [{"role": "user", "content": prompt}] if chat else prompt
        answer = generate(model, asked, sampling=sampling, max_tokens=max_tokens, stop=stop)
    else:
        if chat:
            model.render(
                [{"role": "user", "content": prompt}]
            )  # a bundle without a template is refused, as without a session
        talk = Conversation(model, raw=not chat)
        talk.open(session)
        answer = talk.ask(prompt, sampling=sampling, max_tokens=max_tokens, stop=stop)
    for step in answer:
        steps.append(step)
        on_text(step.text)
    if session is not None:
        talk.save(session)
    return RunResult(
        text="".join(s.text for s in steps),
        tokens=step.tokens,
        prompt_tokens=step.prompt_tokens,
        reused_tokens=step.reused_tokens,
        prefilled_tokens=step.prefilled_tokens,
        ttft_ms=step.ttft_ms,
        decode_tps=step.decode_tps,
        backend=model.engine.backend.name,
        reason=str(step.reason),
        ids=[s.token for s in steps],
        reuse_note=step.reuse_note,
    )


def summary(result: RunResult) -> str:
    """One line of numbers."""
    speed = f", {result.decode_tps:.1f} tokens/s" if result.decode_tps is not None else ""
    return (
        f"{result.tokens} tokens ({result.reason}), first after {result.ttft_ms:.0f} ms, "
        f"prompt {result.prompt_tokens} ({result.reused_tokens} reused){speed}, {result.backend} backend"
    )
