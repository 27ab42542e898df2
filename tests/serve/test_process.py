"""The server as a process: the official client, clients that leave, keys, signals."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import openai
import pytest

from quamba_edge.runtime import saved
from quamba_edge.runtime.model import load
from quamba_edge.serve.server import bind, is_loopback, read_key

TALK = [{"role": "user", "content": "hi"}]
ENDLESS = {"ignore_eos": True}


@pytest.fixture(scope="module")
def start(bundle, repo, tmp_path_factory):
    """start(*options) -> (process, url); all are stopped at the end."""
    running = []

    def begin(*options, **environment):
        env = {**os.environ, "PYTHONPATH": str(repo), "OMP_NUM_THREADS": "1", **environment}
        command = [sys.executable, "-m", "quamba_edge", "serve", str(bundle), "--port", "0", "--backend", "reference"]
        process = subprocess.Popen(
            [*command, "--json", *map(str, options)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        line = process.stderr.readline()
        found = re.search(r"on (http://\S+)/v1 ", line)
        assert found, line + process.stderr.read()
        return process, found[1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def url(start):
    return start("--max-tokens", 5000)[1]


@pytest.fixture
def client(url):
    return openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60)


def test_chat_and_completions(client, bundle):
    assert [m.id for m in client.models.list()] == ["tiny"]
    chat = client.chat.completions.create(model="tiny", messages=TALK, max_tokens=8, temperature=0)
    whole = client.completions.create(model="tiny", prompt="user: hi\nassistant:", max_tokens=8, temperature=0)
    assert chat.choices[0].message.content == whole.choices[0].text
    model = load(bundle, "reference")
    assert whole.usage.prompt_tokens == len(model.ids("user: hi\nassistant:")) and whole.usage.completion_tokens <= 8
    assert whole.usage.prompt_tokens_details.cached_tokens > 0
    assert chat.choices[0].finish_reason in ("stop", "length")


def test_streams(client):
    asked = dict(model="tiny", messages=TALK, max_tokens=9, seed=3, temperature=1, extra_body={**ENDLESS, "top_k": 5})
    whole = client.chat.completions.create(**asked).choices[0].message.content
    parts = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == whole
    assert parts[-1].usage.completion_tokens == 9
    text = client.completions.create(model="tiny", prompt="hi", max_tokens=9, stream=True, extra_body=ENDLESS)
    assert len("".join(p.choices[0].text for p in text)) > 0


def test_stop_and_logprobs(client):
    asked = dict(model="tiny", prompt="hi", temperature=0, max_tokens=20, extra_body=ENDLESS)
    whole = client.completions.create(**asked).choices[0].text
    stopped = client.completions.create(**asked, stop=whole[4:6]).choices[0]
    assert stopped.text == whole[: whole.index(whole[4:6])] and stopped.finish_reason == "stop"
    scored = client.completions.create(**asked, logprobs=2, echo=True).choices[0].logprobs
    assert len(scored.tokens) == 22 and scored.token_logprobs[0] is None and len(scored.top_logprobs[1]) >= 2
    chat = client.chat.completions.create(model="tiny", messages=TALK, max_tokens=3, logprobs=True, top_logprobs=2)
    assert all(len(c.top_logprobs) == 2 and c.logprob <= 0 for c in chat.choices[0].logprobs.content)


def test_errors(client):
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=TALK, max_tokens=10**8)
    assert refused.value.param == "max_tokens" and refused.value.code == "invalid_value"
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        client.chat.completions.create(
            model="tiny", messages=TALK, tools=[{"type": "function", "function": {"name": "f"}}]
        )


def health(url):
    import urllib.request

    with urllib.request.urlopen(url + "/health", timeout=30) as reply:
        return json.loads(reply.read())


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_answer(url, stream):
    body = json.dumps({"prompt": "hi", "max_tokens": 5000, "stream": stream, **ENDLESS}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode() + body)
        if stream:
            assert b"200" in connection.recv(2000)
        until(lambda: health(url)["running"] == 1)
    until(lambda: health(url)["running"] == 0, 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_saved_sessions_are_intact(start, bundle, tmp_path, number):
    process, url = start("--sessions", tmp_path, "--max-tokens", 100000)
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60)
    first = client.completions.create(model="tiny", prompt="Once", max_tokens=5, extra_body=ENDLESS)
    id = first.quamba_edge["session"]
    client.post("/sessions/save", body={"session": id, "name": "tale"}, cast_to=object)
    failures = []

    def endless(stream):
        try:
            asked = client.completions.create(
                model="tiny", prompt="hi", max_tokens=100000, stream=stream, extra_body=ENDLESS
            )
            for _ in asked if stream else ():
                pass
        except openai.APIError as e:
            failures.append(e)

    threads = [threading.Thread(target=endless, args=(s,)) for s in (True, False, True)]
    for thread in threads:
        thread.start()
    until(lambda: health(url)["running"] == 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in err, err
    for thread in threads:
        thread.join(30)
    assert len(failures) == 3 and all("stopping" in str(e) for e in failures)
    assert json.loads(out.splitlines()[-1])["tokens"] > 5
    assert saved.load(tmp_path / "tale.qsession", load(bundle, "reference").engine).count == 8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tale.qsession"]


def test_other_hosts_need_a_key(start, bundle, tmp_path, capsys, monkeypatch):
    from quamba_edge import cli

    monkeypatch.delenv("QUAMBA_EDGE_API_KEY", raising=False)
    assert cli.main(["serve", str(bundle), "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "--api-key-file" in capsys.readouterr().err
    (tmp_path / "key").write_text("secret\n")
    _, url = start("--host", "0.0.0.0", "--api-key-file", tmp_path / "key")
    url = url.replace("0.0.0.0", "127.0.0.1")
    right = openai.OpenAI(base_url=url + "/v1", api_key="secret", max_retries=0)
    assert right.models.list().data[0].id == "tiny"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url + "/v1", api_key="guess", max_retries=0).models.list()


def test_settings_that_cannot_work_are_2(bundle, capsys, tmp_path):
    from quamba_edge import cli

    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["serve", str(bundle), "--port", str(port)]) == 2
        assert "another --port" in capsys.readouterr().err
    (tmp_path / "empty").write_text("\n")
    for options in (
        ["--port", "99999"], ["--host", "no.such.host.invalid"], ["--max-sessions", "0"], ["--max-tokens", "0"],
        ["--timeout", "0"], ["--max-queue", "-1"], ["--api-key-file", str(tmp_path / "empty")], ["--backend", "abacus"],
    ):  # fmt: skip
        assert cli.main(["serve", str(bundle), "--port", "0", *options]) == 2, options
    assert cli.main(["serve", str(tmp_path / "none.qedge"), "--port", "0"]) == 3


def test_keys_and_hosts(tmp_path, monkeypatch):
    (tmp_path / "key").write_text(" a key \nmore\n")
    monkeypatch.setenv("QUAMBA_EDGE_API_KEY", "other")
    assert read_key(tmp_path / "key") == "a key" and read_key(None) == "other"
    monkeypatch.delenv("QUAMBA_EDGE_API_KEY")
    assert read_key(None) is None
    assert [is_loopback(h) for h in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "board.local", "")] == [
        True, True, True, True, False, False, False, False,
    ]  # fmt: skip
