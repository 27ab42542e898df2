"""What the server counts, in Prometheus' text format (version 0.0.4).  Pure: it knows no clock, engine or socket."""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

# Seconds.  First tokens: from a reused state on a small model to a long prompt on a small board.
FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# Between tokens: from a small model on a workstation to an 8B model among seven others on a board.
NEXT_TOKEN = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
WHOLE = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600)

Labels = tuple[tuple[str, str], ...]


class Counter:
    """A sum that only grows, for each set of labels."""

    kind = "counter"

    def __init__(self, name: str, help: str) -> None:
        self.name, self.help = name, help
        self._lock = threading.Lock()
        self._values: dict[Labels, float] = {}

    def add(self, amount: float = 1, **labels: str) -> None:
        key = tuple(sorted(labels.items()))
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount

    @property
    def total(self) -> float:
        return sum(self._values.values())

    def lines(self) -> list[str]:
        values = dict(self._values) or {(): 0.0}
        return [f"{self.name}{_labels(key)} {_number(value)}" for key, value in sorted(values.items())]


class Histogram:
    """How often a value fell at or below each of `bounds`."""

    kind = "histogram"

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self.name, self.help, self.bounds = name, help, tuple(bounds)
        self._lock = threading.Lock()
        self._counts = [0] * (len(self.bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        with self._lock:
            self._counts[bisect_left(self.bounds, value)] += 1
            self._sum += value

    @property
    def count(self) -> int:
        return sum(self._counts)

    def lines(self) -> list[str]:
        out, running = [], 0
        for bound, count in zip((*self.bounds, math.inf), self._counts):
            running += count
            out.append(f"{self.name}_bucket{_labels((('le', _number(bound)),))} {running}")
        return [*out, f"{self.name}_sum {_number(self._sum)}", f"{self.name}_count {running}"]


class Metrics:
    """Everything that grows; what is only read now (queue, memory, watts) comes to `text` as gauges."""

    def __init__(self) -> None:
        self.requests = Counter("quamba_http_requests_total", "HTTP requests by route and status code.")
        self.prompt_tokens = Counter("quamba_prompt_tokens_total", "Tokens of prompts, reused ones included.")
        self.reused_tokens = Counter(
            "quamba_reused_tokens_total", "Tokens of prompts that a kept state had already read."
        )
        self.generated_tokens = Counter("quamba_generated_tokens_total", "Tokens generated.")
        self.ended = Counter("quamba_jobs_total", "Generations by how they ended.")
        self.queued = Histogram("quamba_queue_seconds", "From request to its first turn.", FIRST_TOKEN)
        self.first_token = Histogram("quamba_time_to_first_token_seconds", "From request to first token.", FIRST_TOKEN)
        self.next_token = Histogram("quamba_inter_token_seconds", "Between two tokens of one answer.", NEXT_TOKEN)
        self.whole = Histogram("quamba_request_seconds", "From request to the end of its answer.", WHOLE)

    def text(self, gauges: Iterable[tuple[str, str, Mapping[Labels, float | None]]] = ()) -> str:
        """The page; a gauge is (name, help, value by labels), and one that is None is left out, never zero."""
        out: list[str] = []
        for metric in vars(self).values():
            out += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        for name, help, values in gauges:
            known = {key: value for key, value in values.items() if value is not None}
            if known:
                out += [f"# HELP {name} {help}", f"# TYPE {name} gauge"]
                out += [f"{name}{_labels(key)} {_number(value)}" for key, value in known.items()]
        return "\n".join(out) + "\n"


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))


def _labels(labels: Labels) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels) + "}" if labels else ""
