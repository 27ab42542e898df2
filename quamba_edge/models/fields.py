"""Taking values out of a foreign config.json, strictly: a key with a value that we would misread is an error, not a default."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Any

from quamba_edge.errors import BadCheckpoint


class Fields:
    """The keys of one JSON object.  Every method raises BadCheckpoint naming the key, what was found and what was expected."""

    def __init__(self, raw: Any, where: str = "config.json"):
        if not isinstance(raw, Mapping):
            raise BadCheckpoint(f"{where}: found {_shown(raw)}, expected an object with the model's dimensions")
        self.raw, self.where = raw, where

    def bad(self, key: str, expected: str) -> BadCheckpoint:
        found = f"is {_shown(self.raw[key])}" if key in self.raw else "is missing"
        return BadCheckpoint(f"{self.where}: {key} {found}, expected {expected}")

    def count(self, key: str, default: int | None = None) -> int:
        """A positive whole number; null and absence are the default, if there is one."""
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise self.bad(key, "a positive whole number")
        return value

    def number(self, key: str, default: float) -> float:
        """A positive finite number."""
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.bad(key, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.bad(key, "true or false")
        return value

    def width(self, d_model: int) -> int:
        """d_inner as `expand` (default 2) gives it."""
        wide = self.number("expand", 2) * d_model
        if wide != int(wide):
            raise self.bad("expand", f"a factor that makes a whole number of d_model {d_model}")
        return int(wide)

    def limits(self, key: str) -> tuple[float, float]:
        """A pair 0 <= low < high; high may be infinite (as null, Infinity, "inf", or transformers' {"__float__": "Infinity"})."""
        pair = self.raw.get(key)
        pair = (0.0, math.inf) if pair is None else pair
        try:
            low, high = (_float(v) for v in pair)
        except (TypeError, ValueError):
            raise self.bad(key, "two numbers, such as [0.0, null]") from None
        if not 0 <= low < high:
            raise self.bad(key, "two numbers 0 <= low < high")
        return low, high

    def only(self, key: str, *allowed: Any, why: str) -> None:
        """The value must be one of `allowed`; absence is fine."""
        if key in self.raw and not any(type(self.raw[key]) is type(a) and self.raw[key] == a for a in allowed):
            raise self.bad(key, f"{' or '.join(_shown(a) for a in allowed)}: {why}")

    def nested(self, key: str) -> Fields:
        """The object under `key`; absence and null are an empty one."""
        value = self.raw.get(key)
        return Fields({} if value is None else value, f"{self.where}: {key}")

    def known(self, names: str) -> None:
        """Refuse keys outside `names`: an option that changes the model must not pass unread."""
        unknown = sorted(set(self.raw) - set(names.split()))
        if unknown:
            raise BadCheckpoint(
                f"{self.where}: {', '.join(unknown)} is not an option this version knows; is it a newer model?"
            )


def padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def from_manifest(raw: Any, names: set[str], optional: Set[str] = frozenset()) -> dict[str, Any]:
    """The fields of our own JSON, all of them but `optional` ones and no others; BadCheckpoint otherwise."""
    fields = Fields(raw, "model dimensions")
    missing = names - set(fields.raw) - optional
    if missing or set(fields.raw) - names:
        found = ", ".join(sorted(map(str, fields.raw)))
        raise BadCheckpoint(f"model dimensions: found {found}; expected {', '.join(sorted(names))}")
    return dict(fields.raw)


def reject_state_spaces(raw: Fields) -> None:
    """What a state-spaces config can ask for, of either family, that is not implemented."""
    raw.only("attn_layer_idx", [], None, why="models with attention layers are not supported")
    raw.only("d_intermediate", 0, None, why="models with MLP layers are not supported")
    raw.only("rms_norm", True, why="models with LayerNorm are not supported")


def reject_transformers(raw: Fields) -> None:
    """The same for the transformers dialect."""
    raw.only("use_bias", False, None, why="projections with a bias are not supported")
    raw.only("use_conv_bias", True, why="convolutions without a bias are not supported")
    raw.only("hidden_act", "silu", "swish", why="no other activation is implemented")


def _float(value: Any) -> float:
    if isinstance(value, Mapping):
        value = value.get("__float__")
    return math.inf if value is None else float(value)


def _shown(value: Any) -> str:
    text = (
        {True: "true", False: "false", None: "null"}.get(value)
        if value is None or isinstance(value, bool)
        else repr(value)
    )
    return text if text is not None and len(text) <= 60 else f"{str(text)[:57]}..."
