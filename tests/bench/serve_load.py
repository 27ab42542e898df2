"""Eight clients on loopback at once, some leaving in the middle, some sending rubbish: what a server does under it.

python tests/bench/serve_load.py [--bundle NAME.qedge] [--seconds 120] [--clients 8] [--backend auto]

Every client draws from a seeded list: a conversation that goes on, a stream that is left half-way, or rubbish.  Without --bundle a tiny
random model is served.  Resident memory is read after a warm-up of --warmup seconds and at the end, each time when nothing runs.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]

RUBBISH = [
    b"",
    b"{",
    b"[" * 100_000,
    b'{"prompt": 5}',
    b'{"prompt": "a", "max_tokens": 99999999999999999999}',
    b'{"prompt": "a", "n": -1}',
    b'{"prompt": "a", "temperature": "hot"}',
    b'{"prompt": "a", "stop": [[[]]]}',
    b'{"prompt": [999999999]}',
    b'{"prompt": "a", "model": "other"}',
    b"\xff\xfe" * 1000,
    b'{"prompt": "' + b"a" * (5 << 20) + b'"}',
]


class Client(threading.Thread):
    """One client: a conversation of its own, with some bad manners."""

    def __init__(self, number: int, address: tuple[str, int], end: float):
        super().__init__()
        self.number, self.address, self.end = number, address, end
        self.random = random.Random(number)
        self.counts: collections.Counter[str] = collections.Counter()
        self.first: list[float] = []
        self.gaps: list[float] = []
        self.faults: list[str] = []

    def run(self) -> None:
        talk: list[dict[str, str]] = []
        while time.monotonic() < self.end:
            what = self.random.random()
            try:
                if what < 0.15:
                    self.rubbish()
                else:
                    if len(talk) > 10:
                        talk = []
                    talk.append({"role": "user", "content": f"Tell me about number {self.random.randrange(1000)}."})
                    said = self.chat(talk, leave=what < 0.3)
                    talk = [*talk, {"role": "assistant", "content": said}] if said else talk[:-1]
            except Exception as e:  # noqa: B902  whatever went wrong is what this script is there to count
                self.faults.append(f"{type(e).__name__}: {e}")

    def open(self, path: str, body: bytes) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(*self.address, timeout=120)
        connection.request("POST", path, body, {"content-type": "application/json"})
        return connection, connection.getresponse()

    def rubbish(self) -> None:
        body = self.random.choice(RUBBISH)
        try:
            connection, reply = self.open("/v1/completions", body)
        except (BrokenPipeError, ConnectionResetError):
            assert len(body) > 4 << 20, (
                "a small body was not taken"
            )  # a long one may be refused before it has been sent
            self.counts["rubbish refused"] += 1
            return
        answer = json.loads(reply.read())
        connection.close()
        assert reply.status in (400, 404, 413) and "error" in answer, f"rubbish got {reply.status}"
        self.counts["rubbish refused"] += 1

    def chat(self, talk: list[dict[str, str]], leave: bool) -> str:
        asked = {"messages": talk, "stream": True, "max_tokens": 64, "temperature": 0.8, "ignore_eos": True}
        begun = time.monotonic()
        connection, reply = self.open("/v1/chat/completions", json.dumps(asked).encode())
        assert reply.status == 200, f"{reply.status}: {reply.read()[:200]!r}"
        said, times, ended = "", [], False
        for raw in reply:
            line = raw.decode().strip()
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                part = json.loads(line[6:])
                assert "error" not in part, part
                text = part["choices"][0]["delta"].get("content", "")
                if text:
                    times.append(time.monotonic())
                    said += text
            if leave and len(times) > 5:
                connection.close()
                self.counts["left"] += 1
                return ""
        connection.close()
        assert ended and said, "an answer that did not end"
        self.counts["answered"] += 1
        self.first.append(times[0] - begun)
        self.gaps += [b - a for a, b in zip(times, times[1:])]
        return said


def percentile(values: list[float], share: float) -> float:
    return 1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))]


def get(address: tuple[str, int], path: str) -> str:
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.request("GET", path)
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def resident(address: tuple[str, int]) -> int:
    """Resident bytes of the server, when nothing runs any more."""
    while json.loads(get(address, "/health"))["running"]:
        time.sleep(0.1)
    return held(address)


def held(address: tuple[str, int]) -> int:
    """Resident bytes of the server now."""
    found = re.search(r"^process_resident_memory_bytes (\d+)", get(address, "/metrics"), re.MULTILINE)
    assert found, "no memory in /metrics"
    return int(found[1])


def crowd(count: int, address: tuple[str, int], seconds: float) -> tuple[list[Client], list[int]]:
    """Let them come for so long; they, and the server's memory in eight moments of that time."""
    begun = time.monotonic()
    clients = [Client(i, address, begun + seconds) for i in range(count)]
    for client in clients:
        client.start()
    during = []
    for moment in range(1, 9):
        time.sleep(max(0.0, begun + seconds * moment / 8 - time.monotonic()))
        during.append(held(address))
    for client in clients:
        client.join()
    return clients, during


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--warmup", type=float, default=15)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--backend", default="auto")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle
        if bundle is None:
            sys.path.insert(0, str(REPO))
            from tests.apps import tiny_bundle

            bundle = tiny_bundle.write(Path(folder) / "tiny.qedge")
        command = [sys.executable, "-m", "quamba_edge", "serve", str(bundle), "--port", "0", "--backend", args.backend]
        env = {**os.environ, "PYTHONPATH": str(REPO)}
        server = subprocess.Popen(
            [*command, "--json"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert server.stdout and server.stderr
        ready = server.stderr.readline()
        print(ready.strip())
        found = re.search(r"on http://([0-9.]+):(\d+)/v1  \((\w+)", ready)
        assert found, server.stderr.read()
        address = found[1], int(found[2])
        crowd(args.clients, address, args.warmup)
        before = resident(address)
        clients, during = crowd(args.clients, address, args.seconds)
        after = resident(address)
        server.terminate()
        out, err = server.communicate(timeout=60)
    first = [t for c in clients for t in c.first]
    gaps = [t for c in clients for t in c.gaps]
    faults = [f for c in clients for f in c.faults]
    counts = sum((c.counts for c in clients), collections.Counter())
    for fault in faults[:10]:
        print("fault:", fault)
    result = {
        "bundle": bundle.name,
        "backend": found[3],
        "clients": args.clients,
        "seconds": args.seconds,
        **{k.replace(" ", "_"): counts[k] for k in ("answered", "left", "rubbish refused")},
        "answered_by_client": [c.counts["answered"] for c in clients],
        "faults": len(faults),
        "tokens_per_s": (len(gaps) + len(first)) / args.seconds,
        "ttft_ms": {"p50": percentile(first, 0.5), "p95": percentile(first, 0.95)},
        "tpot_ms": {"p50": percentile(gaps, 0.5), "p95": percentile(gaps, 0.95), "mean": 1000 * sum(gaps) / len(gaps)},
        "rss_bytes": {"before": before, "during": during, "after": after},
        "server_exit": server.returncode,
        "server_errors": len(err.splitlines()),
    }
    print(json.dumps(result))
    return 1 if faults or server.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
