"""Joules of traces whose integral is known, and every reason to refuse."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge.telemetry import energy
from quamba_edge.telemetry.sample import Rail, Sample

S = 1_000_000_000


def trace(watts, seconds=10.0, hz=10.0, begin=0.0, **more):
    """Samples of watts(t), a little irregular, as a thread takes them."""
    steps = range(int(seconds * hz) + 1)
    times = [begin + (i + 0.2 * math.sin(7 * i)) / hz for i in steps]
    return [Sample(round(t * S), "test", power_w=watts(t), power_of="VDD_IN", **more) for t in times]


def within(a, b, share):
    return abs(a - b) <= share * abs(b)


def test_constant_power_is_exact():
    found = energy.over(trace(lambda t: 7.5), [(1 * S, 4 * S)])
    assert found.joules == pytest.approx(22.5, rel=1e-12) and found.mean_w == pytest.approx(7.5)
    assert found.reason is None and found.power_of == "VDD_IN" and 29 <= found.samples <= 32


def test_a_ramp_is_exact_also_between_samples():
    found = energy.over(trace(lambda t: 3 + 2 * t), [(round(1.234567 * S), round(4.765432 * S))])
    exact = 3 * (4.765432 - 1.234567) + (4.765432**2 - 1.234567**2)
    assert found.joules == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("hz", [10, 20])
def test_bursts_of_work_within_one_percent(hz):
    """6 W at rest and 9 W more in a wave of 1.3 s: the integral in closed form."""
    a, b, w = 0.517, 9.213, 2 * math.pi / 1.3
    found = energy.over(trace(lambda t: 6 + 4.5 * (1 - math.cos(w * t)), hz=hz), [(round(a * S), round(b * S))])
    exact = 10.5 * (b - a) - 4.5 / w * (math.sin(w * b) - math.sin(w * a))
    assert within(found.joules, exact, 0.01)


def test_a_step_within_one_percent_of_ten_seconds():
    found = energy.over(trace(lambda t: 5.0 if t < 5.05 else 15.0), [(1 * S, 9 * S)])
    assert within(found.joules, 5 * 4.05 + 15 * 3.95, 0.01)


def test_prefill_and_decode_apart_gross_and_net():
    samples = trace(lambda t: 14.0 if t < 5 else 9.0, seconds=12, hz=20)
    prefill = energy.per_token(samples, [(1 * S, 4 * S)], tokens=512, idle_w=5.0)
    decode = energy.per_token(samples, [(6 * S, 10 * S)], tokens=80, idle_w=5.0)
    assert prefill.gross_j == pytest.approx(42 / 512) and prefill.net_j == pytest.approx(27 / 512)
    assert decode.gross_j == pytest.approx(36 / 80) and decode.net_j == pytest.approx(16 / 80)
    assert energy.per_token(samples, [(6 * S, 10 * S)], tokens=80).net_j is None
    assert "0.450 J/token, 0.200 above idle (9.00 W of VDD_IN" in energy.text(decode)


def test_rails_are_never_added():
    rails = {"VDD_IN": Rail(10.0), "VDD_CPU_GPU_CV": Rail(4.0), "VDD_SOC": Rail(3.0)}
    assert energy.over(trace(lambda t: 10.0, rails=rails), [(S, 3 * S)]).mean_w == pytest.approx(10)


def test_repeats_add_up_to_enough_samples():
    samples = trace(lambda t: 8.0)
    short = [(i * S, i * S + S // 3) for i in range(1, 6)]
    assert energy.over(samples, short[:1]).joules is None
    assert energy.over(samples, short).joules == pytest.approx(8 * 5 / 3, rel=1e-6)


@pytest.mark.parametrize(
    ("samples", "windows", "reason"),
    [
        (trace(lambda t: 8.0), [(1 * S, round(1.4 * S))], "samples in 0.40 s"),
        (trace(lambda t: 8.0, hz=1), [(1 * S, 9 * S)], "at least 10"),
        (trace(lambda t: 8.0, 60, hz=1), [(1 * S, 50 * S)], "at most 0.5 s"),
        (trace(lambda t: 8.0)[:30] + trace(lambda t: 8.0)[45:], [(1 * S, 9 * S)], "no sample for 1."),
        (trace(lambda t: 8.0), [(5 * S, 12 * S)], "did not last"),
        (trace(lambda t: 8.0, begin=2), [(1 * S, 5 * S)], "did not last"),
        (trace(lambda t: None), [(1 * S, 5 * S)], "does not tell its power"),
        ([], [(1 * S, 5 * S)], "does not tell its power"),
        (trace(lambda t: 8.0), [], "empty"),
        (trace(lambda t: 8.0), [(5 * S, 5 * S)], "empty"),
        (trace(lambda t: 8.0, power_interval_ms=600), [(1 * S, 5 * S)], "every 0.6 s"),
        (trace(lambda t: 8.0)[:40] + [Sample(5 * S, "t", power_w=1.0, power_of="gpu-0")], [(S, 3 * S)], "different"),
    ],
)
def test_refuses_and_says_why(samples, windows, reason):
    found = energy.per_token(samples, windows, 100, idle_w=3.0)
    assert (found.gross_j, found.net_j, found.energy.joules, found.energy.mean_w) == (None, None, None, None)
    assert reason in found.reason and energy.text(found) == f"energy not told: {found.reason}"
    assert not any(c in energy.text(found) for c in ("J/token", "nan", "inf"))


def test_missing_readings_are_gaps_not_zeros():
    samples = trace(lambda t: None if int(10 * t) % 7 == 0 else 8.0)
    assert energy.over(samples, [(1 * S, 9 * S)]).joules == pytest.approx(64)


def test_a_counter_of_the_hardware_is_preferred():
    samples = [
        Sample(round(i * S / 10), "nvidia", power_w=99.0, power_of="gpu-0", energy_j=1000 + 1.2 * i) for i in range(80)
    ]
    assert energy.over(samples, [(S, 5 * S)]).joules == pytest.approx(48)


def test_idle_needs_ten_seconds():
    assert energy.idle_watts(trace(lambda t: 4.5, seconds=11)).mean_w == pytest.approx(4.5)
    short = energy.idle_watts(trace(lambda t: 4.5, seconds=6))
    assert short.mean_w is None and "at least 10 s" in short.reason
    assert energy.idle_watts([]).reason


@given(
    st.lists(st.tuples(st.integers(0, 60 * S), st.none() | st.floats(0, 100)), max_size=60),
    st.lists(st.tuples(st.integers(-S, 61 * S), st.integers(-S, 61 * S)), max_size=3),
)
def test_any_trace_gives_bounded_joules_or_a_reason(points, windows):
    samples = [Sample(t, "test", power_w=w, power_of="VDD_IN") for t, w in sorted(points, key=lambda p: p[0])]
    found = energy.over(samples, windows)
    assert (found.joules is None) == bool(found.reason)
    if found.joules is not None:
        watts = [w for _, w in points if w is not None]
        assert min(watts) * found.seconds - 1e-6 <= found.joules <= max(watts) * found.seconds + 1e-6
