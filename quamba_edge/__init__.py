"""Quantized Mamba1 and Mamba2 language models for small machines.

    model = quamba_edge.load("storyteller.qedge")
    for step in quamba_edge.generate(model, "Once upon a time", max_tokens=64):
        print(step.text, end="", flush=True)

Names are fetched when first used: importing the package loads nothing and touches no hardware.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "load": "quamba_edge.runtime.model:load",
    "generate": "quamba_edge.runtime.model:generate",
    "Sampling": "quamba_edge.runtime.sampling:Sampling",
    "quantize": "quamba_edge.pack:pack",
}
__all__ = ["Sampling", "__version__", "generate", "load", "quantize"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'quamba_edge' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
