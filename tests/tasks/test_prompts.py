"""Each task's text, as lm-eval's task files make it (docs/evaluation.md names them); the rows are our own.

tests/bench/tasks_vs_lm_eval.py compares with lm-eval itself, on the real rows.
"""

import pytest

from quamba_edge.errors import BadText, BadUsage
from quamba_edge.tasks.prompts import questions
from quamba_edge.tasks.rows import Part

ARC = {"query": "Question: What is wet?", "choices": ["a stone", "rain"], "gold": 1}
PLACES = {"question": " Where? ", "choice0": "here", "choice1": "there", "choice2": "up", "choice3": "down"}


def one(task, row, name="", examples=(), fewshot=None):
    (question,) = questions(task, Part(name, (row,), examples), fewshot)
    return question


def test_lambada_asks_for_the_last_word():
    question = one("lambada", {"text": "He went  home, and slept"})
    assert question.pairs == (("He went  home, and", " slept"),) and question.gold == 0


def test_piqa_and_arc():
    piqa = one("piqa", {"query": "Question: Dry hair?\n", "choices": ["Towel it.", "Wet it."], "gold": 0})
    assert piqa.pairs == (("Question: Dry hair?\nAnswer:", " Towel it."), ("Question: Dry hair?\nAnswer:", " Wet it."))
    for task in ("arc_easy", "arc_challenge"):
        arc = one(task, ARC)
        assert arc.pairs[1] == ("Question: What is wet?\nAnswer:", " rain") and arc.gold == 1
        assert arc.answers == ("a stone", "rain")


def test_hellaswag_of_the_original_row():
    row = {
        "ctx": "A man sits. he",
        "activity_label": "Sitting",
        "ctx_a": "A man sits.",
        "ctx_b": "he",
        "endings": ["stands [step] up.", "[header] falls  down."],
        "label": "1",
    }
    question = one("hellaswag", row)
    assert question.pairs == (
        ("Sitting: A man sits. He", " stands up."),
        ("Sitting: A man sits. He", "  falls down."),
    )
    assert question.gold == 1 and question.answers == ("stands up.", " falls down.")


def test_hellaswag_of_an_extract_without_the_label():
    row = {"ctx": "[header] How to sit [title] Find a chair. [step] Any will do.", "endings": ["Sit."], "label": 0}
    assert one("hellaswag", row).pairs == ((" How to sit. Find a chair. Any will do.", " Sit."),)


def test_winogrande_scores_the_same_end_after_each_name():
    row = {"context_options": ["Ann saw Bea, so Ann", "Ann saw Bea, so Bea"], "continuation": "waved.", "gold": 0}
    assert one("winogrande", row).pairs == (("Ann saw Bea, so Ann", " waved."), ("Ann saw Bea, so Bea", " waved."))


def test_blimp_has_no_context_and_the_good_sentence_first():
    question = one("blimp", {"sentence_good": "It is.", "sentence_bad": "It are."})
    assert question.pairs == (("", " It is."), ("", " It are.")) and question.gold == 0


def test_mmlu_shows_the_first_examples():
    examples = tuple({**PLACES, "question": f"Q{i}?", "answer": str(i % 4)} for i in range(5))
    row = {**PLACES, "answer": "3"}
    choices = "\nA. here\nB. there\nC. up\nD. down\nAnswer:"
    about = "The following are multiple choice questions (with answers) about world history.\n\n"
    two = one("mmlu", row, name="world_history", examples=examples, fewshot=2)
    context = f"{about}Q0?{choices} A\n\nQ1?{choices} B\n\nWhere?{choices}"
    assert two.pairs == tuple((context, f" {letter}") for letter in "ABCD") and two.gold == 3
    assert one("mmlu", row, name="world_history", fewshot=0).pairs[0][0] == f"{about}Where?{choices}"
    assert one("mmlu", row, name="world_history", examples=examples).pairs[0][0].count("Q") == 5
    with pytest.raises(BadUsage, match="mmlu has 5 examples for world_history: 6 cannot be shown"):
        one("mmlu", row, name="world_history", examples=examples, fewshot=6)


def test_what_cannot_be_asked_is_named_with_its_row():
    with pytest.raises(BadUsage, match="piqa has no worked examples"):
        questions("piqa", Part("", ()), 3)
    for wrong in ({**ARC, "gold": 2}, {**ARC, "gold": -1}, {**ARC, "gold": "b"}, {**ARC, "choices": [1, 2]}):
        with pytest.raises(BadText, match="row 2"):
            questions("arc_easy", Part("", (ARC, wrong)))
