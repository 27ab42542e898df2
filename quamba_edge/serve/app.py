"""The HTTP side: routes, who may come in, how much they may say, and streams that end when their reader goes.

Every error is OpenAI's JSON object.  `build` gives an ASGI application; server.py runs it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from quamba_edge import __version__
from quamba_edge.serve import openai, replies
from quamba_edge.serve.engine import Service
from quamba_edge.serve.fields import BadRequest, parse_json
from quamba_edge.serve.gauges import gauges
from quamba_edge.serve.jobs import Cancelled, Done, Event, Failed, Job
from quamba_edge.serve.openai import Ask, Served
from quamba_edge.serve.pool import Prompt
from quamba_edge.serve.sessions import Sessions

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

BODY_SECONDS = 30.0  # within which a body must have come
COMFORT_SECONDS = 10.0  # without a token, after which a stream says that it is still there
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
log = logging.getLogger("quamba_edge.serve")

Handler = Callable[["Request"], Awaitable["Response"]]


def build(
    service: Service,
    name: str,
    *,
    key: str | None = None,
    any_host: bool = False,
    sessions: Sessions | None = None,
    look: Callable[[], Any] | None = None,
) -> Starlette:
    """The application.

    name: of the model, in /v1/models.  key: what clients must show, as "Authorization: Bearer KEY" (not for /health).
    any_host: False refuses requests that were addressed to another name than this machine's own (a web page could send its
    readers' browsers here).  look: a telemetry.Sample, or None, for /metrics.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    faces = Routes(service, name, key, any_host, sessions or Sessions(service, None), look)
    table: tuple[tuple[str, str, Handler], ...] = (
        ("GET", "/health", faces.health),
        ("GET", "/metrics", faces.metrics),
        ("GET", "/v1/models", faces.models),
        ("GET", "/v1/models/{name:path}", faces.model),
        ("POST", "/v1/chat/completions", faces.chat),
        ("POST", "/v1/completions", faces.completions),
        ("GET", "/v1/sessions", faces.list_sessions),
        ("POST", "/v1/sessions/{verb}", faces.change_sessions),
        ("DELETE", "/v1/sessions/{id}", faces.delete_session),
    )
    routes = [Route(path, faces.guarded(path, handler), methods=[method]) for method, path, handler in table]

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = "there is no such path" if error.status_code == 404 else f"{request.method} is not what this path takes"
        return faces.refused(BadRequest(f"{what}: {request.url.path[:100]}", status=error.status_code), "unknown")

    return Starlette(routes=routes, exception_handlers={404: unknown, 405: unknown})


class Routes:
    """The handlers, and what they share."""

    def __init__(
        self,
        service: Service,
        name: str,
        key: str | None,
        any_host: bool,
        sessions: Sessions,
        look: Callable[[], Any] | None,
    ) -> None:
        self.service, self.name, self._key, self._any_host = service, name, key, any_host
        self.sessions, self._look = sessions, look
        self._begun = time.time()
        self._served = Served(name, service.model.engine.vocab_size, service.limits)

    def guarded(self, route: str, handler: Handler) -> Handler:
        """The handler behind the door: who asks is checked before anything is read, and every error has one shape."""

        async def endpoint(request: Request) -> Response:
            try:
                self._admit(request, route)
                response = await handler(request)
            except Exception as e:
                return self.refused(e, route)
            self.service.metrics.requests.add(route=route, code=str(response.status_code))
            return response

        return endpoint

    def refused(self, error: Exception, route: str) -> Response:
        status, body = replies.failure(error)
        if status == 500:
            log.error("%s failed", route, exc_info=error)
        self.service.metrics.requests.add(route=route, code=str(status))
        headers = {"retry-after": "1"} if status == 503 else {"www-authenticate": "Bearer"} if status == 401 else {}
        return _json(body, status, headers)

    def _admit(self, request: Request, route: str) -> None:
        if not self._any_host:
            host = request.headers.get("host", "").lower()
            name = host if host.endswith("]") else host.rsplit(":", 1)[0]
            if name not in (*LOOPBACK, "testserver"):
                raise BadRequest(f"this server answers to localhost, not to {host[:80]!r}", status=403)
        if self._key is not None and route != "/health":
            shown = request.headers.get("authorization", "").removeprefix("Bearer ")
            # Compared in constant time: how long a wrong key takes says nothing about the right one.
            if not hmac.compare_digest(shown.encode("latin-1"), self._key.encode()):
                raise BadRequest(
                    "wrong or missing key: send the header Authorization: Bearer KEY", None, "invalid_api_key", 401
                )

    # What clients ask for

    async def health(self, request: Request) -> Response:
        running, waiting = self.service.queue()
        alive = self.service.alive
        state: dict[str, Any] = {"status": "ok" if alive else "stopping", "model": self.name, "version": __version__}
        state |= {"backend": self.service.model.engine.backend.name, "running": running, "waiting": waiting}
        return _json({**state, "uptime_s": round(time.time() - self._begun, 1)}, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        from starlette.responses import Response

        page = self.service.metrics.text(gauges(self.service, self._look))
        return Response(page, media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        return _json(replies.models(self.name, int(self._begun)))

    async def model(self, request: Request) -> Response:
        asked = request.path_params["name"]
        if asked != self.name:
            text = f"there is no model {asked[:80]!r} here: this server has {self.name!r}"
            raise BadRequest(text, "model", "model_not_found", 404)
        return _json(replies.models(self.name, int(self._begun))["data"][0])

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, openai.chat(await self._object(request), self._served))

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, openai.completion(await self._object(request), self._served))

    async def list_sessions(self, request: Request) -> Response:
        return _json({"object": "list", "data": await self.sessions.list()})

    async def change_sessions(self, request: Request) -> Response:
        raw = await self._object(request)
        return _json(await self.sessions.change(request.path_params["verb"], raw))

    async def delete_session(self, request: Request) -> Response:
        return _json(await self.sessions.delete(request.path_params["id"]))

    # How

    async def _object(self, request: Request) -> dict[str, Any]:
        """The JSON object of a body that is neither too long nor too slow."""
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json":
            # Also what keeps web pages out: a browser asks first before it sends JSON to another site.
            raise BadRequest(f"the body is {kind or 'of no kind'}: send content-type: application/json", status=415)
        most = self.service.limits.body
        too_long = BadRequest(
            f"the body is longer than {most} bytes, the most that is read", code="body_too_long", status=413
        )
        declared = request.headers.get("content-length", "")
        if len(declared) > 18 or (declared.isdecimal() and int(declared) > most):
            raise too_long

        async def read() -> bytes:
            body = bytearray()
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_long
            return bytes(body)

        try:
            body = await asyncio.wait_for(read(), BODY_SECONDS)
        except (TimeoutError, asyncio.TimeoutError):
            raise BadRequest(f"the body did not come within {BODY_SECONDS:g} s", status=408) from None
        return await asyncio.to_thread(parse_json, body)

    async def _answer(self, request: Request, ask: Ask) -> Response:
        from starlette.responses import StreamingResponse

        prompts = await asyncio.to_thread(self._prompts, ask)
        client = ask.client or (request.client.host if request.client else "")
        job = Job(
            prompts, client, ask.sampling, ask.max_tokens, ask.stop, ask.n, ask.logprobs,
            prompt_logprobs=ask.echo and ask.logprobs is not None, ignore_end=ask.ignore_end, session=ask.session,
        )  # fmt: skip
        events = self._events(job)
        reply = replies.Reply(ask, self.name, self.service.model.tokenizer)
        if ask.stream:
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            return StreamingResponse(self._stream(job, events, reply), media_type="text/event-stream", headers=headers)
        gone = asyncio.ensure_future(_gone(request))
        try:
            while not isinstance(event := await _first(events.get(), gone), Done):
                if isinstance(event, Failed):
                    raise event.error
                for _ in reply.push(event):
                    pass
        finally:
            gone.cancel()
            job.cancel()
        return _json(reply.whole(job.usage))

    def _prompts(self, ask: Ask) -> list[Prompt]:
        model, out = self.service.model, []
        for given in [model.render(ask.messages)] if ask.chat else ask.prompts:
            ids = [] if ask.session is not None and given == "" else model.ids(given)
            if len(ids) > self.service.limits.prompt:
                raise BadRequest(f"the prompt has {len(ids)} tokens: at most {self.service.limits.prompt}", "prompt")
            out.append(Prompt(ids, given if isinstance(given, str) and given else None))
        return out

    def _events(self, job: Job) -> asyncio.Queue[Event]:
        """Submit it; its events will be in the queue."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def emit(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        job.emit = emit
        self.service.submit(job)
        return events

    async def _stream(self, job: Job, events: asyncio.Queue[Event], reply: replies.Reply) -> AsyncIterator[bytes]:
        """Server-sent events.  When the reader goes, this is cancelled where it waits, and the job with it."""
        try:
            while True:
                try:
                    event = await asyncio.wait_for(events.get(), COMFORT_SECONDS)
                except (TimeoutError, asyncio.TimeoutError):
                    yield b": still here\n\n"
                    continue
                if isinstance(event, Failed):
                    status, body = replies.failure(event.error)
                    if status == 500:
                        log.error("a stream failed", exc_info=event.error)
                    yield replies.sse(body)
                    break
                if isinstance(event, Done):
                    if (numbers := reply.last(job.usage)) is not None:
                        yield replies.sse(numbers)
                    break
                for chunk in reply.push(event):
                    yield replies.sse(chunk)
            yield b"data: [DONE]\n\n"
        finally:
            job.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _first(wanted: Any, gone: asyncio.Future[None]) -> Event:
    """What is awaited; Cancelled when the client leaves before."""
    task = asyncio.ensure_future(wanted)
    done, _ = await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    if task in done:
        return task.result()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    raise Cancelled("the client has gone")


def _json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    from starlette.responses import Response

    return Response(replies.dump(body), status, headers, "application/json")
