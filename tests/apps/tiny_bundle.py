"""A bundle file of a random model with a vocabulary of letters, and its golden prompt: what every verb can be tried on."""

import json
import zlib
from pathlib import Path

import numpy as np

from quamba_edge import layouts
from quamba_edge.bundle.manifest import Manifest
from quamba_edge.bundle.writer import write_bundle
from quamba_edge.quant.recipe import Recipe, Scheme
from quamba_edge.runtime.session import Engine, Session
from tests.runtime.plain import bundle_of, random_model

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
LETTERS = ["Ġ", "Ċ", ":", ".", *"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(["<|endoftext|>", *LETTERS])}, "merges": []},
    }
)  # fmt: skip
PROMPT = [5, 6, 7, 8, 1]


def write(
    path: Path, family: str = "mamba2", *, tokenizer_json: str | None = TOKENIZER, d_model: int = 48, **changes
) -> Path:
    """The bundle at `path`; `changes` replace fields of its manifest, such as golden or chat_template."""
    memory = in_memory(family, d_model)
    stored = [(n, s.shape, s.layout, memory.tensor(n)) for n, s in memory.manifest.tensors.items()]
    if tokenizer_json is not None:
        packed = np.frombuffer(zlib.compress(tokenizer_json.encode()), np.uint8)
        stored.append(("tokenizer.json", packed.shape, "row", layouts.pack("row", packed, "u8")))
    fields = {
        "producer": "quamba_edge test",
        "family": family,
        "config": memory.manifest.config,
        "recipe": Recipe("test", {"*": Scheme(4, 8, 32, "rtn")}).to_json(),
        "sites": memory.manifest.sites,
        "vocab_size": len(LETTERS) + 1,
        "rotate": memory.manifest.rotate,
        "calibration": {"source": "noise"},
        "perplexity": {"source": None, "bundle": None, "tokens": 0},
        "golden": None,
        "source": {"name": "tiny", "digest": "0" * 64, "license": None},
        "tokenizer": {"eos": [0], "bos": 0},
        "chat_template": TEMPLATE,
    } | changes  # fmt: skip
    memory.manifest.vocab_size = fields["vocab_size"]
    if fields["golden"] is None:
        fields["golden"] = [golden(memory)]
    write_bundle(path, Manifest(**fields), iter(stored))
    return path


def in_memory(family: str = "mamba2", d_model: int = 48):
    return bundle_of(random_model(family, d_model=d_model), 4, 8, rotate=True)


def golden(memory) -> dict:
    session = Session(Engine(memory, "reference"))
    logits = session.prefill(PROMPT)
    top = [[int(i), float(logits[i])] for i in np.argsort(-logits, kind="stable")[:5]]
    tokens = [int(logits.argmax())]
    while len(tokens) < 8:
        tokens.append(int(session.decode(tokens[-1]).argmax()))
    return {"prompt": PROMPT, "tokens": tokens, "top": top}
