"""Memory and power of this process's answers, for a status line: what the machine does not tell is left out."""

from __future__ import annotations

from types import TracebackType

from quamba_edge import telemetry
from quamba_edge.profile.memory import rss
from quamba_edge.telemetry.sample import Recorder


class Watch:
    """In a `with` block it looks at the machine's draw, if there is a sensor; `seen()` says what was found the last time."""

    def __init__(self, source: telemetry.Source | None = None):
        self._source = source or telemetry.best()
        self._power = self._source.read().power_w is not None
        self._recorder: Recorder | None = None

    def __enter__(self) -> Watch:
        if self._power:
            self._recorder = Recorder(self._source, hz=5).start()  # a status line needs no more
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._recorder is not None:
            self._recorder.stop()

    def seen(self) -> list[str]:
        """Such as ["210 MB", "5.1 W of VDD_IN"]: the process's memory now, the mean draw over the last answer."""
        held, found = rss(), []
        if held is not None:
            found.append(f"{held / 1e6:.0f} MB")
        samples = self._recorder.samples() if self._recorder is not None else []
        watts = [s.power_w for s in samples if s.power_w is not None]
        if watts:
            of = f" of {samples[-1].power_of}" if samples[-1].power_of else ""
            found.append(f"{sum(watts) / len(watts):.1f} W{of}")
        return found

    def close(self) -> None:
        self._source.close()
