"""Pack the golden bundles and write down what they say; run by hand when the format or a meaning changes, and say so in the commit.

python tests/golden/make.py
"""

from pathlib import Path

import quamba_edge

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent.parent / "demos" / "models"
PROMPT = "<|endoftext|>User: Tell me a story about a dog named Tim.\nAssistant:"
GOLDEN = {"mamba": "storyteller-mamba1-5m", "mamba2": "storyteller-mamba2-5m"}
TOKENS = 64


def text_of(bundle: Path, backend: str) -> str:
    """What the bundle says greedily."""
    model = quamba_edge.load(bundle, backend)
    return "".join(s.text for s in quamba_edge.generate(model, PROMPT, max_tokens=TOKENS))


def main() -> None:
    for family, name in GOLDEN.items():
        bundle = HERE / f"{family}.qedge"
        quamba_edge.quantize(MODELS / name, bundle, "w4a8", calib_samples=64, calib_len=256, eval_tokens=1024)
        (HERE / f"{family}.txt").write_text(text_of(bundle, "reference"))
        print(f"{bundle.name}: {(HERE / f'{family}.txt').read_text()}")


if __name__ == "__main__":
    main()
