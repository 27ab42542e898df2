"""Routes, doors and errors, without a socket: every reply is OpenAI's shape, whatever was asked."""

import json

import numpy as np
import pytest
from starlette.testclient import TestClient

from quamba_edge.runtime.model import load
from quamba_edge.serve import app
from quamba_edge.serve.sessions import Sessions
from quamba_edge.telemetry import Sample

TALK = [{"role": "user", "content": "hi"}]


def client_of(service, **settings):
    return TestClient(app.build(service, "tiny", **settings), base_url="http://127.0.0.1:8080")


@pytest.fixture
def client(service, tmp_path):
    return client_of(service, sessions=Sessions(service, tmp_path / "saved"))


def ask(client, path="/v1/completions", **fields):
    fields = {"prompt": "hi", "max_tokens": 4, "temperature": 0, "ignore_eos": True, **fields}
    if "chat" in path:
        fields = {"messages": TALK, **{k: v for k, v in fields.items() if k != "prompt"}}
    reply = client.post(path, json=fields)
    assert reply.status_code == 200, reply.text
    return reply


def chunks(reply):
    lines = [line for line in reply.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines[:-1]]


def error_of(reply, status):
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def test_health_and_models(client):
    assert client.get("/health").json()["status"] == "ok"
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["tiny"]
    assert client.get("/v1/models/tiny").json()["object"] == "model"
    assert error_of(client.get("/v1/models/large"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_says_what_the_whole_reply_says(client, path):
    whole = ask(client, path, n=2, temperature=1, seed=5, max_tokens=9).json()
    parts = chunks(
        ask(client, path, n=2, temperature=1, seed=5, max_tokens=9, stream=True, stream_options={"include_usage": True})
    )
    for choice in whole["choices"]:
        mine = [c for p in parts for c in p["choices"] if c["index"] == choice["index"]]
        if "chat" in path:
            assert mine[0]["delta"]["role"] == "assistant"
            assert "".join(c["delta"].get("content", "") for c in mine) == choice["message"]["content"]
        else:
            assert "".join(c["text"] for c in mine) == choice["text"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]] == ["length"]
    assert parts[-1]["choices"] == [] and parts[-1]["usage"]["completion_tokens"] == 18
    assert whole["usage"]["total_tokens"] == whole["usage"]["prompt_tokens"] + 18
    assert len({p["id"] for p in parts}) == 1


def test_a_conversation_is_reused_and_says_so(client):
    talk = list(TALK)
    for turn in range(4):
        reply = client.post("/v1/chat/completions", json={"messages": talk, "max_tokens": 6, "seed": turn}).json()
        cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert (cached > 0) == (turn > 0)
        talk += [reply["choices"][0]["message"], {"role": "user", "content": "and"}]
    assert reply["quamba_edge"]["prefilled_tokens"] + cached == reply["usage"]["prompt_tokens"]


def test_stop_ends_before_its_text(client):
    whole = ask(client, max_tokens=12).json()["choices"][0]["text"]
    stop = whole[3:5]
    choice = ask(client, max_tokens=12, stop=stop).json()["choices"][0]
    assert choice["text"] == whole[: whole.index(stop)] and choice["finish_reason"] == "stop"
    assert (
        "".join(c["choices"][0]["text"] for c in chunks(ask(client, max_tokens=12, stop=[stop], stream=True)))
        == choice["text"]
    )


def test_logit_bias_decides(client):
    assert ask(client, logit_bias={"5": 900}).json()["choices"][0]["text"] == "aaaa"


def test_echo_gives_the_prompt_s_logprobs(client, bundle):
    model = load(bundle, "reference")
    text = "it is a text. " * 12
    reply = ask(client, prompt=[text, "ab"], echo=True, logprobs=2, max_tokens=1).json()
    ids = model.ids(text)
    found = reply["choices"][0]["logprobs"]
    assert reply["choices"][0]["text"].startswith(text) and len(found["tokens"]) == len(ids) + 1
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    expected = model.engine.score(np.asarray([ids]))[0]
    assert np.abs(np.asarray(found["token_logprobs"][1:-1]) - expected).max() < 1e-4
    assert found["text_offset"] == np.cumsum([0, *map(len, found["tokens"])])[:-1].tolist()
    assert all(max(t.values()) >= v for t, v in zip(found["top_logprobs"][1:], found["token_logprobs"][1:]))
    streamed = chunks(ask(client, prompt=[text, "ab"], echo=True, logprobs=2, max_tokens=1, stream=True))
    mine = [c["choices"][0] for c in streamed if c["choices"][0]["index"] == 0]
    assert sum((c["logprobs"]["token_logprobs"] for c in mine if c["logprobs"]), []) == found["token_logprobs"]
    only = ask(client, prompt=ids, echo=True, logprobs=0, max_tokens=0).json()["choices"][0]
    assert len(only["logprobs"]["tokens"]) == len(ids) and only["finish_reason"] == "length"


def test_chat_logprobs(client):
    content = ask(client, "/v1/chat/completions", logprobs=True, top_logprobs=3).json()["choices"][0]["logprobs"][
        "content"
    ]
    assert len(content) == 4 and all(len(c["top_logprobs"]) == 3 for c in content)
    assert content[0]["logprob"] == content[0]["top_logprobs"][0]["logprob"]  # greedy
    assert bytes(content[0]["bytes"]).decode() == content[0]["token"]


def test_sessions_are_saved_loaded_branched_and_deleted(client):
    first = ask(client, prompt="Once upon", max_tokens=5).json()
    id = first["quamba_edge"]["session"]
    saved = client.post("/v1/sessions/save", json={"session": id, "name": "tale"}).json()
    assert saved["saved"] and saved["tokens"] == 9 + 4
    branch = client.post("/v1/sessions/branch", json={"session": id}).json()["id"]
    assert client.delete(f"/v1/sessions/{id}").json()["deleted"]
    assert client.delete(f"/v1/sessions/{branch}").status_code == 200
    loaded = client.post("/v1/sessions/load", json={"name": "tale"}).json()
    assert loaded["tokens"] == 13
    listed = client.get("/v1/sessions").json()["data"]
    assert {(s["id"], s["saved"]) for s in listed} == {(loaded["id"], False), ("tale", True)}
    text = first["choices"][0]["text"]
    straight = ask(client, prompt="Once upon" + text + " a").json()
    assert straight["usage"]["prompt_tokens_details"]["cached_tokens"] == 13
    again = client.post("/v1/sessions/load", json={"name": "tale"}).json()["id"]
    followed = ask(client, prompt=text[-1] + " a", session=again).json()
    assert followed["choices"][0]["text"] == straight["choices"][0]["text"]
    assert client.delete("/v1/sessions/tale").status_code == 200
    assert "tale" in error_of(client.post("/v1/sessions/load", json={"name": "tale"}), 400)["message"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "s1", "a" * 65, "ä", "a\n", None, 5])
def test_names_cannot_leave_the_folder(client, name):
    error_of(client.post("/v1/sessions/load", json={"name": name}), 400)


def test_session_verbs_that_are_none(client, service):
    error_of(client.post("/v1/sessions/burn", json={}), 404)
    error_of(client.post("/v1/sessions/save", json={"name": "a"}), 400)
    error_of(client.post("/v1/sessions/save", json={"session": "s99", "name": "a"}), 400)
    error_of(client.post("/v1/sessions/load", json={"name": "a", "x": 1}), 400)
    error_of(client.delete("/v1/sessions/s99"), 400)
    error_of(client_of(service).post("/v1/sessions/load", json={"name": "a"}), 403)


RUBBISH = [
    ({"content": b""}, 400),
    ({"content": b"{" * 1000}, 400),
    ({"content": b"[" * 200_000}, 400),
    ({"content": b"\xff"}, 400),
    ({"content": b"9" * 5000}, 400),
    ({"json": []}, 400),
    ({"json": {"prompt": "a", "max_tokens": 10**9}}, 400),
    ({"json": {"prompt": "a", "n": 10**9}}, 400),
    ({"json": {"prompt": {}}}, 400),
    ({"json": {"prompt": "a", "stop": [[]]}}, 400),
    ({"content": b'{"prompt": "\\ud800"}'}, 400),
    ({"json": {"prompt": [10**9]}}, 400),
    ({"json": {"prompt": "a", "model": "other"}}, 404),
]


@pytest.mark.parametrize("sent, status", RUBBISH)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_rubbish_is_refused(client, path, sent, status):
    if "chat" in path and "json" in sent and "prompt" in sent["json"]:
        sent = {"json": {"messages": TALK, **sent["json"]}}
        status = status if "model" in sent["json"] else 400
    error_of(client.post(path, **{"headers": {"content-type": "application/json"}, **sent}), status)


def test_doors(make):
    client = client_of(make(body=1000, waiting=0, sessions=1, prompt=50), any_host=False)
    error_of(client.post("/v1/completions", content=b"prompt=a", headers={"content-type": "text/plain"}), 415)
    error_of(client.post("/v1/completions", json={"prompt": "a" * 2000}), 413)
    parts = (b"[" * 400 for _ in range(5))  # without a content-length
    error_of(client.post("/v1/completions", content=parts, headers={"content-type": "application/json"}), 413)
    assert "at most 50" in error_of(client.post("/v1/completions", json={"prompt": "ab" * 50}), 400)["message"]
    error_of(client.get("/v1/nothing"), 404)
    error_of(client.get("/v1/completions"), 405)
    error_of(client.get("/v1/models", headers={"host": "evil.example"}), 403)
    for host in ("localhost", "127.0.0.1:1", "[::1]:8080", "[::1]"):
        assert client.get("/v1/models", headers={"host": host}).status_code == 200


def test_a_key_is_needed_where_there_is_one(service):
    client = client_of(service, key="söme key", any_host=True)
    assert client.get("/health", headers={"host": "board.local"}).status_code == 200
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "söme key x".encode()}):
        reply = client.get("/v1/models", headers=headers)
        assert error_of(reply, 401)["code"] == "invalid_api_key" and reply.headers["www-authenticate"] == "Bearer"
    right = {"authorization": "Bearer söme key".encode()}
    assert client.get("/v1/models", headers=right).status_code == 200


def test_metrics_count_and_show_what_is_known(service):
    sample = Sample(0, "tegra", power_w=4.5, power_of="VDD_IN", temps_c={"cpu": 51.0})
    client = client_of(service, look=lambda: sample)
    ask(client)
    page = client.get("/metrics").text
    for line in (
        "quamba_generated_tokens_total 4",
        "quamba_time_to_first_token_seconds_count 1",
        "quamba_inter_token_seconds_count 3",
        'quamba_power_watts{of="VDD_IN"} 4.5',
        'quamba_temperature_celsius{zone="cpu"} 51',
        "quamba_sessions 1",
        'quamba_http_requests_total{code="200",route="/v1/completions"} 1',
    ):
        assert line in page.splitlines()
    assert "quamba_memory_available" not in page
    assert "quamba_power" not in client_of(service).get("/metrics").text


def test_a_server_that_stops_says_so(service):
    client = client_of(service)
    service.close()
    reply = client.post("/v1/completions", json={"prompt": "a"})
    assert error_of(reply, 503)["code"] == "stopping" and reply.headers["retry-after"] == "1"
    assert client.get("/health").status_code == 503


def test_what_nobody_foresaw_is_500_without_inner_words(service, monkeypatch):
    def broken(job, service):
        yield [].pop()

    monkeypatch.setattr("quamba_edge.serve.engine.work", broken)
    error = error_of(client_of(service).post("/v1/completions", json={"prompt": "a"}), 500)
    assert "pop" not in error["message"] and service.alive


def test_half_a_character_in_a_message_is_refused(client):
    body = b'{"messages": [{"role": "user", "content": "\\ud800"}]}'
    error_of(client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"}), 400)
