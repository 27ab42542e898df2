"""A JSON object from outside, read field by field: every value of the wrong type, out of its range, or of no known name is refused
in words that name it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from quamba_edge.errors import BadUsage


class BadRequest(BadUsage):
    """A request that cannot be served as it is; the fields are those of OpenAI's error object."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body; no NaN, no infinity, nothing nested beyond what Python can read."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as e:
        raise BadRequest(f"the body is no UTF-8 text at byte {e.start}: expected a JSON object") from None
    except RecursionError:
        raise BadRequest("the body's JSON is nested too deep to read") from None
    except ValueError as e:
        raise BadRequest(
            f'the body is no JSON ({_short(str(e), 120)}): expected an object such as {{"prompt": ...}}'
        ) from None
    if not isinstance(value, dict):
        raise BadRequest(f"the body is {_kind(value)}: expected a JSON object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


class Fields:
    """Takes what is asked for; `rest` refuses what nobody asked for.  A field that is null counts as absent."""

    def __init__(self, raw: dict[str, Any], where: str = "") -> None:
        self._raw = {k: v for k, v in raw.items() if v is not None}
        self._where = where

    def __contains__(self, name: str) -> bool:
        return name in self._raw

    def any(self, name: str) -> Any:
        return self._raw.pop(name, None)

    def refuse(self, name: str, value: Any, expected: str) -> NoReturn:
        at = self._where + name
        raise BadRequest(f"{at} is {_short(_shown(value))}: expected {expected}", param=at, code="invalid_value")

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self._raw.pop(name, default)
        if value is not None and not isinstance(value, str):
            self.refuse(name, value, "a text")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._raw.pop(name, default)
        if not isinstance(value, bool):
            self.refuse(name, value, "true or false")
        return value

    def whole(self, name: str, low: int, high: int, default: Any = None) -> Any:
        value = self._raw.pop(name, default)
        if value is default:
            return default
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)  # some clients write 16.0
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.refuse(name, value, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float) -> float:
        value = self._raw.pop(name, default)
        if not is_number(value) or not low <= value <= high:
            self.refuse(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def texts(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """One text, or a list of them; none may be empty."""
        value = self._raw.pop(name, None)
        found = () if value is None else (value,) if isinstance(value, str) else value
        fits = isinstance(found, (list, tuple)) and len(found) <= most
        if not fits or not all(isinstance(t, str) and 0 < len(t) <= longest for t in found):
            self.refuse(name, value, f"a text or up to {most} of them, each of 1 to {longest} characters")
        return tuple(found)

    def only(self, name: str, *neutral: Any) -> None:
        """A field of OpenAI's that means something this server cannot do, unless it has a value that asks for nothing."""
        value = self._raw.pop(name, None)
        if value is not None and not any(value == n and type(value) is type(n) for n in neutral):
            at = self._where + name
            raise BadRequest(f"{at} is not supported: leave it out", param=at, code="unsupported_parameter")

    def ignore(self, *names: str) -> None:
        """Fields that change nothing in an answer."""
        for name in names:
            self._raw.pop(name, None)

    def rest(self) -> None:
        if self._raw:
            name = _short(str(next(iter(self._raw))))
            raise BadRequest(
                f"unknown field {self._where}{name}: is it misspelt? docs/serve.md lists them all",
                param=self._where + name,
                code="unknown_parameter",
            )


def is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _kind(value: Any) -> str:
    names: Sequence[tuple[Any, str]] = ((dict, "an object"), (list, "a list"), (str, "a text"), (bool, "true or false"))
    return next((name for kind, name in names if isinstance(value, kind)), "a number or null")


def _shown(value: Any) -> str:
    return (
        _kind(value)
        if isinstance(value, (dict, list)) or (isinstance(value, int) and abs(value) > 10**20)
        else repr(value)
    )


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
