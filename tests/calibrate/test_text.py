"""Calibration windows: seeded, from the right part of the text, and refused when the text is too short."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge.calibrate.text import Draw, cut_windows, from_file, read_documents, thin
from quamba_edge.errors import BadText


@given(st.integers(400, 3000), st.integers(1, 20), st.integers(2, 50), st.integers(0, 6), st.integers(0, 9))
def test_calibration_and_held_out_windows_share_no_token(total, samples, length, held, seed):
    calib, rest = cut_windows(np.arange(total), Draw(samples, length, held, seed))
    assert calib.shape == (samples, length) and rest.shape[1] == length
    assert (np.diff(calib, axis=1) == 1).all()
    assert len(rest) <= held and (not held or not len(rest) or calib.max() < rest.min())
    again, _ = cut_windows(np.arange(total), Draw(samples, length, held, seed))
    assert (calib == again).all()


def test_short_text_says_how_much_is_needed():
    with pytest.raises(BadText, match="calib-len"):
        cut_windows(np.arange(50), Draw(4, 64, 1, 0))


def test_reads_text_json_lines_and_chat(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo")
    lines = [{"text": "x"}, {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_documents(tmp_path / "a.txt") == ["one\ntwo"]
    assert read_documents(tmp_path / "b.jsonl") == ["x", "hi\nho"]
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "b.jsonl").read_bytes()))
    assert read_documents(tmp_path / "c.jsonl.gz") == ["x", "hi\nho"]


def test_json_lines_end_at_line_feeds_alone(tmp_path):
    """JSON may hold U+2028 and U+0085 unescaped, where str.splitlines would cut."""
    text = "a\u2028b\x85c"
    line = json.dumps({"text": text}, ensure_ascii=False)
    (tmp_path / "b.jsonl").write_text(f"{line}\r\n{line}", newline="")
    assert read_documents(tmp_path / "b.jsonl") == [text, text]


@pytest.mark.parametrize("content", ["{broken", '{"other": 1}', "[]", '{"messages": [3]}', '{"text": null}'])
def test_bad_json_lines_name_the_line(tmp_path, content):
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n' + content)
    with pytest.raises(BadText, match="line 2"):
        read_documents(tmp_path / "b.jsonl")


def test_binary_and_missing_files_are_refused(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00\x81")
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"text")[:-3])
    for path in (tmp_path / "x.txt", tmp_path / "x.gz", tmp_path / "absent.txt", tmp_path):
        with pytest.raises(BadText):
            read_documents(path)


def test_a_foreign_tokenizer_is_noticed(tmp_path):
    (tmp_path / "a.txt").write_text("word " * 400)
    with pytest.raises(BadText, match="not the model's"):
        from_file(tmp_path / "a.txt", lambda d: [99] * len(d), 50, Draw(2, 16, 1, 0))


def test_a_long_text_is_thinned_evenly_at_word_borders():
    words = [f"w{i}" for i in range(20000)]
    text = " ".join(words)
    short = thin(text, limit=10_000, pieces=20)
    assert thin(text, limit=len(text)) == text and 9_000 < len(short) <= 10_000
    kept = [int(w[1:]) for w in short.split() if w in set(words[:1]) or w[1:].isdigit()]
    assert kept[0] == 0 and max(kept) > 19_900 and np.histogram(kept, 10)[0].min() > 50


def test_of_very_many_documents_only_a_part_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("quamba_edge.calibrate.text.LIMIT", 5000)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": f"{i:04d}" * 10}) for i in range(1000)))
    seen = []
    from_file(tmp_path / "a.jsonl", lambda d: seen.append(d) or [1] * len(d), 50, Draw(2, 16, 1, 0))
    assert 100 <= len(seen) <= 150 and seen[0][:4] == "0000" and int(seen[-1][:4]) > 950
