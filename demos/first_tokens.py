"""Load a bundle, ask it something, print the answer as it comes, then what it took.

python demos/first_tokens.py build/storyteller.qedge "Tell me a story about a cat named Mia."
"""

import sys

import quamba_edge


def tell(path: str, request: str, max_tokens: int = 300) -> None:
    """Stream the answer to one chat message.  A fixed seed: the same story every time."""
    model = quamba_edge.load(path)
    sampling = quamba_edge.Sampling(temperature=0.7, top_p=0.95, seed=7)
    for step in quamba_edge.generate(
        model, [{"role": "user", "content": request}], sampling=sampling, max_tokens=max_tokens
    ):
        print(step.text, end="", flush=True)
    speed = f", then {step.decode_tps:.0f} tokens/s" if step.decode_tps else ""
    print(f"\n\n[{step.tokens} tokens, first after {step.ttft_ms:.0f} ms{speed}, {model.engine.backend.name} backend]")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    tell(*sys.argv[1:])
