"""The status line's memory and power: from fake sensors, and nothing where there are none."""

import time

from quamba_edge.apps.watch import Watch
from quamba_edge.profile.memory import rss
from quamba_edge.telemetry.sample import Sample


class Sensor:
    name = "fake"

    def __init__(self, watts):
        self.watts, self.closed, self.looks = watts, False, 0

    def read(self):
        self.looks += 1
        return Sample(time.monotonic_ns(), "fake", power_w=self.watts, power_of="VDD_IN" if self.watts else None)

    def close(self):
        self.closed = True


def test_power_is_the_mean_over_the_last_answer():
    watch = Watch(Sensor(5.25))
    with watch:
        pass
    assert watch.seen()[1:] == ["5.2 W of VDD_IN"] and watch.seen()[0].endswith(" MB")
    watch.close()


def test_what_the_machine_lacks_is_left_out(tmp_path):
    sensor = Sensor(None)
    watch = Watch(sensor)
    with watch:
        pass
    assert len(watch.seen()) == 1 and sensor.looks == 1, "nobody looks where there is nothing to see"
    watch.close()
    assert sensor.closed
    assert rss() > 1 << 20 and rss(tmp_path / "none") is None
