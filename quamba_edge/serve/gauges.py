"""What /metrics reads at the moment it is asked: queue, sessions, memory, and watts where the machine tells them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from quamba_edge.profile.memory import rss
from quamba_edge.runtime.state import state_bytes
from quamba_edge.serve.engine import Service
from quamba_edge.serve.metrics import Labels

Gauge = tuple[str, str, Mapping[Labels, float | None]]


def gauges(service: Service, look: Callable[[], Any] | None) -> Iterator[Gauge]:
    """Each (name, help, value by labels).  look: gives a telemetry.Sample or None; what it does not know is left out."""
    running, waiting = service.queue()
    engine = service.model.engine
    yield "quamba_jobs_running", "Requests that take turns now.", {(): running}
    yield "quamba_jobs_waiting", "Requests in the queue.", {(): waiting}
    kept = len(service.pool)
    yield "quamba_sessions", "Conversations whose state is kept.", {(): kept}
    each = state_bytes(engine.specs, 1, engine.state_dtype)
    yield "quamba_session_bytes", "Memory of the kept states.", {(): kept * each}
    yield "process_resident_memory_bytes", "Resident memory.", {(): rss()}
    sample = look() if look is not None else None
    if sample is not None:
        of = (("of", str(sample.power_of or "unknown")),)
        yield "quamba_power_watts", "Draw now, of what `of` names.", {of: sample.power_w}
        zones: dict[Labels, float | None] = {(("zone", str(zone)),): value for zone, value in sample.temps_c.items()}
        yield "quamba_temperature_celsius", "By zone.", zones
        yield "quamba_memory_available_bytes", "Of the machine.", {(): sample.ram_available_bytes}
