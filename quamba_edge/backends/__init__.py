"""Backends, found by file name: backends/<name>.py.  Importing this touches no hardware."""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path

from quamba_edge.backends.base import Backend
from quamba_edge.errors import BadUsage, Missing

PREFERENCE = ("cuda", "cpu", "reference")  # what "auto" tries, fastest first


def known() -> list[str]:
    """Names of the backends this version has, fastest first."""
    return [name for name in PREFERENCE if (Path(__file__).parent / f"{name}.py").exists()]


def why_not(name: str) -> str | None:
    """Why this machine cannot run a backend, in one line that ends in the remedy; None if it can."""
    return import_module(f"quamba_edge.backends.{name}").why_not()


def open_backend(name: str = "auto", threads: int | None = None) -> Backend:
    """The backend called `name`, or with "auto" the fastest that this machine can run; its `.name` says which.

    Asking by name never falls back: Missing says why it cannot be.  "auto" falls back where a backend cannot be opened or fails its
    first check, and one logged line says why, but for a GPU where none is.  BadUsage for a name that is none, or for `threads` where
    the backend has no choice of them.
    """
    if name != "auto" and name not in known():
        raise BadUsage(f"{name!r} is not a backend of this version: choose from auto, {', '.join(known())}")
    reasons: dict[str, str] = {}
    for candidate in known() if name == "auto" else [name]:
        reason = why_not(candidate)
        if reason is None:
            try:
                backend: Backend = import_module(f"quamba_edge.backends.{candidate}").make(threads)
            except Missing as e:
                if name != "auto":
                    raise
                reason = str(e)
            else:
                for passed, why in reasons.items():
                    if passed != "cuda" or import_module("quamba_edge.backends.cuda").present():
                        logging.getLogger("quamba_edge").warning(
                            "backend %s is passed over: %s; %s runs instead", passed, why, candidate
                        )
                return backend
        reasons[candidate] = reason
    raise Missing("; ".join(f"backend {candidate}: {reason}" for candidate, reason in reasons.items()))
