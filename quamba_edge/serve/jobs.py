"""What is asked of the engine and what comes back, as plain facts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from quamba_edge.errors import QuambaError
from quamba_edge.runtime.generate import Step
from quamba_edge.runtime.sampling import Sampling
from quamba_edge.serve.chances import Chance
from quamba_edge.serve.pool import Prompt


class TimeUp(QuambaError):
    """The time a request may take is over."""


class Closing(QuambaError):
    """The server is stopping."""


class Cancelled(QuambaError):
    """Whoever asked has gone."""


@dataclass(frozen=True)
class Limits:
    """sessions: states kept, and so jobs that run at once; waiting: jobs in the queue; tokens: longest answer; prompt: longest
    prompt, in tokens; seconds: from request to the end of the answer; body: bytes of a request; choices: answers of one request."""

    sessions: int = 8
    waiting: int = 64
    tokens: int = 4096
    prompt: int = 262_144
    seconds: float = 600.0
    body: int = 4 << 20
    choices: int = 128


@dataclass
class Usage:
    """Counted while a job runs; `reused` of the prompt tokens had been read before, `reuse_note` says why not more.

    Times in milliseconds from the request; decode_tps: tokens a second of the latest answer, as its reader sees them come.
    """

    prompt: int = 0
    reused: int = 0
    completion: int = 0
    queue_ms: float = 0.0
    ttft_ms: float | None = None
    decode_tps: float | None = None
    session: str | None = None
    reuse_note: str | None = None


@dataclass(frozen=True)
class Piece:
    """One token of answer number `choice`; `chance` where log-probabilities were asked for."""

    choice: int
    step: Step
    chance: Chance | None = None


@dataclass(frozen=True)
class Prompted:
    """The prompt of answer number `choice` was read: its tokens' chances, where asked for."""

    choice: int
    ids: list[int]
    chances: Sequence[Chance] = ()


@dataclass(frozen=True)
class Ended:
    """Answer number `choice` is complete: "stop" (a stop string or the end token) or "length" (of tokens or of time)."""

    choice: int
    reason: str


@dataclass(frozen=True)
class Done:
    usage: Usage


@dataclass(frozen=True)
class Failed:
    error: Exception


Event = Piece | Prompted | Ended | Done | Failed


@dataclass(eq=False)
class Job:
    """`n` answers to each prompt, one after the other; answer k of prompt p is choice p * n + k, its seed `sampling.seed` + k.

    logprobs  None, or how many rivals of each token to name; prompt_logprobs: also for the prompt (which is then read anew)
    ignore_end  go on after the model's end token
    session     id of a kept session that the one prompt follows, instead of being the whole text
    """

    prompts: Sequence[Prompt]
    client: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 256
    stop: Sequence[str] = ()
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: bool = False
    ignore_end: bool = False
    session: str | None = None
    emit: Callable[[Event], None] = lambda event: None
    # Kept by the service.
    usage: Usage = field(default_factory=Usage)
    submitted: float = 0.0
    begun: float = 0.0
    cancelled: bool = False
    work: Generator[None, None, None] | None = None

    def cancel(self) -> None:
        """Nobody wants it any more: it ends at its next turn."""
        self.cancelled = True

    def tell(self, event: Event) -> None:
        """Hand an event to the listener; one that is no longer there ends the job."""
        try:
            self.emit(event)
        except Exception:
            self.cancelled = True
