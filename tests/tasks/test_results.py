"""Accuracies, errors and intervals on scores made by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge.tasks import results
from quamba_edge.tasks.prompts import Question
from quamba_edge.tasks.results import Part, part, summarize
from quamba_edge.tasks.scoring import Score


def asked(answers, gold=0):
    return Question(tuple(("c", f" {a}") for a in answers), gold, tuple(answers))


def scores(*logps):
    return [Score(p, False) for p in logps]


def test_acc_norm_divides_by_characters_and_acc_bytes_by_bytes():
    # 4 and 8 characters, 4 and 16 bytes: in all -3 is likelier, per character -4.2 is, per byte even more so.
    questions = [asked(["abcd", "äöüßäöüß"], gold=1), asked(["abcd", "äöüßäöüß"], gold=1)]
    made = part("piqa", questions, [scores(-3.0, -4.2), scores(-1.0, -3.2)])
    assert made.right["acc"].tolist() == [0, 0] and made.right["acc_norm"].tolist() == [1, 0]
    assert made.right["acc_bytes"].tolist() == [1, 1]
    assert set(part("winogrande", questions, [scores(-1, -2)] * 2).right) == {"acc"}


def test_the_first_of_equals_is_chosen():
    assert part("arc_easy", [asked("ab"), asked("ab", 1)], [scores(-1, -1)] * 2).right["acc"].tolist() == [1, 0]


def test_single_continuations_are_right_when_greedy_and_have_a_perplexity():
    questions = [Question((("c", " w"),), 0, ("w",))] * 4
    found = summarize("lambada", {"": part("lambada", questions, [[Score(-v, v < 2)] for v in (1.0, 1.0, 2.0, 4.0)])})
    assert found["acc"] == 0.5 and found["n"] == 4 and found["perplexity"] == pytest.approx(math.exp(2))
    low, high = found["perplexity_ci95"]
    assert math.e <= low < found["perplexity"] < high <= math.exp(4) and found["perplexity_stderr"] > 0


def test_no_probability_at_all_is_an_infinite_perplexity():
    questions = [Question((("c", " w"),), 0, ("w",))] * 2
    found = summarize("lambada", {"": part("lambada", questions, [[Score(-math.inf, False)], [Score(-1.0, False)]])})
    assert found["perplexity"] == math.inf and found["acc"] == 0


@given(st.lists(st.booleans(), min_size=2, max_size=200))
def test_standard_error_and_interval_of_a_share(right):
    right = np.array(right, float)
    n, p = len(right), right.mean()
    assert results.stderr(right) == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)), abs=1e-12)
    low, high = results.wilson(right)
    assert 0 <= low <= p <= high <= 1 and high - low < 2 * results.Z95 * 0.5 / math.sqrt(n) + 1e-9
    # Its ends are the shares from which p is just 1.96 standard errors away.
    for end in {low, high} - {0.0, 1.0}:
        assert abs(p - end) == pytest.approx(results.Z95 * math.sqrt(end * (1 - end) / n), abs=1e-9)


def test_known_wilson_interval():
    low, high = results.wilson(np.array([1.0] * 8 + [0.0] * 2))
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)


def test_subtasks_count_alike_in_blimp_and_by_size_in_mmlu():
    parts = {"a": Part({"acc": np.array([1.0, 1, 1, 0, 1, 1, 0, 1])}), "b": Part({"acc": np.array([0.0, 1.0])})}
    alike, sized = summarize("blimp", parts), summarize("mmlu", parts)
    assert alike["acc"] == pytest.approx((0.75 + 0.5) / 2) and sized["acc"] == pytest.approx(7 / 10)
    assert alike["n"] == sized["n"] == 10 and alike["subtasks"]["a"]["n"] == 8
    errors = [results.stderr(p.right["acc"]) for p in parts.values()]
    assert alike["acc_stderr"] == pytest.approx(math.hypot(*errors) / 2)
    pooled = math.sqrt((7 * 8 * errors[0] ** 2 + 1 * 2 * errors[1] ** 2) / 8 / 10)
    assert sized["acc_stderr"] == pytest.approx(pooled)
    for found in (alike, sized):
        low, high = found["acc_ci95"]
        assert 0 <= low < found["acc"] < high <= 1


def test_a_single_question_has_no_standard_error():
    found = summarize("piqa", {"": part("piqa", [asked("ab")], [scores(-1, -2)])})
    assert math.isnan(found["acc_stderr"]) and found["acc_ci95"][0] < 0.3
    for task in ("blimp", "mmlu"):
        found = summarize(task, {n: Part({"acc": np.array([1.0])}) for n in "ab"})
        assert math.isnan(found["acc_stderr"]) and found["acc_ci95"] == [0.0, 1.0]
