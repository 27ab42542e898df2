"""Budgets from words, and costs against the outlines and programs that they are sums of."""

import json

import pytest

from quamba_edge import devices, models
from quamba_edge.bundle.outline import outline, weight_bytes
from quamba_edge.errors import BadText, BadUsage
from quamba_edge.models import published
from quamba_edge.profile import predict
from quamba_edge.search.budget import Budget, costs, measured, predicted
from quamba_edge.search.space import Space
from quamba_edge.search.wish import Wish, budgets

MACHINE = predict.board_modes(devices.named("orin-nano-8gb"))[0]


@pytest.mark.parametrize(
    "text, kind, most",
    [
        ("a16=4", "a16", 4),
        ("bytes=3100000", "bytes", 3.1e6),
        ("bytes=3.1MB", "bytes", 3.1e6),
        ("Decode=2.5 ms", "decode", 2.5e-3),
        ("prefill=.5s", "prefill", 0.5),
        ("energy=40mJ", "energy", 0.04),
    ],
)
def test_budgets(text, kind, most):
    assert Budget.parse(text) == Budget(kind, pytest.approx(most))


@pytest.mark.parametrize(
    "text, said",
    [
        ("4", "KIND=NUMBER"),
        ("layers=4", "KIND=NUMBER"),
        ("a16", "KIND=NUMBER"),
        ("a16=", "a number in no unit"),
        ("a16=2.5", "whole"),
        ("a16=2kb", "no unit"),
        ("bytes=3 parsecs", "b, kb, mb, gb"),
        ("bytes=-3", "a number in"),
        ("decode=fast", "s, ms, us"),
    ],
)
def test_a_budget_that_says_nothing_is_refused(text, said):
    with pytest.raises(BadUsage, match=said):
        Budget.parse(text)


@pytest.mark.parametrize("name", ["mamba2-130m", "mamba-130m"])
@pytest.mark.parametrize("kind", ["bytes", "decode", "prefill", "energy"])
def test_a_mix_costs_what_its_outline_says(name, kind):
    family, config = published.config(name)
    space = Space.of(family, config, True, "wxax", "w8a8,w4a8")
    found = costs(kind, space, config, predicted(MACHINE, "f16"), watts=7.0)
    given = {**space.uniform("w8a8", "w4a8"), "layers.2": "w4a16/in_proj=8", "layers.7": "w4a8"}
    manifest = outline(family, config, space.recipe(given))
    if kind == "bytes":
        expected = weight_bytes(manifest)
    else:
        program = models.find(family, "program").program(manifest, 1, 128 if kind == "prefill" else 1, "last")
        expected = predict.program_seconds(program, manifest, "f16", MACHINE) * (7.0 if kind == "energy" else 1.0)
    assert found.of(given) == pytest.approx(expected, rel=1e-12)
    least = min(found.of(space.uniform(c, e)) for c in space.choices for e in space.ends)
    assert found.least(config.n_layer) == pytest.approx(least, rel=1e-12)


def profiled(family, config, recipe, tokens=(1, 128)):
    """What `bench --profile --json` would print of a bundle where every op takes as many seconds as it has bytes."""
    manifest, profiles = outline(family, config, recipe), []
    for n in tokens:
        ops = []
        for step in models.find(family, "program").program(manifest, 1, n, "last").steps:
            place = step.site.split(".")[-1] if step.op.name.startswith("linear") else ""
            layer = int(step.site.split(".")[1]) if step.site.startswith("layers") else None
            ops.append({"name": f"{step.op.name} {place}".strip(), "layer": layer, "seconds": len(step.op.name) * n})
        profiles.append({"batch": 1, "tokens": n, "seconds": 2.0, "timed_seconds": 4.0, "ops": ops})
    return {"profiles": profiles}


def test_times_that_were_measured_op_by_op(tmp_path):
    family, config = published.config("mamba2-130m")
    space = Space.of(family, config, True, "w4ax")
    files = []
    for choice in space.choices:
        files.append(tmp_path / f"{choice}.json")
        files[-1].write_text(json.dumps(profiled(family, config, space.recipe(space.uniform(choice)))) + "\n")
    found = costs("decode", space, config, measured(files))
    manifest = outline(family, config, space.recipe(space.uniform()))
    steps = models.find(family, "program").program(manifest, 1, 1, "last").steps
    assert found.of(space.uniform()) == pytest.approx(sum(len(s.op.name) for s in steps) / 2)  # half is the clock's
    with pytest.raises(BadUsage, match="no file has rmsnorm_f16 in a step of 1 tokens"):
        costs("decode", space, config, measured(files[:1]))


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"profiles": [{"seconds": 1, "timed_seconds": 0}]}'])
def test_another_file_is_no_cost_table(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(BadText, match="bench BUNDLE --profile --json"):
        measured([tmp_path / "a.json"])


@pytest.mark.parametrize(
    "wish, said",
    [
        (Wish(()), "--budget is needed"),
        (Wish(("a16=1", "a16=2")), "each kind once"),
        (Wish(("bytes=1kB",)), "no recipe of this search has fewer"),
        (Wish(("decode=1ms",)), "needs times"),
        (Wish(("decode=1us",), device="orin-nano-8gb"), "no recipe of this search has fewer"),
        (Wish(("energy=1J",), device="orin-nano-8gb", costs=("x",)), "--device predicts"),
        (Wish(("decode=1s",), device="here"), "--device predicts"),
    ],
)
def test_wishes_that_cannot_be(wish, said):
    family, config = published.config("mamba2-130m")
    with pytest.raises(BadUsage, match=said):
        budgets(Space.of(family, config, True, wish.recipe), config, wish, "f16")
