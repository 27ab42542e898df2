"""/v1/sessions: the kept states by name, and files of them in one folder.  list, save, load, branch, delete.

A session in memory has an id (s1, s2, ...), a saved one the name its client gave it; names are plain words, so that none can leave
the folder.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from quamba_edge.errors import BadUsage
from quamba_edge.runtime import saved
from quamba_edge.serve.engine import Service
from quamba_edge.serve.fields import BadRequest, Fields
from quamba_edge.serve.pool import Kept

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
IN_MEMORY = re.compile(r"s[0-9]{1,18}")

T = TypeVar("T")


class Sessions:
    """What the routes do; everything that touches a session happens in the engine's thread."""

    def __init__(self, service: Service, folder: Path | None) -> None:
        """folder: where saved sessions lie; None: saving is refused."""
        self._service, self._folder = service, folder

    async def list(self) -> list[dict[str, Any]]:
        """Those in memory, then the saved ones, the latest first."""

        def found() -> list[dict[str, Any]]:
            kept = sorted(self._service.pool.list(), key=lambda k: -k.used)
            files = saved.listing(self._folder) if self._folder is not None and self._folder.is_dir() else []
            return [*map(_in_memory, kept), *map(_on_disk, files)]

        return await self._there(found)

    async def change(self, verb: str, raw: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/sessions/VERB: save {session, name}, load {name}, branch {session}."""
        fields = Fields(raw)
        if verb == "save":
            id, path = self._id(fields), self._path(fields.text("name"))
            fields.rest()
            return await self._there(lambda: _on_disk(saved.save(self._service.pool.find(id).session, path)))
        if verb == "load":
            path = self._path(fields.text("name"))
            fields.rest()
            return await self._there(lambda: self._load(path))
        if verb == "branch":
            id = self._id(fields)
            fields.rest()
            return await self._there(lambda: self._add(lambda: self._service.pool.find(id).session.branch()))
        raise BadRequest(f"there is no POST /v1/sessions/{verb[:40]}: expected save, load or branch", status=404)

    async def delete(self, id: str) -> dict[str, Any]:
        """Forget a session in memory, or delete a saved one."""
        if IN_MEMORY.fullmatch(id):
            await self._there(lambda: self._service.pool.drop(id))
        else:
            path = self._path(id)
            await self._there(lambda: saved.remove(path))
        return {"id": id, "object": "session", "deleted": True}

    def _load(self, path: Path) -> dict[str, Any]:
        return self._add(lambda: saved.load(path, self._service.model.engine, self._service.keep))

    def _add(self, make: Callable[[], Any]) -> dict[str, Any]:
        pool = self._service.pool
        kept = pool.add(make())
        pool.give(kept)
        return _in_memory(kept)

    def _id(self, fields: Fields) -> str:
        id = fields.text("session")
        if id is None:
            raise BadRequest("session is missing: expected the id of a session in memory, such as s1", "session")
        return id

    def _path(self, name: str | None) -> Path:
        if self._folder is None:
            raise BadRequest("this server saves no sessions: start it with --sessions DIR", status=403)
        if name is None or not NAME.fullmatch(name) or IN_MEMORY.fullmatch(name):
            text = "a name of 1 to 64 letters, digits, - and _, which does not look like the id of a session in memory"
            raise BadRequest(f"name is {(name or 'absent')[:40]!r}: expected {text}", "name", "invalid_value")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as e:
            raise BadUsage(f"{self._folder}: {e.strerror}; start the server with another --sessions DIR") from None
        return self._folder / (name + saved.SUFFIX)

    async def _there(self, function: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._service.call(function))


def _in_memory(kept: Kept) -> dict[str, Any]:
    return {
        "id": kept.id,
        "object": "session",
        "saved": False,
        "tokens": kept.session.count,
        "busy": kept.busy,
        "used": int(kept.used),
    }


def _on_disk(found: saved.Saved) -> dict[str, Any]:
    return {
        "id": found.path.stem,
        "object": "session",
        "saved": True,
        "tokens": found.tokens,
        "bytes": found.nbytes,
        "used": int(found.saved),
    }
