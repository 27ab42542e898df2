"""Every case of every op through the CUDA kernels, on the CPU (emulator.py)."""

import pytest

from quamba_edge.ops.op import all_ops
from tests.cuda.emulator import EmulatedBackend
from tests.native.build import why_not
from tests.ops import harness
from tests.ops.test_every_op import EVERY, variants

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
OPS = all_ops()


@pytest.mark.parametrize(("name", "index"), EVERY)
def test_kernel(name, index, emulator):
    """Right, wholly written, within its buffers; and the same, to the bit, whichever thread runs first."""
    op = OPS[name]
    case, state = variants(op)[index]
    inputs = harness.inputs_of(op, case, state, seed=1)
    found = harness.run(EmulatedBackend(emulator), op, case, inputs)
    harness.assert_right(op, case, inputs, found)
    again = harness.run(EmulatedBackend(emulator, backwards=True), op, case, inputs)
    for result in found:
        assert (found[result] == again[result]).all(), f"{name}.{result} {case}: depends on the order of threads"
