"""Predictions against sums worked out by hand, and against the published figures that they claim to meet."""

import math

import pytest

from quamba_edge import devices
from quamba_edge.bundle.outline import outline
from quamba_edge.models import published
from quamba_edge.ops.op import all_ops
from quamba_edge.ops.program import Step
from quamba_edge.profile import predict
from quamba_edge.profile.costs import Cost
from quamba_edge.profile.predict import Machine, Shares
from quamba_edge.quant.recipe import shipped
from quamba_edge.runtime.snapshots import Keep

SHARES = Shares(memory=0.5, products8=0.5, products16=0.25, ssd=0.1, scan=0.2, conv=0.5, activations=0.5)
SLOW = Machine("m", "mode", 100.0, 1000.0, 500.0, 50.0, 0.5, SHARES, watts=10)


def step(op):
    return Step(all_ops()[op], {}, {}, {}, "here")


@pytest.mark.parametrize(
    "op, cost, seconds",
    [
        ("linear_w4a8", Cost(weights=500), 10.5),  # bytes over half the bandwidth, and the start
        ("linear_w4a8", Cost(weights=50, dots=5000), 10.5),
        ("linear_w4a16", Cost(fmas=2500), 20.5),
        ("ssd_i8", Cost(state=50, fmas=500), 100.5),
        ("scan_i8", Cost(fmas=500), 50.5),
        ("gated_norm", Cost(activations=100), 2.5),
        ("embed_w4", Cost(), 0.5),
    ],
)
def test_a_step_takes_what_the_scarcest_takes(op, cost, seconds):
    assert math.isclose(predict.seconds(step(op), cost, SLOW), seconds)


def made(name, recipe):
    family, config = published.config(name)
    return outline(family, config, shipped(recipe, small=False))


# Milliseconds on an Orin Nano 8GB: DESIGN asks for 15 %.  tests/bench/plan_check.py has where they come from.
@pytest.mark.parametrize(
    "recipe, state, token, first", [("w4a8", "i8", 79.91, 2088.03), ("w4a16", "f16", 78.77, 2316.23)]
)
def test_the_published_8b_figures(recipe, state, token, first):
    machine = predict.board_modes(devices.ORIN_NANO_8GB)[0]
    found = predict.speed(made("mamba2-8b", recipe), machine, state)
    assert found.mode == "15W" and found.bound == "memory"
    assert 1000 / found.decode_tps == pytest.approx(token, rel=0.15)
    assert 1024e3 / found.prefill_tps == pytest.approx(first, rel=0.15)
    assert found.decode_j_at_most == pytest.approx(15 / found.decode_tps)


def test_more_bandwidth_decodes_faster_and_more_sequences_share_the_weights():
    manifest = made("mamba2-2.7b", "w4a8")
    slow, fast, fastest = predict.board_modes(devices.ORIN_NANO_8GB)
    assert predict.speed(manifest, slow).decode_tps * 1.4 < predict.speed(manifest, fast).decode_tps
    assert predict.speed(manifest, fastest).prefill_tps > predict.speed(manifest, fast).prefill_tps
    two = predict.speed(manifest, slow, sequences=2).decode_tps
    assert 1.5 < two / predict.speed(manifest, slow).decode_tps < 2
    assert predict.speed(manifest, fastest).decode_j_at_most is None


def test_memory_is_the_sum_of_its_parts():
    manifest = made("mamba2-130m", "w8a8")

    def parts(**options):
        return {p.name.split(" of ")[0]: p.bytes for p in predict.memory(manifest, **options)}

    one = parts()
    assert set(one) == {"weights", "states", "activations", "scratch", "tokenizer", "Python"}
    conv, ssm = 3 * (1536 + 256) * 4, 24 * 64 * 128
    assert one["states"] == 24 * (conv + 2 * ssm)
    assert parts(sessions=3, state_dtype="i8")["states"] == 3 * 24 * (conv + ssm)
    kept = parts(keep=Keep(most=4), sessions=2, gpu=True)
    assert kept["snapshots"] == 2 * 4 * one["states"] and kept["CUDA context"] == predict.CONTEXT_BYTES
    assert parts(process_bytes=7)["Python"] == 7 + predict.HEADER_BYTES
