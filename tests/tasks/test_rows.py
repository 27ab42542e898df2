"""Files of tasks: what is taken of them, and what is said when they are missing or wrong."""

import json

import pytest

from quamba_edge.errors import BadText, BadUsage
from quamba_edge.tasks import rows


def write(path, *values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(v) + "\n" for v in values))


def numbered(count):
    return [{"text": f"text {i}"} for i in range(count)]


def texts(part):
    return [r["text"] for r in part.rows]


def test_the_first_rows_or_random_ones(tmp_path):
    write(tmp_path / "lambada_openai.jsonl", *numbered(30))
    (whole,) = rows.load("lambada", tmp_path)
    assert whole.name == "" and len(whole.rows) == 30
    assert texts(rows.load("lambada", tmp_path, limit=3)[0]) == ["text 0", "text 1", "text 2"]
    some = texts(rows.load("lambada", tmp_path, limit=5, seed=1)[0])
    assert some == texts(rows.load("lambada", tmp_path, limit=5, seed=1)[0]) == sorted(some, key=lambda t: int(t[5:]))
    assert len(set(some)) == 5 and some != texts(rows.load("lambada", tmp_path, limit=5, seed=2)[0])
    assert len(rows.load("lambada", tmp_path, limit=99, seed=1)[0].rows) == 30


def test_a_folder_is_a_task_with_subtasks_each_limited_by_itself(tmp_path):
    pair = {"sentence_good": "It is.", "sentence_bad": "It are."}
    write(tmp_path / "blimp" / "b_two.jsonl", *[pair] * 4)
    write(tmp_path / "blimp" / "a_one.jsonl", *[pair] * 2)
    assert [(p.name, len(p.rows)) for p in rows.load("blimp", tmp_path, limit=3)] == [("a_one", 2), ("b_two", 3)]


def test_mmlu_has_examples_beside_its_questions(tmp_path):
    for folder, question in (("test", "What, then?"), ("dev", 'A "quoted" one?')):
        (tmp_path / "mmlu" / folder).mkdir(parents=True)
        quoted = question.replace('"', '""')
        text = f'question,choice0,choice1,choice2,choice3,answer\n"{quoted}",1,2,"3, or\nmore",4,2\n'
        (tmp_path / "mmlu" / folder / f"world_history_{folder}.csv").write_text(text)
    (part,) = rows.load("mmlu", tmp_path)
    assert part.name == "world_history" and part.rows[0]["choice2"] == "3, or\nmore" and part.rows[0]["answer"] == "2"
    assert part.examples[0]["question"] == 'A "quoted" one?'
    (tmp_path / "mmlu" / "dev" / "world_history_dev.csv").unlink()
    with pytest.raises(BadText, match=r"world_history_dev\.csv is not there; expected rows with question, choice0"):
        rows.load("mmlu", tmp_path)


@pytest.mark.parametrize("task", rows.SOURCES)
def test_a_missing_file_is_named_with_its_place_and_form(task, tmp_path):
    expected = rows.SOURCES[task]
    with pytest.raises(BadText) as e:
        rows.load(task, tmp_path)
    assert all(str(tmp_path / f) in str(e.value) for f in expected.files) and expected.fields[-1] in str(e.value)


def test_an_empty_folder_has_no_subtasks(tmp_path):
    (tmp_path / "blimp").mkdir()
    with pytest.raises(BadText, match=r"blimp/\*\.jsonl, and there is none"):
        rows.load("blimp", tmp_path)


def test_wrong_files_are_named_with_the_line(tmp_path):
    path = tmp_path / "lambada_openai.jsonl"
    for content, message in (
        (b'{"text": "a b"}\n{"text"\n', "line 2 is no JSON"),
        (b'{"text": "a b"}\n{"words": "a"}\n', "row 2 has no 'text'"),
        (b"[1]\n", "row 1 has no 'text'"),
        (b"\n", "has no rows"),
        (b"caf\xe9", "no UTF-8 text at byte 3"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadText, match=message):
            rows.load("lambada", tmp_path)


def test_names_of_tasks():
    assert rows.known("piqa, blimp,piqa") == ["piqa", "blimp"] and rows.known("all") == list(rows.SOURCES)
    with pytest.raises(BadUsage, match="'pika' is no task: choose from lambada"):
        rows.known("blimp,pika")
    with pytest.raises(BadUsage, match="no task is named"):
        rows.known(",")


def test_a_limit_below_one_is_refused(tmp_path):
    write(tmp_path / "lambada_openai.jsonl", *numbered(2))
    with pytest.raises(BadUsage, match="--limit is 0"):
        rows.load("lambada", tmp_path, limit=0)
