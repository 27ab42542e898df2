"""Conditions on recorded boards and on made-up samples: what counts as throttled, and what nobody can tell."""

import time
from pathlib import Path

import pytest

from quamba_edge import telemetry
from quamba_edge.telemetry.conditions import Watched, busy_seconds, conditions
from quamba_edge.telemetry.files import Tree
from quamba_edge.telemetry.sample import Sample
from tests.fake_sys import make

TREES = Path(make.__file__).parent
BOARD = Tree(TREES / "jp62")


def sample(t, **fields):
    given = {"temps_c": {"tj": 50.0}, "over_current_events": {"oc1": 1, "oc3": 100}, "power_mode": "15W"}
    return Sample(t, "tegra", **{**given, **fields})


@pytest.mark.parametrize("tree", make.TREES)
def test_a_recorded_board_tells_all(tree):
    with Watched(telemetry.best(TREES / tree), TREES / tree) as watched:
        time.sleep(0.05)
    found = watched.conditions()
    assert found.device == "orin-nano-8gb" and found.power_mode and found.gpu_mhz and found.cpu_mhz
    assert found.throttled is False and found.throttled_why is None and set(found.over_current_events.values()) == {0}
    assert found.temps_before_c == found.temps_after_c and found.hottest_c == max(found.temps_after_c.values())


@pytest.mark.parametrize(
    "last, why",
    [
        ({}, None),
        ({"temps_c": {"tj": 99.5}}, "99.5 C, the limit is 99"),
        ({"over_current_events": {"oc1": 3, "oc3": 100}}, "2 over-current events oc1"),
        ({"over_current_events": {"oc1": 1, "oc3": 107}}, "7 over-current events oc3"),
        ({"power_mode": "25W"}, "the power mode changed: 15W, 25W"),
    ],
)
def test_what_counts_as_throttled(last, why):
    found = conditions([sample(0), sample(1, **last)], BOARD)
    assert (found.throttled, found.throttled_why) == (why is not None, why)


def test_instantaneous_over_current_is_by_design_in_maxn():
    both = [sample(t, power_mode="MAXN_SUPER", over_current_events={"oc3": 100 * t}) for t in (1, 2)]
    found = conditions(both, BOARD)
    assert found.over_current_events == {"oc3": 100} and found.throttled is False


def test_a_machine_that_cannot_tell_says_neither(tmp_path):
    plain = [Sample(t, "linux", temps_c={"acpi": 99.9}) for t in (0, 1)]
    found = conditions(plain, Tree(tmp_path))
    assert found.throttled is None and found.device is None and found.hottest_c == 99.9
    assert conditions(plain, Tree(tmp_path), throttle_events=0).throttled is False
    slowed = conditions(plain, Tree(tmp_path), throttle_events=4)
    assert slowed.throttled and "4 times" in slowed.throttled_why


def test_counters_of_heat_and_of_other_programs(tmp_path):
    place = tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle"
    place.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (place / "core_throttle_count").write_text("3\n")
    stat = tmp_path / "proc/stat"
    stat.write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    with Watched(telemetry.best(tmp_path), tmp_path) as watched:
        (place / "core_throttle_count").write_text("5\n")
        stat.write_text("cpu  1000000 0 0 0 0 0 0 0 0 0\n")
    found = watched.conditions()
    assert found.throttle_events == 2 and found.throttled and found.others_pct == 100
    assert busy_seconds(Tree(tmp_path / "absent")) is None
