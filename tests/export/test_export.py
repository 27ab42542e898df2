"""Exports of published models: what they would do, without a network; and one of an embedded model, done."""

import hashlib

import pytest

from export import __main__ as app
from export.models import MODELS, ROOT
from quamba_edge.models import published
from tests.tiny import write_checkpoint


def test_every_published_model_is_there_with_source_and_licence():
    assert set(published.NAMES) <= set(MODELS)
    for model in MODELS.values():
        assert model.licence and model.layout and (model.here or model.source.count("/") == 1)
        assert model.dimensions()[0] in ("mamba", "mamba2")


def test_the_readme_is_what_the_table_says():
    found = (ROOT / "export" / "README.md").read_text(encoding="utf-8")
    assert found == app.readme(), "export/README.md is out of date: python -m export --readme"


@pytest.mark.parametrize("name", MODELS)
def test_a_dry_run_says_everything_and_does_nothing(name, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(app.cli, "main", lambda words: pytest.fail("a dry run runs nothing"))
    assert app.main([name, *app.RECIPES, "--dry-run", "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    for recipe in app.RECIPES:
        assert f"{app.predicted(MODELS[name], recipe):,} bytes" in said and f"{name}-{recipe}.qedge" in said
    for fact in (MODELS[name].source, MODELS[name].licence, "calibrates on", "quamba-edge pack", "quamba-edge verify"):
        assert said.count(fact) >= len(app.RECIPES)
    assert not (tmp_path / "out").exists()


def test_an_export_packs_looks_at_the_size_and_verifies(tmp_path, monkeypatch, capsys):
    ran = []

    def main(words):
        ran.append(words)
        if words[0] == "pack":
            size = app.predicted(MODELS["mamba2-130m"], "w8a8") + size_off
            with open(words[words.index("-o") + 1], "wb") as file:
                file.truncate(size)
        return 0

    monkeypatch.setattr(app.cli, "main", main)
    asked = ["mamba2-130m", "w8a8", "-o", str(tmp_path / "b"), "--calib", "text.txt", "--method", "rtn", "--resume"]
    size_off = 1000
    assert app.main(asked) == 0 and [words[0] for words in ran] == ["pack", "verify"]
    out = str(tmp_path / "b" / "mamba2-130m-w8a8")
    wanted = ["state-spaces/mamba2-130m", "-o", f"{out}.qedge", "--recipe", "w8a8", "--card", f"{out}.md"]
    assert ran[0][1:8] == wanted and ran[1] == ["verify", f"{out}.qedge"]
    tail = "--tokenizer EleutherAI/gpt-neox-20b --calib text.txt --method rtn --resume"
    assert ran[0][8:] == tail.split()
    size_off = 5_000_000
    assert app.main(asked) == 1 and "were expected" in capsys.readouterr().err
    monkeypatch.setattr(app.cli, "main", lambda words: 3)
    assert app.main(asked) == 3


QUICK = "-- --calib-samples 4 --calib-len 32".split()


def test_a_folder_in_place_of_the_hub(tmp_path, capsys):
    """A model of other dimensions than the name says is packed, and then told from it by its size."""
    folder = write_checkpoint(tmp_path / "c", "mamba")
    assert app.main(["mamba-130m", "nothing", "--source", str(folder), "--dry-run"]) != 0
    assert "'nothing' is neither a recipe" in capsys.readouterr().err
    args = ["mamba-130m", "w8a8", "--source", str(folder), "--method", "rtn", "-o", str(tmp_path)]
    assert app.main([*args, *QUICK]) == 1
    card = (tmp_path / "mamba-130m-w8a8.md").read_text(encoding="utf-8")
    made = (tmp_path / "mamba-130m-w8a8.qedge").read_bytes()
    assert hashlib.sha256(made).hexdigest() in card and f"{len(made):,} bytes" in card
    for fact in (
        "license: apache-2.0",
        "apache-2.0",
        "w8a8",
        "4 windows of 32 tokens",
        "perplexity",
        "quamba-edge verify",
    ):
        assert fact in card, fact


@pytest.mark.slow
def test_an_embedded_model_is_exported(tmp_path, capsys):
    assert app.main(["storyteller-mamba2-5m", "w4a8", "-o", str(tmp_path), "--method", "rtn", *QUICK]) == 0
    assert "4,515,456 parameters" in (tmp_path / "storyteller-mamba2-5m-w4a8.md").read_text()
    assert (tmp_path / "storyteller-mamba2-5m-w4a8.md").is_file()
