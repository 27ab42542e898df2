"""The sampler thread: how often, how much it keeps, what happens when its source breaks."""

import threading
import time
from dataclasses import fields

import pytest

from quamba_edge import telemetry
from quamba_edge.errors import BadUsage
from quamba_edge.telemetry.sample import Recorder, Sample

UNITS = ("_w", "_j", "_ms", "_ns", "_v", "_a", "_pct", "_mhz", "_bytes", "_c", "_rpm", "_events")


class Counting:
    """A source whose samples are numbered, and which breaks at one of them."""

    name = "counting"

    def __init__(self, breaks_at: int | None = None):
        self.reads, self.breaks_at = 0, breaks_at

    def read(self) -> Sample:
        self.reads += 1
        if self.reads == self.breaks_at:
            raise RuntimeError("unplugged")
        return Sample(time.monotonic_ns(), self.name, power_w=float(self.reads))

    def close(self) -> None:
        pass


def test_every_number_has_its_unit_in_its_name():
    named = {f.name for cls in (Sample, telemetry.Rail) for f in fields(cls)}
    named -= {"source", "power_of", "power_mode", "rails", "alarm"}  # words, a table of rails, yes or no
    assert [n for n in named if not n.endswith(UNITS)] == []


def test_records_in_order_and_brackets_the_end():
    with Recorder(Counting(), hz=20) as recorder:
        time.sleep(0.3)
        ended = time.monotonic_ns()
    samples = recorder.samples()
    times = [s.t_ns for s in samples]
    assert times == sorted(times) and times[-1] >= ended and recorder.latest is samples[-1]
    assert [s.power_w for s in samples] == [float(i + 1) for i in range(len(samples))] and len(samples) >= 3
    assert recorder.error is None and 0 < recorder.cost_pct < 100


def test_what_follows_the_start_is_bracketed():
    source = Counting()
    read = source.read
    source.read = lambda: time.sleep(0.05) or read()
    with Recorder(source) as recorder:
        began = time.monotonic_ns()
    assert recorder.samples()[0].t_ns <= began <= recorder.samples()[-1].t_ns


def test_memory_is_bounded_to_the_newest():
    with Recorder(Counting(), hz=20, keep_s=0.15) as recorder:
        time.sleep(0.5)
    assert len(recorder.samples()) == 3 and recorder.samples()[-1].power_w == recorder.source.reads


def test_a_broken_source_ends_the_recording_and_says_why():
    before = set(threading.enumerate())
    with Recorder(Counting(breaks_at=3), hz=20) as recorder:
        for _ in range(100):
            if recorder.error:
                break
            time.sleep(0.05)
    assert "unplugged" in str(recorder.error) and len(recorder.samples()) == 2
    assert "telemetry" not in [t.name for t in set(threading.enumerate()) - before]


@pytest.mark.parametrize("hz", [0, -1, 21, float("nan")])
def test_a_rate_that_sensors_cannot_follow_is_refused(hz):
    with pytest.raises(BadUsage, match="0.1 to 20"):
        Recorder(Counting(), hz=hz)


def test_this_machine_has_a_source_and_costs_little_memory():
    source = telemetry.best()
    sample = source.read()
    source.close()
    assert sample.source in telemetry.SOURCES and sample.ram_total_bytes > sample.ram_available_bytes > 0
    assert set(sample.to_json()) == {f.name for f in fields(Sample)}
