"""One packed model of each family, kept in the repository, says the same words on every backend of this machine."""

import pytest

from quamba_edge.backends import known, why_not
from tests.golden.make import GOLDEN, HERE, text_of


@pytest.mark.parametrize("backend", known())
@pytest.mark.parametrize("family", GOLDEN)
def test_greedy_text(family, backend):
    if why_not(backend):
        pytest.skip(f"backend {backend}: {why_not(backend)}")
    assert text_of(HERE / f"{family}.qedge", backend) == (HERE / f"{family}.txt").read_text()


def test_the_texts_are_stories():
    for family in GOLDEN:
        text = (HERE / f"{family}.txt").read_text()
        assert text.startswith(" Once upon a time") and len(text) > 150
