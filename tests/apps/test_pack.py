"""The face of pack: progress with and without a terminal, what to do after Ctrl-C, and refusals before any work."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from quamba_edge.apps import pack as app
from quamba_edge.errors import BadUsage, Interrupted, Missing

COMMAND = ["pack", "a folder", "-o", "out.qedge"]


def told(calls, monkeypatch, step=1.0):
    """What Progress prints for calls (done, total, text), one every `step` seconds."""
    clock = iter(100.0 + step * i for i in range(1000))
    monkeypatch.setattr(app.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with app.Progress(out) as progress:
        for call in calls:
            progress(*call)
    return out.getvalue().splitlines()


def test_lines_come_now_and_then_with_the_time_left(monkeypatch):
    lines = told([(i, 20, f"layer {i}") for i in range(20)], monkeypatch)
    assert lines == [
        "0/20 layer 0",
        "5/20 layer 5, about 15 s left",
        "10/20 layer 10, about 10 s left",
        "15/20 layer 15, about 5 s left",
    ]


def test_a_new_stage_has_its_own_clock(monkeypatch):
    calls = [(i, 10, "sampling") for i in range(10)] + [(i, 4, "layers") for i in range(4)]
    lines = told(calls, monkeypatch, step=6.0)
    assert lines[9] == "9/10 sampling, about 6 s left"
    assert lines[10:] == [
        "0/4 layers",
        "1/4 layers, about 18 s left",
        "2/4 layers, about 12 s left",
        "3/4 layers, about 6 s left",
    ]


def test_a_terminal_gets_a_bar():
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with app.Progress(out) as progress:
        for call in [(0, 2, "sampling"), (1, 2, "sampling"), (0, 5, "layers.0"), (3, 5, "layers.3")]:
            progress(*call)
        progress._bar.refresh()
        assert [(t.description, t.completed, t.total) for t in progress._bar.tasks] == [("layers.3", 3, 5)]
    assert "layers.3" in out.getvalue() and "\x1b[" in out.getvalue()


def test_control_c_says_how_to_go_on(monkeypatch):
    def stopped(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr("quamba_edge.pack.pack", stopped)
    for command in (COMMAND, [*COMMAND, "--resume"]):
        with pytest.raises(Interrupted) as caught:
            app.pack({"out": Path("out.qedge")}, app.Progress(io.StringIO()), command)
        assert str(caught.value).endswith("continue with: quamba-edge pack 'a folder' -o out.qedge --resume")
        assert caught.value.exit_code == 130


def test_arguments_reach_the_packer(monkeypatch):
    seen = {}
    monkeypatch.setattr("quamba_edge.pack.pack", lambda **options: seen.update(options) or "result")
    progress = app.Progress(io.StringIO())
    assert app.pack({"checkpoint_path": "c", "out": Path("o.qedge"), "seed": 3}, progress, COMMAND) == "result"
    assert seen == {"checkpoint_path": "c", "out": Path("o.qedge"), "seed": 3, "progress": progress}


def test_the_command_line_gives_the_packer_arguments_it_has(monkeypatch, capsys):
    """Every name is a parameter of quamba_edge.pack.pack, and flags arrive under the right one."""
    import inspect

    from quamba_edge import cli
    from quamba_edge.pack import PackResult
    from quamba_edge.pack import pack as real

    seen = {}

    def fake(**options):
        inspect.signature(real).bind(**options)
        seen.update(options)
        fields = dict.fromkeys(PackResult.__dataclass_fields__, 1)
        return PackResult(**fields)

    monkeypatch.setattr("quamba_edge.pack.pack", fake)
    words = (
        "pack c -o o.qedge --recipe w8a8 --calib t.txt --calib-samples 3 --calib-len 64 --method rtn --seed 7 --resume"
    )
    assert cli.main([*words.split(), "--tokenizer", "t.json", "--chat-template", "c.jinja", "--eval-tokens", "99"]) == 0
    seen.pop("progress")
    assert seen == {
        "checkpoint_path": "c",
        "out": Path("o.qedge"),
        "recipe": "w8a8",
        "calib": Path("t.txt"),
        "calib_samples": 3,
        "calib_len": 64,
        "method": "rtn",
        "seed": 7,
        "resume": True,
        "tokenizer": Path("t.json"),
        "chat_template": Path("c.jinja"),
        "eval_tokens": 99,
    }


def test_refusals_come_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr("quamba_edge.pack.pack", lambda **options: pytest.fail("it began to work"))
    for out in (tmp_path, tmp_path / "none" / "o.qedge"):
        with pytest.raises(BadUsage):
            app.pack({"out": out}, app.Progress(io.StringIO()), COMMAND)
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    with pytest.raises(Missing, match=r"pip install 'quamba-edge\[pack\]'"):
        app.pack({"out": tmp_path / "o.qedge"}, app.Progress(io.StringIO()), COMMAND)


def test_summary():
    result = SimpleNamespace(
        bundle="o.qedge",
        bytes=3_400_000,
        seconds=61.2,
        peak_rss_bytes=2.5e9,
        perplexity_source=4.0,
        perplexity_bundle=4.1,
        has_tokenizer=True,
    )
    assert app.summary(result) == "o.qedge: 3.40 MB in 61 s, peak memory 2.50 GB\nperplexity 4.0000 -> 4.1000 (+2.50%)"
    result.perplexity_source = None
    assert "perplexity" not in app.summary(result)
    result.has_tokenizer = False
    assert "--tokenizer FILE" in app.summary(result)
