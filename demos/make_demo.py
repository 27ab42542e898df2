"""What `make demo` shows: both embedded models packed to 4-bit weights and 8-bit activations, what it cost, and a story."""

import sys
from pathlib import Path

from first_tokens import tell

import quamba_edge
from quamba_edge.apps.pack import Progress
from quamba_edge.errors import QuambaError

ROOT = Path(__file__).resolve().parent.parent
REQUEST = "Tell me a story about a little girl named Lily."
MODELS = {"storyteller-mamba1-5m": "storyteller-mamba1.qedge", "storyteller-mamba2-5m": "storyteller.qedge"}


def main() -> None:
    (ROOT / "build").mkdir(exist_ok=True)
    for model, name in MODELS.items():
        print(f"\npacking {model} with recipe w4a8, calibrated on text it writes itself", flush=True)
        with Progress() as progress:
            # Fewer and shorter windows than pack takes by default, so that the demo is over in a minute.
            result = quamba_edge.quantize(
                ROOT / "demos" / "models" / model,
                ROOT / "build" / name,
                "w4a8",
                calib_samples=64,
                calib_len=256,
                progress=progress,
            )
        smaller = result.source_bytes / result.bytes
        worse = result.perplexity_bundle / result.perplexity_source - 1
        print(
            f"  size        {result.source_bytes / 1e6:6.2f} MB -> {result.bytes / 1e6:6.2f} MB   {smaller:.2f} times smaller"
        )
        print(
            f"  perplexity  {result.perplexity_source:6.3f}    -> {result.perplexity_bundle:6.3f}      {worse:+.1%}, on text held back"
        )
        print(
            f"  {result.bits_per_weight:.2f} bits a weight, {result.seconds:.0f} s, peak memory {result.peak_rss_bytes / 1e6:.0f} MB"
        )
    bundle = Path("build") / MODELS["storyteller-mamba2-5m"]
    print(f'\n{bundle}, asked: "{REQUEST}"\n', flush=True)
    tell(str(ROOT / bundle), REQUEST)
    print(f'\nyour turn: .venv/bin/quamba-edge run {bundle} --chat --prompt "Tell me a story about a dog named Tim."')


if __name__ == "__main__":
    try:
        main()
    except QuambaError as e:
        sys.exit(f"make demo: {e}")
