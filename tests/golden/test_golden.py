"""One packed model of each family, kept in the repository, says the same words on every backend of this machine."""

import numpy as np
import pytest

from quamba_edge.bundle.reader import Bundle
from quamba_edge.runtime.session import Engine, Session
from quamba_edge.runtime.tokenizer import Tokenizer
from tests.golden.make import GOLDEN, HERE, PROMPT, TOKENS, text_of
from tests.ops import harness

# Codes that round the other way at a tie change what follows: between any two orders of adding up floats, the logits of these models
# differ by up to 0.4, some 2 % of the largest.
NEAR = 0.5


@pytest.mark.parametrize("family", GOLDEN)
def test_greedy_text(family):
    assert text_of(HERE / f"{family}.qedge", "reference") == (HERE / f"{family}.txt").read_text()


@pytest.mark.parametrize("label", [label for label in harness.available() if label != "reference"])
@pytest.mark.parametrize("family", GOLDEN)
def test_every_backend_would_say_it(family, label):
    """Given the text so far, a backend's likeliest next token is the golden one, or one that is as likely within rounding."""
    with Bundle.open(HERE / f"{family}.qedge") as bundle:
        prompt = Tokenizer(bundle.tokenizer_json()).encode(PROMPT)
        golden, other = Session(Engine(bundle, "reference")), Session(Engine(bundle, harness.open_labelled(label)))
        expected, found = golden.prefill(prompt), other.prefill(prompt)
        same = 0
        for place in range(TOKENS):
            token = int(np.argmax(expected))
            assert found.max() - found[token] < NEAR, f"token {place}: {np.argmax(found)} instead of {token}"
            assert np.abs(found - expected).max() < 2 * NEAR, f"token {place}: the logits are others"
            same += int(np.argmax(found)) == token
            expected, found = golden.decode(token), other.decode(token)
    assert same >= TOKENS - 3, f"only {same} of {TOKENS} tokens are the likeliest"


def test_the_texts_are_stories():
    for family in GOLDEN:
        text = (HERE / f"{family}.txt").read_text()
        assert text.startswith(" Once upon a time") and len(text) > 150
