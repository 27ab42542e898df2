"""Architectures, found by folder name.

Short symbols used everywhere in the project:

    B  sequences in a batch      L  tokens in a sequence     V  vocabulary rows
    D  d_model                   E  d_inner (channels)       N  d_state; also rows of a weight (N, K)
    H  heads (Mamba2)            P  headdim, E = H * P       g  SSD groups (Mamba2): heads h share B, C of group h // (H/g)
    R  dt_rank (Mamba1)          W  d_conv                   G  columns that share one 4-bit scale

Sources: Mamba, Gu and Dao 2023 (arXiv 2312.00752); Mamba2, Dao and Gu 2024 (arXiv 2405.21060); Quamba, Chiang et al. 2024
(arXiv 2410.13229); Quamba2, Chiang et al. 2025 (arXiv 2503.22879).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

from quamba_edge.errors import WrongArchitecture


def known() -> list[str]:
    """Names of the architectures this version has."""
    return sorted(p.parent.name for p in Path(__file__).parent.glob("*/config.py"))


def find(family: str, part: str) -> ModuleType:
    """Module `part` ("config", "program", "weights", "reference") of the architecture called `family`."""
    if family not in known():
        raise WrongArchitecture(f"{family!r} is not an architecture of this version; it has {', '.join(known())}")
    return import_module(f"quamba_edge.models.{family}.{part}")
