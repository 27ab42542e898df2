"""Requests are read strictly: what fits becomes plain facts, anything else is refused by name and never crashes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quamba_edge.serve.fields import BadRequest, parse_json
from quamba_edge.serve.jobs import Limits
from quamba_edge.serve.openai import Served, chat, completion

SERVED = Served("story", 100, Limits(tokens=50))
TALK = [{"role": "user", "content": "hi"}]


def test_defaults_are_openai_s():
    ask = chat({"messages": TALK}, SERVED)
    assert ask.sampling.temperature == 1 and ask.sampling.seed is None and ask.max_tokens == 50 and ask.n == 1
    assert ask.messages == TALK and not ask.stream and ask.logprobs is None
    assert completion({"prompt": "a"}, SERVED).max_tokens == 16


def test_fields_become_facts():
    ask = chat(
        {
            "messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            "model": "story", "max_completion_tokens": 7, "temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0.1,
            "repetition_penalty": 1.5, "presence_penalty": -1, "frequency_penalty": 2, "logit_bias": {"5": -100, "99": 1.5},
            "seed": -1, "stop": "x", "n": 3, "stream": True, "stream_options": {"include_usage": True}, "logprobs": True,
            "top_logprobs": 4, "user": "me", "tools": [], "tool_choice": "none", "response_format": {"type": "text"},
            "max_tokens": None, "store": False, "metadata": {"a": "b"}, "ignore_eos": True,
        },
        SERVED,
    )  # fmt: skip
    s = ask.sampling
    assert (s.temperature, s.top_p, s.top_k, s.min_p, s.repetition_penalty) == (0, 0.5, 0, 0.1, 1.5)
    assert (s.presence_penalty, s.frequency_penalty, s.logit_bias, s.seed) == (-1, 2, {5: -100, 99: 1.5}, 2**64 - 1)
    assert (ask.max_tokens, ask.stop, ask.n, ask.stream, ask.include_usage) == (7, ("x",), 3, True, True)
    assert ask.logprobs == 4 and ask.client == "me" and ask.messages == [{"role": "system", "content": "ab"}]
    assert ask.ignore_end


@pytest.mark.parametrize(
    "prompt, prompts",
    [("a", ["a"]), ("", [""]), ([1, 2], [[1, 2]]), (["a", "b"], ["a", "b"]), ([[1], "b", [2, 3]], [[1], "b", [2, 3]])],
)
def test_prompts_in_every_form(prompt, prompts):
    assert completion({"prompt": prompt}, SERVED).prompts == prompts


@pytest.mark.parametrize(
    "changes, param",
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"model": "gpt"}, "model"),
        ({"model": 5}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 51}, "max_tokens"),
        ({"max_tokens": 10**300}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 1.2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop": "a" * 1001}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias[a]"),
        ({"logit_bias": {"100": 1}}, "logit_bias[100]"),
        ({"logit_bias": {"-1": 1}}, "logit_bias[-1]"),
        ({"logit_bias": {"٣": 1}}, "logit_bias[٣]"),
        ({"logit_bias": {"1" * 5000: 1}}, f"logit_bias[{'1' * 20}]"),
        ({"logit_bias": {"1": "x"}}, "logit_bias[1]"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temprature": 1}, "temprature"),
        ({"user": 5}, "user"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, param):
    with pytest.raises(BadRequest) as refused:
        chat({"messages": TALK, **changes}, SERVED)
    assert refused.value.param == param
    assert param.split(".")[0].split("[")[0] in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "raw, param",
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [100]}, "prompt"),
        ({"prompt": [[-1]]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [[[1]]]}, "prompt"),
        ({"prompt": ["a"] * 129}, "n"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "messages": TALK}, "messages"),
        ({"prompt": "a", "session": "s1", "n": 2}, "session"),
        ({"prompt": "a", "session": "s1", "echo": True}, "session"),
    ],
)
def test_completions_are_as_strict(raw, param):
    with pytest.raises(BadRequest) as refused:
        completion(raw, SERVED)
    assert refused.value.param == param


def test_neutral_values_ask_for_nothing():
    ask = completion({"prompt": "a", "best_of": 1, "suffix": "", "max_tokens": 0, "echo": True, "logprobs": 0}, SERVED)
    assert ask.max_tokens == 0 and ask.echo and ask.logprobs == 0


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"a"', b"5", b"null", b"true", b"\xff\xfe", b'{"a": NaN}', b'{"a": -Infinity}', b"[" * 100_000,
     b'{"a":' * 100_000, b'{"a": ' + b"9" * 10_000 + b"}", b'{"a": "\\ud800', b"\x00"],
)  # fmt: skip
def test_bodies_that_are_no_objects(body):
    with pytest.raises(BadRequest) as refused:
        parse_json(body)
    assert refused.value.status == 400 and len(str(refused.value)) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = (
    "messages prompt model max_tokens temperature top_p top_k min_p n seed stop stream stream_options logprobs top_logprobs echo "
    "logit_bias user tools session best_of suffix repetition_penalty presence_penalty response_format x"
).split()


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6))
def test_any_json_is_read_or_refused(raw):
    for parse in (chat, completion):
        try:
            ask = parse({"messages": TALK, **raw} if parse is chat else {"prompt": "a", **raw}, SERVED)
        except BadRequest as e:
            json.dumps(str(e))
        else:
            assert 0 <= ask.max_tokens <= 50 and 1 <= ask.n <= 128
