"""A model card says what the bundle bears out, and owns up to what it does not know."""

import hashlib
from dataclasses import replace

import pytest

from quamba_edge.apps import card as app
from quamba_edge.apps.inspect import inspect
from quamba_edge.cli import main
from quamba_edge.errors import BadBundle
from tests.golden.make import HERE


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_it_says_what_the_bundle_holds(family, tmp_path):
    bundle, found = HERE / f"{family}.qedge", inspect(HERE / f"{family}.qedge")
    app.write(bundle, tmp_path / "card.md")
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert hashlib.sha256(bundle.read_bytes()).hexdigest() in text and found.source["digest"] in text
    for figure in ("bundle", "source"):
        assert f"{found.perplexity[figure]:.4f}" in text
    assert all(f"| {p.name} | {p.scheme} |" in text for p in found.parts)
    assert f"quamba-edge verify {family}.qedge" in text and "sampled from the model" in text


def test_what_is_unknown_is_said_to_be():
    found = inspect(HERE / "mamba.qedge")
    bare = replace(
        found,
        source={"name": None, "digest": None, "license": None},
        calibration={},
        perplexity={"source": None, "bundle": None, "tokens": 0},
        has_tokenizer=False,
        has_chat_template=False,
    )
    facts = app.facts(HERE / "mamba.qedge", bare)
    assert facts["licence of the source"].startswith("the source names none") and facts["quality"] == "not measured"
    assert (facts["calibrated on"], facts["source"]) == ("not recorded", "unknown, digest `unknown`")
    assert facts["brings"] == "neither a tokenizer nor a chat template"


def test_a_broken_bundle_has_no_card(tmp_path):
    (tmp_path / "x.qedge").write_bytes(b"no")
    with pytest.raises(BadBundle):
        app.write(tmp_path / "x.qedge", tmp_path / "x.md")
    assert not (tmp_path / "x.md").exists()


def test_a_place_for_the_card_is_looked_for_before_hours_of_work(storyteller, tmp_path, capsys):
    words = ["pack", str(storyteller), "-o", str(tmp_path / "o.qedge"), "--card", str(tmp_path / "absent" / "c.md")]
    assert main(words) == 2
    assert "--card" in capsys.readouterr().err and not (tmp_path / "o.qedge").exists()
