"""`quamba-edge serve`: the application on a socket, until somebody says stop.

SIGTERM and SIGINT end it the same way: no new requests, running answers are cut off with an error that says so, connections close,
and the exit is clean.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quamba_edge.apps.loading import bar
from quamba_edge.errors import BadUsage, Missing
from quamba_edge.runtime.model import load
from quamba_edge.serve import app
from quamba_edge.serve.engine import Service
from quamba_edge.serve.jobs import Limits
from quamba_edge.serve.sessions import Sessions

KEY_VARIABLE = "QUAMBA_EDGE_API_KEY"
LINGER_SECONDS = 5  # for connections to close after the answers have ended


@dataclass(frozen=True)
class ServeResult:
    """What a server did before it was stopped."""

    model: str
    url: str
    requests: int
    prompt_tokens: int
    reused_tokens: int
    tokens: int


def serve(
    bundle: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    key_file: Path | None = None,
    sessions: Path | None = None,
    limits: Limits | None = None,
    backend: str = "auto",
    state_dtype: str = "f16",
    threads: int | None = None,
    on_ready: Callable[[str], None] = lambda line: None,
) -> ServeResult:
    """Serve a bundle until SIGTERM or SIGINT; call it from the main thread.

    port 0 takes a free one; `on_ready` gets a line that says where.  A key is needed for any host but this machine's own.
    Errors: BadUsage for the settings, BadBundle and its kinds for the file, Missing without starlette and uvicorn.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as e:
        raise Missing(f"serving needs {e.name}, which is not here: pip install 'quamba-edge[serve]'") from None
    key, local = read_key(key_file), is_loopback(host)
    if key is None and not local:
        raise BadUsage(
            f"--host {host} lets other machines in: give --api-key-file FILE or {KEY_VARIABLE}, so that not all of them may"
        )
    allowed = limits or Limits()
    for flag, value, least in (("--max-sessions", allowed.sessions, 1), ("--max-queue", allowed.waiting, 0)):
        if value < least:
            raise BadUsage(f"{flag} is {value}: expected {least} or more")
    if allowed.tokens < 1 or not allowed.seconds > 0:
        raise BadUsage("--max-tokens is 1 or more, and --timeout more than 0")
    listening = bind(host, port)
    service = Service(lambda: load(bundle, backend, state_dtype=state_dtype, threads=threads, progress=bar()), allowed)
    name = bundle.stem
    with watching() as look:
        built = app.build(service, name, key=key, any_host=not local, sessions=Sessions(service, sessions), look=look)
        url = f"http://{_shown(host)}:{listening.getsockname()[1]}"

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                """Ours instead of uvicorn's, which dies of the signal once it has shut down."""

                def stop() -> None:
                    self.should_exit = True
                    service.close(timeout=0)

                loop = asyncio.get_running_loop()
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.add_signal_handler(number, stop)
                yield

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                service.when_lost = lambda: setattr(self, "should_exit", True)
                engine = service.model.engine
                on_ready(
                    f"{name} on {url}/v1  ({engine.backend.name} backend, {allowed.sessions} sessions; stop with Ctrl-C)"
                )

        config = uvicorn.Config(
            built,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=LINGER_SECONDS,
            limit_concurrency=allowed.waiting + allowed.sessions + 256,
        )
        try:
            Server(config).run(sockets=[listening])
        finally:
            service.close()
    if service.lost:
        raise service.lost  # a failure, so that what watches over the process starts another
    counted = service.metrics
    return ServeResult(
        model=name,
        url=url,
        requests=int(counted.requests.total),
        prompt_tokens=int(counted.prompt_tokens.total),
        reused_tokens=int(counted.reused_tokens.total),
        tokens=int(counted.generated_tokens.total),
    )


def summary(result: ServeResult) -> str:
    """One line of numbers."""
    return (
        f"stopped after {result.requests} requests: {result.prompt_tokens} prompt tokens, {result.reused_tokens} of them reused, "
        f"{result.tokens} generated"
    )


def read_key(file: Path | None) -> str | None:
    """The key in the file's first line, else in the environment, else None."""
    if file is None:
        found = os.environ.get(KEY_VARIABLE)
        return found.strip() or None if found else None
    lines = file.read_text(encoding="utf-8").split("\n")
    if not lines[0].strip():
        raise BadUsage(f"{file}: its first line is empty; expected the key that clients must send")
    return lines[0].strip()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, before the model is opened: a taken port is said at once."""
    if not 0 <= port <= 65535:
        raise BadUsage(f"--port is {port}: expected 0 (any free one) to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        return listening
    except (OSError, UnicodeError) as e:
        why = getattr(e, "strerror", None) or str(e)
        raise BadUsage(f"cannot listen on {host}, port {port}: {why}; choose another --port or --host") from None


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def watching() -> Iterator[Callable[[], Any] | None]:
    """The machine's sensors, looked at once a second while the server runs."""
    from quamba_edge import telemetry

    with telemetry.Recorder(telemetry.best(), hz=1, keep_s=10) as recorder:
        yield lambda: recorder.latest
