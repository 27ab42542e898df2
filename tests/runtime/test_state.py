"""States on the host and on a backend."""

import numpy as np
import pytest

from quamba_edge.backends import reference
from quamba_edge.errors import BadUsage
from quamba_edge.ops.program import StateSpec
from quamba_edge.runtime.state import LiveState, State, state_bytes

SPECS = (StateSpec("layers.0.conv", (3, 10), "f32"), StateSpec("layers.0.ssm", (2, 4, 5), "state"))


@pytest.mark.parametrize(("chosen", "width"), [("f32", 4), ("f16", 2), ("i8", 1)])
def test_size_follows_the_choice(chosen: str, width: int) -> None:
    """The convolution's inputs stay f32."""
    state = State.zeros(SPECS, 3, chosen)
    assert state.nbytes == state_bytes(SPECS, 3, chosen) == 3 * (30 * 4 + 40 * width)
    assert state.arrays["layers.0.ssm"].shape == (3, 2, 4, 5)
    assert not any(a.any() for a in state.arrays.values())


def test_unknown_dtype() -> None:
    with pytest.raises(BadUsage, match="'f8' is not a state dtype: choose from f32, f16, i8"):
        State.zeros(SPECS, 1, "f8")


def test_copies_are_apart() -> None:
    state = State.zeros(SPECS, 1, "f16")
    other = state.copy()
    other.arrays["layers.0.ssm"][...] = 1
    assert not state.arrays["layers.0.ssm"].any()


def test_live_state_is_written_and_read() -> None:
    live = LiveState(reference.make(), SPECS, 2, "i8")
    rng = np.random.default_rng(0)
    state = State.zeros(SPECS, 2, "i8")
    for array in state.arrays.values():
        array[...] = rng.integers(-100, 100, array.shape)
    live.write(state)
    found = live.read()
    assert all((found.arrays[n] == a).all() for n, a in state.arrays.items())
    live.write(None)
    assert not any(a.any() for a in live.read().arrays.values())
    assert found.arrays["layers.0.ssm"].any(), "what was read is a copy"


@pytest.mark.parametrize(
    "other", [State.zeros(SPECS, 1, "i8"), State.zeros(SPECS, 2, "f16"), State.zeros(SPECS[:1], 2, "i8")]
)
def test_a_foreign_state_is_refused_and_changes_nothing(other: State) -> None:
    live = LiveState(reference.make(), SPECS, 2, "i8")
    mine = State.zeros(SPECS, 2, "i8")
    mine.arrays["layers.0.conv"][...] = 7
    live.write(mine)
    with pytest.raises(BadUsage, match="not one of this model: layers.0"):
        live.write(other)
    assert (live.read().arrays["layers.0.conv"] == 7).all()
