"""How far the torch reference is from transformers' models; run by hand, needs transformers.

    python tests/bench/reference_vs_transformers.py [CHECKPOINT...]

Prints, for tiny random models and for the given checkpoints (folders), the largest difference of logits over 100 positions,
divided by the largest logit.  In the float64 rows transformers' own casts to float32 are switched off.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere

from quamba_edge import models  # noqa: E402
from quamba_edge.checkpoint import open_checkpoint  # noqa: E402
from tests.models.oracle import relative, transformers_logits  # noqa: E402
from tests.tiny import config_json, parse_config, random_weights  # noqa: E402

TINY = [("mamba", {}), ("mamba2", {}), ("mamba2", {"ngroups": 8}), ("mamba2", {"dt_limit": (0.01, 0.05)})]


def main() -> None:
    print(f"{'model':40s} {'family':8s} {'dtype':9s} {'largest relative difference':>28s}")
    for family, options in TINY:
        config = parse_config(family, "state-spaces", config_json(family, **options))
        compare(" ".join(["random", *(f"{k}={v}" for k, v in options.items())]), config, random_weights(config))
    for path in sys.argv[1:]:
        checkpoint = open_checkpoint(path)
        compare(checkpoint.path.name, checkpoint.config, {n: checkpoint.tensor(n) for n in checkpoint.names()})


@torch.no_grad()
def compare(name: str, config, weights: dict[str, torch.Tensor]) -> None:
    ids = torch.randint(0, config.true_vocab_size, (2, 100), generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64):
        exact = {
            n: t.to(dtype) for n, t in weights.items()
        }  # before loading: a model in between would round to its dtype
        lm = models.find(config.family, "reference").LM(config).to(dtype)
        lm.load_state_dict(exact)
        difference = relative(lm(ids)[0], transformers_logits(config, exact, ids, dtype))
        print(f"{name:40s} {config.family:8s} {str(dtype).removeprefix('torch.'):9s} {difference:28.2e}", flush=True)


if __name__ == "__main__":
    main()
