"""From published checkpoints to bundles: `python -m export mamba2-2.7b w4a8`, from the root of the source tree."""
