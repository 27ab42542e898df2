"""What steps cost at least, against sizes worked out by hand and bytes counted in the file."""

import pytest

from quamba_edge.bundle.manifest import Tensor
from quamba_edge.bundle.reader import Bundle
from quamba_edge.ops.op import all_ops
from quamba_edge.ops.program import Ref, Step
from quamba_edge.profile.costs import Cost, cost_of, total
from quamba_edge.runtime.session import Engine
from tests.golden.make import HERE


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_a_decode_step_reads_every_weight_of_the_file_once(family: str) -> None:
    with Bundle.open(HERE / f"{family}.qedge") as bundle:
        engine = Engine(bundle, "reference", "i8")
        found = total(engine.program(1, 1, "last"), bundle.manifest, "i8")
        in_file = sum(e.nbytes for name, e in bundle.places.items() if name != "tokenizer.json")
        state = sum(block.nbytes for block in engine.slot(1).state.blocks.values())
        assert found.state == 2 * state
        # Besides: a row of the embedding, and activation scales, which both their writer and their reader read.
        assert 0 < found.weights - in_file < 0.015 * in_file


def test_arithmetic_is_that_of_the_sizes() -> None:
    with Bundle.open(HERE / "mamba2.qedge") as bundle:
        engine = Engine(bundle, "reference")
        c = bundle.config
        heads, channels = c.d_inner // c.headdim, c.d_inner + 2 * c.ngroups * c.d_state
        products = c.n_layer * (c.d_model * (c.d_inner + channels + heads) + c.d_inner * c.d_model)
        head = c.d_model * bundle.manifest.sites["head"]["N"]
        floats = c.n_layer * (3 * c.d_inner * c.d_state + channels * c.d_conv)
        assert total(engine.program(1, 1, "none"), bundle.manifest, "f16").fields()[3:] == (products, floats)
        many = total(engine.program(2, 16, "all"), bundle.manifest, "f16")
        assert many.fields()[3:] == (32 * (products + head), 32 * floats)


def test_float_products_and_looked_up_rows() -> None:
    op = all_ops()["linear_w16a16"]
    refs = {"x": Ref("buffer", "x"), "weight": Ref("weight", "w"), "y": Ref("buffer", "y")}

    class Manifest:
        tensors = {"w": Tensor("f16", (40, 64), "row", "")}

    step = Step(op, refs, {"M": 3, "N": 40, "K": 64, "add": 1}, {}, "here")
    assert cost_of(step, Manifest, "f16") == Cost(2 * 40 * 64, 0, 2 * 3 * 64 + 2 * 4 * 3 * 40, 0, 3 * 40 * 64)
    refs = {"tokens": Ref("buffer", "t"), "weight": Ref("weight", "w"), "y": Ref("buffer", "y")}
    step = Step(all_ops()["embed_w16"], refs, {"M": 3, "N": 40, "K": 64}, {}, "here")
    assert cost_of(step, Manifest, "f16").weights == 2 * 3 * 64


def test_the_least_time_is_that_of_the_scarcer() -> None:
    cost = Cost(weights=100, state=20, activations=1000, dots=50, fmas=10)
    assert cost.memory == 120
    assert cost.seconds(bandwidth=10, dots=1000, fmas=1000) == 12
    assert cost.seconds(bandwidth=1e9, dots=5, fmas=2) == 15
    assert cost + cost == Cost(200, 40, 2000, 100, 20)
