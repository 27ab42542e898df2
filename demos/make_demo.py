"""What `make demo` shows: an embedded model packed to 4-bit weights and 8-bit activations, what that cost, and a story.

python demos/make_demo.py [storyteller-mamba2-5m | storyteller-mamba1-5m]
"""

import sys
from pathlib import Path

from first_tokens import tell

import quamba_edge
from quamba_edge.apps.pack import Progress
from quamba_edge.errors import QuambaError

ROOT = Path(__file__).resolve().parent.parent
REQUEST = "Tell me a story about a little girl named Lily."


def main(model: str = "storyteller-mamba2-5m") -> None:
    bundle = ROOT / "build" / "storyteller.qedge"
    bundle.parent.mkdir(exist_ok=True)
    print(f"packing {model} with recipe w4a8, calibrated on text that it writes itself", flush=True)
    with Progress() as progress:
        # Fewer and shorter windows than pack takes by default, so that the demo is over in a minute.
        result = quamba_edge.quantize(
            ROOT / "demos" / "models" / model,
            bundle,
            "w4a8",
            calib_samples=32,
            calib_len=256,
            eval_tokens=4096,
            progress=progress,
        )
    before, after = result.perplexity_source, result.perplexity_bundle
    print(f"""
              source    bundle
size, MB    {result.source_bytes / 1e6:8.2f}  {result.bytes / 1e6:8.2f}   {result.source_bytes / result.bytes:.2f} times smaller
perplexity  {before:8.3f}  {after:8.3f}   {after / before - 1:+.1%}, on text of its own that it was not calibrated on
{result.bits_per_weight:.2f} bits a weight; {result.seconds:.0f} s, peak memory {result.peak_rss_bytes / 1e6:.0f} MB

{bundle.relative_to(ROOT)}, asked: "{REQUEST}"
""")
    tell(str(bundle), REQUEST)
    print(f'\nyour turn: .venv/bin/quamba-edge run {bundle.relative_to(ROOT)} --chat --prompt "Tell me a story."')


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except QuambaError as e:
        sys.exit(f"make demo: {e}")
